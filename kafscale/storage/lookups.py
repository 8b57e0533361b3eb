"""Looking records up inside a partition: by timestamp, and all of them in order. Opens only the batches it must.

A batch of many records, of which a megabyte may hold a million, is gone through with turns for others in between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from kafscale.clock import let_others
from kafscale.errors import ObjectMissing
from kafscale.protocol.batches import NO_TIMESTAMP, BatchHeader, iterate
from kafscale.protocol.records import RECORDS_AT_ONCE, first_record_at_or_after, max_timestamp_record, timestamps
from kafscale.storage.extents import Extent
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import Buffer

# An object that is gone may have been compacted into another: look again so often.
TRIES = 3


async def extent_views(partition: PartitionLog, reader: ColdReader, offset: int) -> tuple[Extent, list[Buffer]]:
    """The extent that holds `offset` and its bytes, wherever they are.

    Raises ObjectMissing, Corrupt, StoreUnavailable.
    """
    for _ in range(TRIES):
        number = partition.find(offset)
        if number >= len(partition.extents):
            break
        extent = partition.extents[number]
        if extent.views is not None:
            return extent, extent.views
        try:
            return extent, [await reader.read(partition.extents, number)]
        except ObjectMissing:
            continue
    raise ObjectMissing(f"{partition.topic}-{partition.index}: the object with offset {offset} is missing")


async def batches_from(
    partition: PartitionLog, reader: ColdReader, offset: int
) -> AsyncGenerator[tuple[BatchHeader, memoryview], None]:
    """Every durable batch from the one that holds `offset`, or the log start offset, on, in order."""
    while (offset := max(offset, partition.log_start_offset)) < partition.high_watermark:
        extent, views = await extent_views(partition, reader, offset)
        for view in views:
            whole = memoryview(view)
            for position, header in iterate(whole):
                if header.last_offset >= offset:
                    yield header, whole[position : position + header.size_bytes]
        offset = extent.last_offset + 1


async def offset_for_timestamp(
    partition: PartitionLog, reader: ColdReader, timestamp_ms: int
) -> tuple[int, int] | None:
    """Offset and timestamp of the first record at or after `timestamp_ms`; None if there is none (KIP-79)."""
    for extent in list(partition.extents):
        if extent.max_timestamp < timestamp_ms:
            continue
        async with aclosing(batches_from(partition, reader, extent.base_offset)) as batches:
            async for header, batch in batches:
                if header.base_offset > extent.last_offset:
                    break
                if header.max_timestamp < timestamp_ms:
                    continue
                found = await _first_in(header, batch, timestamp_ms, partition.log_start_offset)
                if found is not None:
                    return found
    return None


async def newest_record(partition: PartitionLog, reader: ColdReader) -> tuple[int, int] | None:
    """Offset and timestamp of the first of the records with the largest timestamp; None where no record has one
    (KIP-734)."""
    best: tuple[int, int] | None = None
    for extent in sorted(partition.extents, key=lambda extent: -extent.max_timestamp):
        if best is not None and best[1] >= extent.max_timestamp:
            break
        found = await _newest_in(partition, reader, extent)
        if found is not None and (best is None or found[1] > best[1]):
            best = found
        if extent.base_offset >= partition.log_start_offset:
            break  # only of an extent that begins below the log start may the newest record be gone
    return best


async def _newest_in(partition: PartitionLog, reader: ColdReader, extent: Extent) -> tuple[int, int] | None:
    """The same of one extent."""
    best: tuple[int, int] | None = None
    async with aclosing(batches_from(partition, reader, extent.base_offset)) as batches:
        async for header, batch in batches:
            if header.base_offset > extent.last_offset:
                break
            if best is None or header.max_timestamp > best[1]:
                found = await _newest_of(header, batch, partition.log_start_offset)
                if found is not None and (best is None or found[1] > best[1]):
                    best = found
    return best


async def _newest_of(header: BatchHeader, batch: memoryview, from_offset: int) -> tuple[int, int] | None:
    if header.is_log_append_time or header.record_count <= RECORDS_AT_ONCE:
        return max_timestamp_record(batch, from_offset=from_offset)
    newest: tuple[int, int] | None = None
    for number, (offset, found_ms) in enumerate(timestamps(batch), 1):
        if offset >= from_offset and found_ms > (NO_TIMESTAMP if newest is None else newest[1]):
            newest = offset, found_ms
        if number % RECORDS_AT_ONCE == 0:
            await let_others()
    return newest


async def _first_in(
    header: BatchHeader, batch: memoryview, timestamp_ms: int, from_offset: int
) -> tuple[int, int] | None:
    if header.is_log_append_time:
        # All records of the batch have the time of their append.
        return max(header.base_offset, from_offset), header.max_timestamp
    if header.record_count <= RECORDS_AT_ONCE:
        return first_record_at_or_after(batch, timestamp_ms, from_offset=from_offset)
    for number, (offset, found_ms) in enumerate(timestamps(batch), 1):
        if found_ms >= timestamp_ms and offset >= from_offset:
            return offset, found_ms
        if number % RECORDS_AT_ONCE == 0:
            await let_others()
    return None
