"""One owned partition: its offsets, extents, producers and leader epochs, durable and pending.

Owns what is durable (below `high_watermark`) and what was appended and is on its way (up to `next_offset`). What must
always hold: offsets are dense from `log_start_offset` to `next_offset`; the high watermark only rises, and only when
the bytes below it are durable; readers see nothing at or above it. It knows no store and no socket: the flusher makes
appended batches durable and calls `commit`, in the order of the appends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from kafscale.errors import Corrupt
from kafscale.protocol.batches import LOG_OVERHEAD, BatchHeader, stamp_whole
from kafscale.storage.extents import Extent, extent_at
from kafscale.storage.log_objects import BATCH_ROW
from kafscale.storage.producers import ProducerBatch, ProducerSnapshot, ProducerTable
from kafscale.storage.store import Buffer

if TYPE_CHECKING:
    from kafscale.storage.flush import Flush


_pack_row = BATCH_ROW.pack


class PartitionConfig(Protocol):
    """The topic settings that a partition follows."""

    @property
    def retention_ms(self) -> int: ...
    @property
    def retention_bytes(self) -> int: ...
    @property
    def segment_bytes(self) -> int: ...
    @property
    def max_message_bytes(self) -> int: ...
    @property
    def log_append_time(self) -> bool: ...
    @property
    def timestamp_before_max_ms(self) -> int: ...
    @property
    def timestamp_after_max_ms(self) -> int: ...


class EpochStart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The leader epoch under which offsets from `start_offset` on were written."""

    epoch: int
    start_offset: int


class PendingExtent:
    """The batches of one partition in a flush that is not durable yet."""

    __slots__ = ("base_offset", "bytes", "count", "last_offset", "max_timestamp", "rows", "views")

    def __init__(
        self, base_offset: int, last_offset: int, max_timestamp: int, batch: Buffer, length: int, row: bytes
    ) -> None:
        self.base_offset = base_offset
        self.last_offset = last_offset
        self.max_timestamp = max_timestamp
        self.bytes = length
        self.count = 1
        self.views: list[Buffer] = [batch]
        # Of BATCH_ROW, one a batch.
        self.rows = row

    def add(self, last_offset: int, max_timestamp: int, batch: Buffer, length: int, row: bytes) -> None:
        """Put the next batch behind what is there."""
        self.last_offset = last_offset
        if max_timestamp > self.max_timestamp:
            self.max_timestamp = max_timestamp
        self.views.append(batch)
        self.bytes += length
        self.count += 1
        self.rows += row


class PartitionLog:
    """A partition that this worker leads."""

    __slots__ = (
        "config",
        "epochs",
        "extents",
        "high_watermark",
        "identity",
        "index",
        "is_open",
        "last_flush",
        "leader_epoch",
        "log_start_offset",
        "next_offset",
        "producers",
        "published_offset",
        "size_bytes",
        "slot",
        "topic",
        "topic_id",
        "waiters",
    )

    def __init__(
        self, topic: str, topic_id: bytes, index: int, slot: int, leader_epoch: int, config: PartitionConfig
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.index = index
        self.identity = (topic_id, index)
        self.slot = slot
        self.leader_epoch = leader_epoch
        # Whether it is led here: once its slot was given away nothing may be appended any more.
        self.is_open = True
        self.config = config
        self.log_start_offset = 0
        self.high_watermark = 0
        self.next_offset = 0
        # Everything below is described by a manifest that a counting checkpoint names, for all to read.
        self.published_offset = 0
        self.size_bytes = 0
        self.extents: list[Extent] = []
        self.epochs: list[EpochStart] = []
        self.producers = ProducerTable()
        # The newest flush that holds something of this partition: what waits for its appends waits for this.
        self.last_flush: Flush | None = None
        # Called with the bytes added whenever the high watermark rises.
        self.waiters: dict[Callable[[int], None], None] = {}

    # Appending

    def duplicate_of(self, header: BatchHeader) -> ProducerBatch | None:
        """See `ProducerTable.duplicate_of`; None for a batch without a producer id."""
        if header.producer_id < 0:
            return None
        return self.producers.duplicate_of(
            header.producer_id, header.producer_epoch, header.base_sequence, header.record_count
        )

    def append(
        self,
        extents: dict[PartitionLog, PendingExtent],
        batch: bytearray | memoryview,
        header: BatchHeader,
        now_ms: int,
    ) -> int:
        """Give the batch its offsets and put it into the partition's entry in `extents`. Returns its base offset.

        `batch` is checked, writable, and stays as it is until it is durable and out of every cache.
        """
        (
            _,
            batch_length,
            _,
            _,
            _,
            attributes,
            delta,
            _,
            max_timestamp,
            producer_id,
            producer_epoch,
            sequence,
            count,
        ) = header
        base_offset = self.next_offset
        last_offset = base_offset + delta
        self.next_offset = last_offset + 1
        stamp_whole(batch, 0, base_offset, batch_length, self.leader_epoch)
        length = batch_length + LOG_OVERHEAD
        row = _pack_row(base_offset, delta, length, max_timestamp, producer_id, producer_epoch, sequence, attributes)
        # A batch without timestamps ages from its append, or retention would delete it at once.
        newest = max_timestamp if max_timestamp >= 0 else now_ms
        pending = extents.get(self)
        if pending is None:
            extents[self] = PendingExtent(base_offset, last_offset, newest, batch, length, row)
        else:
            pending.add(last_offset, newest, batch, length, row)
        if producer_id >= 0:
            self.producers.add(
                producer_id,
                producer_epoch,
                sequence,
                count,
                base_offset,
                max_timestamp,
                now_ms,
                self.high_watermark,
            )
        return base_offset

    def commit(self, extent: Extent) -> None:
        """The extent is durable: readers may see it."""
        if extent.base_offset != self.high_watermark:
            raise AssertionError(
                f"{self.topic}-{self.index}: extent from {extent.base_offset} does not follow {self.high_watermark}"
            )
        self.extents.append(extent)
        self.size_bytes += extent.length
        self.high_watermark = extent.last_offset + 1

    def lead(self, epoch: int) -> None:
        """Begin a leader epoch at the present end."""
        self.leader_epoch = epoch
        if self.epochs and self.epochs[-1].start_offset == self.next_offset:
            self.epochs.pop()
        self.epochs.append(EpochStart(epoch, self.next_offset))

    # Reading

    def find(self, offset: int) -> int:
        """Index of the extent that holds `offset` (len(extents) at the high watermark)."""
        return extent_at(self.extents, offset)

    def end_of_epoch(self, epoch: int) -> tuple[int, int]:
        """Kafka's OffsetForLeaderEpoch: the largest known epoch up to `epoch`, and where it ended. (-1, -1) when the
        epoch is later than any known."""
        epochs = self.epochs
        if not epochs or epoch > epochs[-1].epoch or epoch < 0:
            return -1, -1
        if epoch == epochs[-1].epoch:
            return epoch, self.high_watermark
        if epoch < epochs[0].epoch:
            return epoch, epochs[0].start_offset
        found, end = epochs[0].epoch, self.high_watermark
        for entry in epochs:
            if entry.epoch > epoch:
                end = entry.start_offset
                break
            found = entry.epoch
        return found, end

    # Deleting from the front

    def expired_to(self, now_ms: int) -> int:
        """The log start offset that retention by time and size asks for now; at least the present one."""
        start = self.log_start_offset
        size = self.size_bytes
        retention_ms, retention_bytes = self.config.retention_ms, self.config.retention_bytes
        for extent in self.extents:
            too_old = retention_ms >= 0 and extent.max_timestamp < now_ms - retention_ms
            too_much = retention_bytes >= 0 and size - extent.length >= retention_bytes
            if not (too_old or too_much):
                break
            start = extent.last_offset + 1
            size -= extent.length
        return max(start, self.log_start_offset)

    def start_at(self, offset: int) -> list[Extent]:
        """Raise the log start offset (durable by now); returns the extents that lie wholly below it, now forgotten."""
        if offset <= self.log_start_offset:
            return []
        self.log_start_offset = offset
        drop = 0
        for extent in self.extents:
            if extent.last_offset >= offset:
                break
            self.size_bytes -= extent.length
            drop += 1
        dropped = self.extents[:drop]
        del self.extents[:drop]
        passed = [entry for entry in self.epochs if entry.start_offset <= offset]
        if passed:
            kept = EpochStart(passed[-1].epoch, offset)
            self.epochs = [kept, *(entry for entry in self.epochs if entry.start_offset > offset)]
        return dropped

    # Compaction

    def replace(self, first: int, last: int, replacements: list[Extent]) -> bool:
        """Put `replacements` in the place of the extents that cover offsets `first` to `last` exactly.

        False, and nothing done, if these extents are no longer all there (retention came first).
        """
        begin = extent_at(self.extents, first)
        end = extent_at(self.extents, last)
        if (
            end >= len(self.extents)
            or self.extents[begin].base_offset != first
            or self.extents[end].last_offset != last
        ):
            return False
        self.extents[begin : end + 1] = replacements
        return True


class PartitionManifest(msgspec.Struct, array_like=True):
    """A partition in a slot's manifest. `extents` are rows of `manifest.EXTENT_ROW`."""

    topic_id: bytes
    index: int
    log_start_offset: int
    high_watermark: int
    epochs: list[EpochStart]
    extents: bytes
    producers: list[ProducerSnapshot]


def check_dense(partition: PartitionLog) -> None:
    """Assert what must hold of the extents after a load. Raises Corrupt."""
    expected: int | None = None
    for extent in partition.extents:
        if expected is not None and extent.base_offset != expected:
            raise Corrupt(
                f"{partition.topic}-{partition.index}: offsets jump from {expected} to {extent.base_offset} "
                f"in {extent.key}"
            )
        expected = extent.last_offset + 1
    if expected is not None and expected != partition.high_watermark:
        raise Corrupt(
            f"{partition.topic}-{partition.index}: extents end at {expected}, the high watermark is "
            f"{partition.high_watermark}"
        )
