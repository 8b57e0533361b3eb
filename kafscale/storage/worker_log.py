"""The writing end of a worker's log: one incarnation's sequence of objects, written with put-if-absent.

Owns the next sequence number, what is in flight, and the order of acknowledgement. What must always hold:

- A number stays bound to its bytes: whatever the store answers, that number is settled by reading back, or written
  again with the same bytes, never given to others.
- An object counts, and its `on_durable` runs, only when it and every number below it are confirmed.
- A number that is taken by someone else (a seal) ends the incarnation: nothing at or above it is ever acknowledged.

It fails in two ways: the store gives no clear answers (it waits, backs off and asks again for ever; callers bound their
memory by `in_flight`), or the log is fenced (`on_fenced` runs once).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from kafscale.clock import Clock
from kafscale.errors import Fenced, ObjectExists, ObjectMissing, StoreFailed, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import HEADER_BYTES, Kind, encode_header
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import Buffer, ObjectStore, Purpose

# Whoever seals tries twice as many numbers at once (`takeover.SEALS_AT_ONCE`), so that a busy owner can't outrun it.
MAX_IN_FLIGHT = 4


class WorkerLog:
    """Writes the objects of log `log_id`, in order, several in flight."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        log_id: str,
        clock: Clock,
        random_source: random.Random,
        on_fenced: Callable[[str], None],
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self.log_id = log_id
        self.next_sequence = 0
        # Every number below this one is durable and counts.
        self.counted = 0
        self.checkpoint_sequence = -1
        self.fenced: str | None = None
        # Set before the log is fenced because the store can no longer be trusted, not because another has taken over.
        self.store_failure: str | None = None
        # Whether we have ended it ourselves: what would come above the seal would never have existed.
        self.is_sealed = False
        # When the store was last asked anything whose answer showed that this log had not ended.
        self.confirmed_at = clock.monotonic()
        self.store_answers = True
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._on_fenced = on_fenced
        self._bugs = bugs
        self._waiting: dict[int, Callable[[], None]] = {}
        self._confirmed: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Objects that were submitted and do not count yet."""
        return self.next_sequence - self.counted

    def submit(
        self,
        kind: Kind,
        build: Callable[[bytes], Sequence[Buffer]],
        on_durable: Callable[[], None],
        purpose: Purpose,
    ) -> int:
        """Take the next number, write `build(header)` under it, and run `on_durable` when it counts.

        The buffers must stay unchanged until then. Returns the sequence number. Raises Fenced if the log has ended.
        """
        if self.fenced is not None:
            raise Fenced(self.fenced)
        assert self.in_flight < MAX_IN_FLIGHT and not self.is_sealed
        self.is_sealed = kind is Kind.SEAL
        sequence = self.next_sequence
        self.next_sequence += 1
        header = encode_header(kind, self.log_id, sequence, self._clock.wall_ms(), self.checkpoint_sequence)
        parts = build(header)
        self._waiting[sequence] = on_durable
        if self._bugs.acknowledge_before_write:
            self._confirm(sequence)
        task = asyncio.ensure_future(self._write(sequence, header, parts, purpose))
        self._tasks.add(task)
        task.add_done_callback(self._written)
        return sequence

    async def append(self, kind: Kind, build: Callable[[bytes], Sequence[Buffer]], purpose: Purpose) -> int:
        """`submit`, and wait until the object counts. Raises Fenced."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not durable.done():
                durable.set_result(None)

        sequence = self.submit(kind, build, settle, purpose)
        await durable
        return sequence

    async def check_not_fenced(self) -> bool:
        """Ask the store whether the next number is free: False (after fencing this log) if it is taken.

        For an owner that may have been replaced without knowing it. Raises StoreUnavailable or StoreUnclear.
        """
        while self.fenced is None:
            sequence = self.next_sequence
            began = self._clock.monotonic()
            taken = await self._store.exists(self._keys.log(self.log_id, sequence), Purpose.RECOVERY)
            if sequence < self.next_sequence:
                continue  # we wrote meanwhile, perhaps this very number
            if taken:
                self._fence(f"sequence {sequence} of log {self.log_id} is taken by another writer")
                return False
            self._hold_at(began)
            return True
        return False

    def _hold_at(self, began: float) -> None:
        """The store showed that the log had not ended when we asked. That is all: the answer may have waited for this
        process to be continued, long after its replacement."""
        self.confirmed_at = max(self.confirmed_at, began)

    def stop(self) -> None:
        """Give up what is in flight, without acknowledging it."""
        for task in self._tasks:
            task.cancel()

    async def _write(self, sequence: int, header: bytes, parts: Sequence[Buffer], purpose: Purpose) -> None:
        key = self._keys.log(self.log_id, sequence)
        waits = backoff_seconds(self._random)
        began = self._clock.monotonic()
        while True:
            try:
                await self._store.put_if_absent(key, parts, purpose)
                break
            except (ObjectExists, StoreUnclear):
                verdict = await self._read_back(key, header)
                if verdict is True:
                    break
                if verdict is False:
                    self._fence(f"sequence {sequence} of log {self.log_id} is taken by another writer")
                    return
            except StoreUnavailable:
                self.store_answers = False
            await self._clock.sleep(next(waits))
        self.store_answers = True
        self._hold_at(began)
        self._confirm(sequence)

    async def _read_back(self, key: str, header: bytes) -> bool | None:
        """Whose object lies at `key`: True ours, False another's, None nobody's (write it again)."""
        waits = backoff_seconds(self._random)
        while True:
            try:
                return await self._store.get_range(key, 0, HEADER_BYTES, Purpose.RECOVERY) == header
            except ObjectMissing:
                return None
            except (StoreUnavailable, StoreUnclear):
                self.store_answers = False
                await self._clock.sleep(next(waits))

    def _confirm(self, sequence: int) -> None:
        if self.fenced is not None:
            return
        self._confirmed.add(sequence)
        while self.counted in self._confirmed:
            self._confirmed.remove(self.counted)
            on_durable = self._waiting.pop(self.counted, None)
            self.counted += 1
            if on_durable is not None:
                on_durable()

    def _written(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, StoreFailed):
            self.store_failure = str(error)
            self._fence(f"the store failed: {error}")
        elif error is not None:
            self._fence(f"the log's writer failed: {error!r}")

    def _fence(self, reason: str) -> None:
        if self.fenced is None:
            self.fenced = reason
            self._waiting.clear()
            self._on_fenced(reason)
