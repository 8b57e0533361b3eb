"""Producer ids: blocks of them claimed in the bucket, handed out one by one.

A block has a random number and is claimed by put-if-absent, so ids are unique with no one to ask but the store, and
idempotent producers can start while the coordination store is down. An unclear claim is abandoned: the block is lost,
of which there are enough. Claims are never deleted.
"""

from __future__ import annotations

import asyncio
import random

from kafscale.clock import Clock
from kafscale.errors import ObjectExists, Retry, StoreError, StoreUnavailable, StoreUnclear
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys
from kafscale.storage.store import ObjectStore, Purpose

IDS_PER_BLOCK = 1000
# Ids stay below 2^62, far from the sign bit of the wire's int64.
BLOCKS = (1 << 62) // IDS_PER_BLOCK
TRIES = 6


class ProducerIds:
    """The ids that this worker may hand out."""

    def __init__(self, store: ObjectStore, keys: Keys, clock: Clock, random_source: random.Random, owner: str) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._owner = owner
        self._next = 0
        self._end = 0
        self._claiming = asyncio.Lock()

    async def next(self) -> int:
        """A producer id that nobody else has. Raises Retry while the store gives no answers."""
        if self._next == self._end:
            async with self._claiming:
                if self._next == self._end:
                    await self._claim()
        producer_id = self._next
        self._next += 1
        return producer_id

    async def _claim(self) -> None:
        waits = backoff_seconds(self._random)
        for _ in range(TRIES):
            block = self._random.randrange(BLOCKS)
            try:
                await self._store.put_if_absent(self._keys.producer_ids(block), [self._owner.encode()], Purpose.CLUSTER)
            except ObjectExists:
                continue
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(next(waits))
                continue
            except StoreError as error:
                raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, f"no producer id: {error}") from error
            self._next = block * IDS_PER_BLOCK
            self._end = self._next + IDS_PER_BLOCK
            return
        raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, "the store does not answer; no producer id can be claimed yet")
