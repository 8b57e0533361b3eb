"""From appended batches to durable objects: what is in the open flush, when it is written, and who is told.

Owns the open flush, the flushes that are full and wait for their turn, and the order of commits. A flush becomes ONE
data object with the batches of all partitions, grouped by partition. What must always hold: batches are committed to
their partitions in the order in which they were appended; nothing is answered before its flush is durable; an object is
never written for nothing. If the log is fenced, no flush that is not durable is ever committed or answered.

When to write: with an interval (object storage), when the open flush is full or its oldest batch is that old. What the
worker's own work on a flush takes, by the last ones, is part of the interval, so that an acknowledgement comes an
interval and a PUT after the oldest batch; but flushes that are due by age begin an interval apart, since each costs a
PUT. Without an interval (a local directory), when nothing is in flight, and then a moment later: as many batches as
were just acknowledged and as wait already are likely to come together, from clients that wait for their answers, and
share one write. While flushes follow each other closely they keep a least distance there: each costs the disk and the
worker about the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kafscale.clock import Clock, Timer
from kafscale.protocol.batches import BatchHeader
from kafscale.storage.extents import LARGE_EXTENT_BYTES
from kafscale.storage.flush import Flush, lay_out
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import Kind
from kafscale.storage.partition import PartitionLog
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import Buffer, Purpose
from kafscale.storage.tail_cache import TailCache
from kafscale.storage.worker_log import MAX_IN_FLIGHT, WorkerLog

# Of a number of batches: never reached.
_NEVER: Final = 1 << 62
# Of the interval, at most so much is spent on a flush's own work; and so long takes a request until it is on its way.
OWN_WORK_SHARE = 0.2
REQUEST_SECONDS = 0.003
# How much the last flush counts in what the next one's work is expected to take.
_NEWEST_SHARE = 0.3


class FlushPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When to write. `interval_s` None: when nothing is in flight and `gather_s` have passed since, or sooner when as
    many batches are there as can be expected."""

    flush_bytes: int
    interval_s: float | None
    gather_s: float = 0.001
    # Without an interval: between the beginnings of two flushes, once the two before were less than twice that apart.
    least_interval_s: float = 0.001
    max_in_flight: int = MAX_IN_FLIGHT
    # From this size on an extent is large: left where it is by compaction.
    large_extent_bytes: int = LARGE_EXTENT_BYTES
    # Large batches lie at multiples of this (4,096 at most) in their objects: a disk may take them uncopied then.
    alignment: int = 1
    # Bytes appended and not durable beyond which callers should hold back.
    buffered_bytes_max: int = 64 << 20


class Flusher:
    """Collects appends into flushes and writes them to the worker's log."""

    def __init__(
        self,
        log: WorkerLog,
        keys: Keys,
        clock: Clock,
        policy: FlushPolicy,
        tail: TailCache,
        on_flushed: Callable[[Flush, float], None],
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self._log = log
        self._keys = keys
        self._clock = clock
        self._policy = policy
        self._flush_bytes = policy.flush_bytes
        self._tail = tail
        self._on_flushed = on_flushed
        self._bugs = bugs
        self._number = 0
        self._open = self._new_flush()
        self._full: deque[Flush] = deque()
        self._in_flight: deque[Flush] = deque()
        self._checkpoint: tuple[Callable[[bytes], Sequence[Buffer]], Callable[[int], None]] | None = None
        self._timer: Timer | None = None
        self._submitted_at = 0.0
        # When the last flush that was due by age began; and how long a flush's work before and after its PUT takes.
        self._begun_at = -1e9
        self._own_seconds = 0.0
        self._submitted_before = 0.0
        self._confirmed_at = 0.0
        # Batches that are likely to come before the next write: see the head of this file.
        self._expected = 0
        # With how many batches in the open flush `_schedule` is to look at it again.
        self._look_at = 0
        # Bytes appended and not durable yet: what callers bound.
        self.pending_bytes = 0

    # Appending

    def append(
        self, partition: PartitionLog, batch: bytearray | memoryview, header: BatchHeader, now_ms: int
    ) -> tuple[int, Flush]:
        """Append one checked batch. Returns its base offset and the flush that will make it durable. The partition must
        be open: its last manifest may be on its way already."""
        assert partition.is_open, f"{partition.topic}-{partition.index} is not led here any more"
        flush = self._open
        if flush.bytes >= self._flush_bytes:
            self._full.append(flush)
            flush = self._open = self._new_flush()
        if not flush.batches:
            flush.opened_at = self._clock.monotonic()
        base_offset = partition.append(flush.extents, batch, header, now_ms)
        length = len(batch)
        flush.bytes += length
        flush.batches += 1
        self.pending_bytes += length
        partition.last_flush = flush
        if flush.batches >= self._look_at or flush.bytes >= self._flush_bytes:
            self._schedule()
        return base_offset, flush

    def raise_log_start(self, partition: PartitionLog, offset: int) -> Flush:
        """Raise the partition's log start offset, durably; it takes effect when the flush is."""
        self._open.log_starts[partition] = max(offset, self._open.log_starts.get(partition, 0))
        partition.last_flush = self._open
        self._schedule()
        return self._open

    def hasten(self) -> Flush | None:
        """Write what is there without waiting for more. The newest flush that holds anything, as `barrier`."""
        if not self._open.is_empty():
            self._full.append(self._open)
            self._open = self._new_flush()
        self._pump()
        return self.barrier()

    def checkpoint(self, build: Callable[[bytes], Sequence[Buffer]], on_durable: Callable[[int], None]) -> None:
        """Write a checkpoint as the next object. One at a time. `on_durable` gets its sequence number."""
        assert self._checkpoint is None
        self._checkpoint = (build, on_durable)
        self._pump()

    def withdraw_checkpoint(self) -> None:
        """Write the last checkpoint no more, unless it is on its way already."""
        self._checkpoint = None

    @property
    def buffered_bytes_max(self) -> int:
        return self._policy.buffered_bytes_max

    @property
    def is_full(self) -> bool:
        """Whether so much waits to become durable that no more should be appended."""
        return self.pending_bytes >= self._policy.buffered_bytes_max

    def barrier(self) -> Flush | None:
        """The newest flush that holds anything, or None when everything appended is durable."""
        newest = self.unfinished()
        if self._open.is_empty():
            newest.pop()
        return newest[-1] if newest else None

    def unfinished(self) -> list[Flush]:
        """Every flush that is not durable yet, oldest first."""
        return [*self._in_flight, *self._full, self._open]

    def oldest_age(self) -> float:
        """Seconds that the oldest batch that is not durable has waited; 0 when there is none."""
        oldest = self.unfinished()[0]
        return 0.0 if oldest.is_empty() else self._clock.monotonic() - oldest.opened_at

    # Writing

    def _new_flush(self) -> Flush:
        self._look_at = 0
        self._number += 1
        return Flush(self._number, self._clock.monotonic())

    def _schedule(self) -> None:
        """See to it that the open flush is written in time."""
        flush = self._open
        now = self._clock.monotonic()
        if flush.bytes >= self._flush_bytes or self._full:
            self._pump()
            return
        interval = self._policy.interval_s
        if interval is None and self._log.in_flight:
            self._look_at = _NEVER  # the next confirmation does
            return
        is_gathered = interval is None and flush.batches >= self._expected
        self._look_at = _NEVER if is_gathered or interval is not None else self._expected
        if self._timer is not None:
            if not is_gathered:
                return
            self._timer.cancel()
        if interval is not None:
            ahead = min(self._own_seconds + REQUEST_SECONDS, interval * OWN_WORK_SHARE)
            due_at = max(flush.opened_at - ahead, self._begun_at) + interval
        else:
            # Not at once even then: what else this turn of the loop receives comes along.
            due_at = now if is_gathered else self._confirmed_at + self._policy.gather_s
            least = self._policy.least_interval_s
            if self._submitted_at - self._submitted_before < 2 * least:
                due_at = max(due_at, self._submitted_at + least)
        self._timer = self._clock.call_later(max(due_at - now, 0.0), self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._open.is_empty():
            if self._policy.interval_s is None and self._log.in_flight:
                return
            self._begun_at = self._clock.monotonic()
            self._full.append(self._open)
            self._open = self._new_flush()
        self._pump()

    def _pump(self) -> None:
        """Write what is ready, as far as the window goes."""
        log = self._log
        while log.fenced is None and not log.is_sealed and log.in_flight < self._policy.max_in_flight:
            if self._checkpoint is not None:
                build, on_durable = self._checkpoint
                self._checkpoint = None
                self._submit_checkpoint(build, on_durable)
            elif self._full:
                self._submit(self._full.popleft())
            elif self._open.bytes >= self._policy.flush_bytes:
                flush, self._open = self._open, self._new_flush()
                self._submit(flush)
            else:
                break

    def _submit_checkpoint(self, build: Callable[[bytes], Sequence[Buffer]], on_durable: Callable[[int], None]) -> None:
        sequence = self._log.next_sequence

        def durable() -> None:
            on_durable(sequence)
            self._after_confirmation()

        self._log.submit(Kind.CHECKPOINT, build, durable, Purpose.CHECKPOINT)

    def _submit(self, flush: Flush) -> None:
        self._submitted_before = self._submitted_at
        self._submitted_at = self._clock.monotonic()
        sequence = self._log.next_sequence
        key = self._keys.log(self._log.log_id, sequence)

        def build(header: bytes) -> Sequence[Buffer]:
            return lay_out(flush, header, key, self._policy.large_extent_bytes, self._policy.alignment)

        flush.sequence = sequence
        self._in_flight.append(flush)
        self._log.submit(Kind.DATA, build, lambda: self._commit(flush), Purpose.FLUSH)
        flush.own_seconds = self._clock.monotonic() - self._submitted_at

    def _commit(self, flush: Flush) -> None:
        assert self._in_flight.popleft() is flush
        began = self._clock.monotonic()
        woken: dict[Callable[[int], None], int] = {}
        for partition, extent in flush.placed:
            partition.commit(extent)
            if partition.last_flush is flush:
                partition.last_flush = None
            for waiter in partition.waiters:
                woken[waiter] = woken.get(waiter, 0) + extent.length
        for partition, offset in flush.log_starts.items():
            flush.dropped += [(partition, extent) for extent in partition.start_at(offset)]
            if partition.last_flush is flush:
                partition.last_flush = None
        flush.durable = True
        self.pending_bytes -= flush.bytes
        self._tail.add([extent for _, extent in flush.placed], flush.bytes)
        now = self._confirmed_at = self._clock.monotonic()
        for answer in flush.answers:
            answer(now)
        flush.answers.clear()
        own_seconds = flush.own_seconds + self._clock.monotonic() - began
        self._own_seconds += _NEWEST_SHARE * (own_seconds - self._own_seconds)
        for waiter, added in woken.items():
            waiter(added)
        self._expected = flush.batches + self._open.batches
        self._on_flushed(flush, now - self._submitted_at)
        self._after_confirmation()

    def _after_confirmation(self) -> None:
        self._pump()
        if not self._open.is_empty():
            self._schedule()
