"""Anchors: now and then the number and hash of the newest audit record go into the bucket, where they can't be changed.

An anchor's name has the record's number in it and is written with put-if-absent: whoever cuts the end off a broker's
records, or makes them anew, can't take back what was anchored of them. Anchors are never deleted. Knows the bucket, and
of records only their place.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectExists, ObjectMissing
from kafscale.security.audit_chain import ChainLink
from kafscale.storage.keys import Keys, sequence_of
from kafscale.storage.retrying import PATIENCE_SECONDS, insist
from kafscale.storage.store import ObjectStore, Purpose

READS_AT_ONCE: Final = 16


class Anchor(msgspec.Struct, frozen=True):
    """What is in the object: JSON, for people too."""

    chain: str
    seq: int
    hash: str
    written_ms: int

    @property
    def link(self) -> ChainLink:
        return ChainLink(self.seq, self.hash)


class AnchorConflict(Exception):
    """Under this number another record is anchored: two brokers write one chain, or one was set back."""


class Anchors:
    """Those of one broker."""

    def __init__(
        self, store: ObjectStore, keys: Keys, broker_id: int, clock: Clock, random_source: random.Random
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._broker_id = broker_id

    async def newest(self, least: int = 0) -> Anchor | None:
        """The one with the highest number, of this number at least. Raises Corrupt, and StoreUnavailable once the store
        has given no answer for `PATIENCE_SECONDS`."""
        return await insist(lambda: self._newest(least), self._clock, self._random, PATIENCE_SECONDS)

    async def _newest(self, least: int) -> Anchor | None:
        start_after = self._keys.audit_anchor(self._broker_id, least - 1) if least > 1 else ""
        found = await self._store.list(self._keys.audit_anchors(self._broker_id), Purpose.CLUSTER, start_after)
        return await read_anchor(self._store, found[-1].key) if found else None

    async def put(self, anchor: Anchor) -> None:
        """Anchor a record. Raises AnchorConflict, StoreError (then it may be repeated)."""
        key = self._keys.audit_anchor(self._broker_id, anchor.seq)
        try:
            await self._store.put_if_absent(key, [msgspec.json.encode(anchor)], Purpose.CLUSTER)
        except ObjectExists:
            there = await read_anchor(self._store, key)
            if (there.chain, there.hash) != (anchor.chain, anchor.hash):
                text = f"record {anchor.seq} of {anchor.chain} was anchored before, with another hash"
                raise AnchorConflict(text) from None


async def anchors_of_all(store: ObjectStore, keys: Keys) -> list[Anchor]:
    """Those of all brokers. Raises StoreError, Corrupt."""
    found = [info.key for info in await store.list(keys.audit_prefix, Purpose.CLUSTER)]
    anchors: list[Anchor] = []
    for first in range(0, len(found), READS_AT_ONCE):
        some = found[first : first + READS_AT_ONCE]
        anchors += await asyncio.gather(*(read_anchor(store, key) for key in some))
    return anchors


async def read_anchor(store: ObjectStore, key: str) -> Anchor:
    """Raises StoreError, Corrupt."""
    try:
        anchor = msgspec.json.decode(await store.get(key, Purpose.CLUSTER), type=Anchor)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"the audit anchor {key} can't be read: {error}") from error
    except ObjectMissing:
        raise Corrupt(f"the audit anchor {key} is listed and not there") from None
    if anchor.seq != sequence_of(key):
        raise Corrupt(f"the audit anchor {key} is of record {anchor.seq}")
    return anchor
