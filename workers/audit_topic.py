"""Copies of this broker's audit records in the internal topic: what the supervisor has written is appended here.

Only this writes to the topic: clients are refused, as with every internal topic. Appends to the first partition that
this worker leads, so that the copy keeps its order for as long as nothing moves. Creates the topic when there is a
first record for it. Owns what waits for that, in bytes. Nothing waits for a copy: what can't be appended is counted,
and is missing from the copy's numbers, not from the record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.control import AuditCopy
from kafscale.coordination.cluster import AUDIT_TOPIC
from kafscale.coordination.commands import CreateTopic
from kafscale.errors import KafscaleError
from kafscale.metrics import AUDIT_UNCOPIED, MetricsBlock
from kafscale.protocol.batches import build_batch, read_header
from kafscale.storage.flusher import Flusher
from kafscale.storage.partition import PartitionLog
from workers.admin import Admin
from workers.context import ClusterView
from workers.ownership import Ownership

log = logging.getLogger(__name__)

RETENTION_MS: Final = 7 * 24 * 3600 * 1000
BATCH_BYTES_MAX: Final = 512 * 1024
# Waiting for the topic to be there.
WAITING_BYTES_MAX: Final = 4 << 20


class AuditTopic:
    """One worker's. `receive` is to be called with every `AuditCopy`."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        metrics: MetricsBlock,
        cluster: ClusterView,
        ownership: Ownership,
        flusher: Flusher,
        admin: Admin,
    ) -> None:
        self._partitions = settings.offsets_topic_partitions
        self._clock = clock
        self._cells = metrics.cells
        self._cluster = cluster
        self._ownership = ownership
        self._flusher = flusher
        self._admin = admin
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._is_creating = False

    def receive(self, copy: AuditCopy) -> Coroutine[Any, Any, None] | None:
        """Append these records; where there is no topic yet, what is to be run to make it."""
        self._cells[AUDIT_UNCOPIED] += copy.lost
        lines = copy.lines.splitlines()
        if self._cluster.topic(AUDIT_TOPIC) is not None:
            self._append(lines)
            return None
        for line in lines:
            if self._waiting_bytes + len(line) > WAITING_BYTES_MAX:
                self._cells[AUDIT_UNCOPIED] += 1
                continue
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        if self._is_creating:
            return None
        self._is_creating = True
        return self._create()

    async def _create(self) -> None:
        command = CreateTopic(
            name=AUDIT_TOPIC, partitions=self._partitions, configs={"retention.ms": str(RETENTION_MS)}
        )
        try:
            await self._admin.submit([command])
        except (KafscaleError, asyncio.CancelledError) as error:
            log.warning("the topic of audit records could not be created", extra={"cause": str(error)})
        finally:
            self._is_creating = False
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._append(waiting)

    def _append(self, lines: list[bytes]) -> None:
        partition = self._partition()
        if partition is None or self._flusher.is_full:
            self._cells[AUDIT_UNCOPIED] += len(lines)
            return
        now_ms = self._clock.wall_ms()
        first, size = 0, 0
        for number, line in enumerate(lines):
            if size + len(line) > BATCH_BYTES_MAX and number > first:
                self._append_batch(partition, lines[first:number], now_ms)
                first, size = number, 0
            size += len(line)
        if first < len(lines):
            self._append_batch(partition, lines[first:], now_ms)

    def _append_batch(self, partition: PartitionLog, lines: list[bytes], now_ms: int) -> None:
        batch = build_batch([(None, line) for line in lines], timestamp_ms=now_ms)
        self._flusher.append(partition, batch, read_header(batch), now_ms)

    def _partition(self) -> PartitionLog | None:
        """The first that is served here."""
        topic = self._cluster.topic(AUDIT_TOPIC)
        found = (self._ownership.partition(AUDIT_TOPIC, index) for index in range(topic.partitions if topic else 0))
        return next((partition for partition in found if partition is not None), None)
