"""What a worker does by the clock: checkpoints, compaction, retention, patience of producers, its lease, its gauges.

Owns the periodic task and when each duty was last done; decides nothing of what the duties mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from kafscale.errors import Fenced, StoreError
from kafscale.metrics import (
    CACHE_BYTES,
    CHECKPOINTS,
    COMPACTION_BYTES,
    COMPACTION_OBJECTS,
    GROUPS,
    LOOP_LAG_MAX,
    PARTITIONS_OWNED,
    PRODUCE_BUFFERED,
    RETENTION_BYTES,
    SLAB_BYTES,
    SLOTS_FAILED,
    SLOTS_OWNED,
)
from kafscale.storage.compaction import CompactionResult, Compactor
from kafscale.storage.partition import PartitionLog
from kafscale.storage.tail_cache import TailCache
from workers.checkpoints import Checkpointer
from workers.connections import Connections
from workers.context import Context
from workers.slabs import SlabPool
from workers.waiting_produce import Waiting

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
# Partitions whose retention is looked at in one tick: some 2 ms of work.
PARTITIONS_PER_TICK = 500
# Producers not seen for so long are forgotten (Kafka: producer.id.expiration.ms).
PRODUCER_EXPIRATION_MS = 24 * 3600 * 1000
# A flush younger than this has no producer that has lost patience.
PATIENCE_SECONDS = 0.5
LAG_MEMORY_SECONDS = 60.0
COMPACTION_RETRY_SECONDS = 5.0


class Upkeep:
    """The worker's periodic duties."""

    def __init__(
        self,
        context: Context,
        checkpointer: Checkpointer,
        compactor: Compactor,
        connections: Connections,
        tail: TailCache,
        slabs: SlabPool,
    ) -> None:
        self._context = context
        self._checkpointer = checkpointer
        self._compactor = compactor
        self._connections = connections
        self._tail = tail
        self._slabs = slabs
        self._task: asyncio.Task[None] | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        self._compaction: asyncio.Task[None] | None = None
        self._round: Iterator[PartitionLog] = iter(())
        self._round_at = context.clock.monotonic()
        self._lag_at = 0.0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        for task in (self._task, self._checkpoint, self._compaction):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        clock = self._context.clock
        while True:
            began = clock.monotonic()
            await clock.sleep(TICK_SECONDS)
            now = clock.monotonic()
            try:
                self._note_lag(now, now - began - TICK_SECONDS)
                self._expire_producers(now)
                self._begin_checkpoint()
                self._begin_compaction()
                self._apply_retention(now)
                self._show()
                if self._context.lease.runs_out_soon(now):
                    await self._context.lease.check()
            except Exception:
                log.exception("upkeep failed")

    def _note_lag(self, now: float, lag: float) -> None:
        cells = self._context.metrics.cells
        lag_us = int(max(lag, 0.0) * 1e6)
        if lag_us >= cells[LOOP_LAG_MAX] or now - self._lag_at > LAG_MEMORY_SECONDS:
            cells[LOOP_LAG_MAX] = lag_us
            self._lag_at = now

    def _expire_producers(self, now: float) -> None:
        """Answer the produce requests whose time is over while the store is slow or silent."""
        for flush in self._context.flusher.unfinished():
            if flush.is_empty() or now - flush.opened_at < PATIENCE_SECONDS:
                continue
            for answer in flush.answers:
                if isinstance(answer, Waiting):
                    answer.expire(now)

    def _begin_checkpoint(self) -> None:
        is_running = self._checkpoint is not None and not self._checkpoint.done()
        if is_running:
            return
        if self._checkpointer.is_due():
            self._checkpoint = asyncio.get_running_loop().create_task(self._write_checkpoint())
        elif self._checkpointer.has_doomed():
            # The checkpoint of a takeover or a release said so; there may be no other for long.
            self._checkpoint = asyncio.get_running_loop().create_task(self._checkpointer.delete_doomed())

    async def _write_checkpoint(self) -> None:
        try:
            await self._checkpointer.write()
            await self._checkpointer.delete_doomed()
        except Fenced:
            return
        except StoreError as error:
            log.error("no checkpoint could be written", extra={"why": str(error)})
        else:
            self._context.metrics.cells[CHECKPOINTS] += 1

    def _begin_compaction(self) -> None:
        is_running = self._compaction is not None and not self._compaction.done()
        if not is_running and self._compactor.due():
            self._compaction = asyncio.get_running_loop().create_task(self._compact())

    async def _compact(self) -> None:
        try:
            while self._compactor.due():
                result = await self._compactor.run_once(self._context.ownership.partitions())
                self._count(result)
        except StoreError as error:
            log.warning("compaction waits", extra={"why": str(error)})
            await self._context.clock.sleep(COMPACTION_RETRY_SECONDS)

    def _count(self, result: CompactionResult) -> None:
        cells = self._context.metrics.cells
        cells[COMPACTION_OBJECTS] += result.packs + result.segments
        cells[COMPACTION_BYTES.at("in")] += result.bytes_read
        cells[COMPACTION_BYTES.at("out")] += result.bytes_written

    def _apply_retention(self, now: float) -> None:
        """Look at some partitions; all of them once in the check interval."""
        context = self._context
        now_ms = context.clock.wall_ms()
        for _ in range(PARTITIONS_PER_TICK):
            partition = next(self._round, None)
            if partition is None:
                if now - self._round_at < context.settings.log_retention_check_interval_ms / 1000:
                    return
                self._round_at = now
                self._round = iter(list(context.ownership.partitions()))
                return
            if context.ownership.partition(partition.topic_id, partition.index) is not partition:
                continue
            start = partition.expired_to(now_ms)
            if start > partition.log_start_offset and context.ownership.may_expire(partition):
                gone = sum(extent.length for extent in partition.extents if extent.last_offset < start)
                context.metrics.cells[RETENTION_BYTES] += gone
                context.flusher.raise_log_start(partition, start)
            partition.producers.expire(now_ms - PRODUCER_EXPIRATION_MS, partition.high_watermark)

    def _show(self) -> None:
        context = self._context
        cells = context.metrics.cells
        context.cold_reader.trim()
        cells[PRODUCE_BUFFERED] = context.flusher.pending_bytes
        cells[CACHE_BYTES] = self._tail.bytes
        cells[SLAB_BYTES] = self._slabs.allocated_bytes
        cells[SLOTS_OWNED] = len(context.ownership.slots)
        cells[SLOTS_FAILED] = len(context.ownership.failed)
        cells[PARTITIONS_OWNED] = len(context.ownership)
        cells[GROUPS] = context.groups.group_count()
