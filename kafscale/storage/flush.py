"""One flush: what goes into one data object, and how its bytes are laid out.

Owns nothing but what it is given by the flusher. The batches of a partition stand together, in offset order; where its
batches are large each may be an extent of its own, so that it can begin at a multiple of the store's alignment. Then
there are zeros in between and before the table, which no row of it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Final

from crc32c import crc32c

from kafscale.storage.extents import Extent, checksum_of
from kafscale.storage.log_objects import (
    BATCH_ROW,
    BATCHES_GROUP,
    FOOTER_BYTES,
    HEADER_BYTES,
    LOG_START_GROUP,
    GroupKind,
    encode_footer,
)
from kafscale.storage.partition import PartitionLog, PendingExtent
from kafscale.storage.store import Buffer

# Batches up to this size are copied together, so that a later fetch finds them in one piece.
JOIN_BELOW_BYTES = 4 * 1024
_ZEROS: Final = bytes(4096)
_pack_group = BATCHES_GROUP.pack
_by_identity = attrgetter("identity")


class Flush:
    """One data object in the making."""

    __slots__ = (
        "answers",
        "batches",
        "bytes",
        "dropped",
        "durable",
        "extents",
        "log_starts",
        "number",
        "opened_at",
        "own_seconds",
        "placed",
        "sequence",
        "small_bytes",
    )

    def __init__(self, number: int, opened_at: float) -> None:
        # Flushes become durable in the order of their numbers.
        self.number = number
        self.opened_at = opened_at
        # What laying it out took.
        self.own_seconds = 0.0
        self.sequence = -1
        self.durable = False
        self.bytes = 0
        self.batches = 0
        self.extents: dict[PartitionLog, PendingExtent] = {}
        self.log_starts: dict[PartitionLog, int] = {}
        # Where each partition's batches lie, once the object is laid out.
        self.placed: list[tuple[PartitionLog, Extent]] = []
        # Of `bytes`, what lies in extents that are to be compacted, once the object is laid out.
        self.small_bytes = 0
        # Extents that a raised log start offset made unreachable, and whose.
        self.dropped: list[tuple[PartitionLog, Extent]] = []
        # Called in order, with the time (monotonic seconds), once the flush is durable and committed.
        self.answers: list[Callable[[float], None]] = []

    def is_empty(self) -> bool:
        return not (self.extents or self.log_starts)


def lay_out(flush: Flush, header: bytes, key: str, large_extent_bytes: int, alignment: int) -> list[Buffer]:
    """The parts of the data object; notes in `flush.placed` where each partition's batches lie in it.

    Where `alignment` is more than 1, batches of `large_extent_bytes` and more begin at a multiple of it.
    """
    parts: list[Buffer] = [header]
    table: list[bytes] = []
    placed = flush.placed
    position = HEADER_BYTES
    small_bytes = 0
    for partition in sorted(flush.extents, key=_by_identity):
        pending = flush.extents[partition]
        topic_id, index = partition.identity
        length = pending.bytes
        if length >= large_extent_bytes:
            for run in _runs(pending, large_extent_bytes) if alignment > 1 else (pending,):
                if alignment > 1 and len(run.views[0]) >= large_extent_bytes:
                    gap = -position % alignment
                    parts.append(_ZEROS[:gap])
                    position += gap
                table.append(
                    _pack_group(GroupKind.BATCHES, topic_id, index, partition.leader_epoch, position, run.count)
                )
                table.append(run.rows)
                views = _joined(run.views)
                placed.append((partition, _extent(run, key, position, views)))
                parts += views
                position += run.bytes
            continue
        table.append(_pack_group(GroupKind.BATCHES, topic_id, index, partition.leader_epoch, position, pending.count))
        table.append(pending.rows)
        views = _joined(pending.views) if pending.count > 1 else pending.views
        extent = _extent(pending, key, position, views)
        extent.batches = pending.count
        extent.checksum = crc32c(views[0]) if len(views) == 1 else checksum_of(views)
        placed.append((partition, extent))
        parts += views
        position += length
        small_bytes += length
    flush.small_bytes = small_bytes
    for partition, offset in flush.log_starts.items():
        table.append(
            LOG_START_GROUP.pack(GroupKind.LOG_START_OFFSET, *partition.identity, partition.leader_epoch, offset)
        )
    rows = b"".join(table)
    if alignment > 1 and flush.bytes >= large_extent_bytes:
        # It ends at a multiple too, so that nothing need be cut off.
        gap = -(position + len(rows) + len(header) + FOOTER_BYTES) % alignment
        parts.append(_ZEROS[:gap])
        position += gap
    parts.append(rows)
    parts.append(encode_footer(position, rows, header))
    return parts


def _extent(pending: PendingExtent, key: str, position: int, views: list[Buffer]) -> Extent:
    return Extent(pending.base_offset, pending.last_offset, pending.max_timestamp, key, position, pending.bytes, views)


def _runs(pending: PendingExtent, large_extent_bytes: int) -> Iterator[PendingExtent]:
    """The partition's batches in runs of at least `large_extent_bytes`, which begin with a large batch where they can:
    what is small stays with the large one before it, or else compaction would rewrite it."""
    run: PendingExtent | None = None
    for view, row in zip(pending.views, BATCH_ROW.iter_unpack(pending.rows), strict=True):
        base_offset, delta, length, max_timestamp = row[:4]
        # Of a batch without timestamps only the newest time of its append is known.
        newest = max_timestamp if max_timestamp >= 0 else pending.max_timestamp
        packed = BATCH_ROW.pack(*row)
        if run is None or (length >= large_extent_bytes <= run.bytes):
            if run is not None:
                yield run
            run = PendingExtent(base_offset, base_offset + delta, newest, view, length, packed)
        else:
            run.add(base_offset + delta, newest, view, length, packed)
    if run is not None:
        yield run


def _joined(views: list[Buffer]) -> list[Buffer]:
    """The batches' bytes with neighbouring small ones copied together."""
    if len(views) == 1:
        return views
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for view in views:
        if len(view) <= JOIN_BELOW_BYTES:
            small.append(view)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(view)
    if small:
        joined.append(b"".join(small))
    return joined
