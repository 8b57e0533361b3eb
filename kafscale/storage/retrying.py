"""Asking a store again when a read fails: a few times, or until a person would lose patience.

`insist` is for those who decide, and say themselves for how long. The rest are wrappers of any object store.
`RetryingStore` asks again for consumers and for compaction, and only for these: writes, log ends and checkpoints are
tried again by those who know what an unclear answer means. `InsistingStore` is for commands that read a bucket and
write nothing: it gives up for good after a while, and at once where a person must mend something, so that they end.
Waits are exponential with jitter, so that a store that says "slow down" is let alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from kafscale.clock import Clock
from kafscale.errors import StoreError, StoreFailed, StoreRefused, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose

# So many tries take about half a second in all; then the reader's client asks again.
TRIES = 6
_RETRIED = frozenset({Purpose.COLD_READ, Purpose.SECOND_READ, Purpose.COMPACTION})
INSISTED_SECONDS = 60.0
# How long a store that gives no answer is asked again, by whoever decides something, before the caller is told.
PATIENCE_SECONDS = 10.0

_Result = TypeVar("_Result")


async def insist(
    question: Callable[[], Awaitable[_Result]], clock: Clock, random_source: random.Random, seconds: float = math.inf
) -> _Result:
    """What the store says to `question`, which changes nothing. It is asked again while there is no answer, and once
    `seconds` have gone by the last StoreUnavailable or StoreUnclear is the caller's."""
    deadline = clock.monotonic() + seconds
    for wait in backoff_seconds(random_source):
        try:
            return await question()
        except (StoreUnavailable, StoreUnclear):
            if clock.monotonic() >= deadline:
                raise
        await clock.sleep(wait)
    raise AssertionError("backoff never ends")


class RetryingStore:
    """`store`, more patient with reads."""

    def __init__(self, store: ObjectStore, clock: Clock, random_source: random.Random) -> None:
        self._store = store
        self._clock = clock
        self._random = random_source

    def __str__(self) -> str:
        return str(self._store)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        await self._store.put_if_absent(key, parts, purpose)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return await self._ask(purpose, lambda: self._store.get(key, purpose))

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        return await self._ask(purpose, lambda: self._store.get_range(key, position, length, purpose))

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        return await self._ask(purpose, lambda: self._store.get_tail(key, length, purpose))

    async def exists(self, key: str, purpose: Purpose) -> bool:
        return await self._ask(purpose, lambda: self._store.exists(key, purpose))

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        return await self._ask(purpose, lambda: self._store.list(prefix, purpose, start_after))

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        await self._store.delete(keys, purpose)

    async def close(self) -> None:
        await self._store.close()

    async def _ask(self, purpose: Purpose, question: Callable[[], Awaitable[_Result]]) -> _Result:
        if purpose not in _RETRIED:
            return await question()
        for tries, wait in enumerate(backoff_seconds(self._random), 1):
            try:
                return await question()
            except StoreUnavailable:
                if tries == TRIES:
                    raise
            await self._clock.sleep(wait)
        raise AssertionError("backoff never ends")


class InsistingStore:
    """`store`, only read, each question repeated for up to `seconds`; then StoreFailed, which nobody repeats. A refusal
    that stays until a person mends something is that at once. `waiting` is told why a question must be repeated."""

    def __init__(
        self,
        store: ObjectStore,
        clock: Clock,
        random_source: random.Random,
        waiting: Callable[[StoreError], None],
        seconds: float = INSISTED_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._random = random_source
        self._waiting = waiting
        self._seconds = seconds

    def __str__(self) -> str:
        return str(self._store)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        raise AssertionError("this store is only read")

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return await self._ask(lambda: self._store.get(key, purpose))

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        return await self._ask(lambda: self._store.get_range(key, position, length, purpose))

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        return await self._ask(lambda: self._store.get_tail(key, length, purpose))

    async def exists(self, key: str, purpose: Purpose) -> bool:
        return await self._ask(lambda: self._store.exists(key, purpose))

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        return await self._ask(lambda: self._store.list(prefix, purpose, start_after))

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        raise AssertionError("this store is only read")

    async def close(self) -> None:
        await self._store.close()

    async def _ask(self, question: Callable[[], Awaitable[_Result]]) -> _Result:
        async def once() -> _Result:
            try:
                return await question()
            except StoreRefused as error:
                raise StoreFailed(f"{error}; check the bucket, the credentials and what they allow") from error
            except (StoreUnavailable, StoreUnclear) as error:
                self._waiting(error)
                raise

        try:
            return await insist(once, self._clock, self._random, self._seconds)
        except (StoreUnavailable, StoreUnclear) as error:
            raise StoreFailed(f"no answer for {self._seconds:g} s: {error}") from error
