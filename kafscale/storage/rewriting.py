"""Rewriting record batches into larger objects: reads what is to be rewritten, checks it, and cuts it anew.

Owns the reading of extents for compaction and the cutting of batches into chunks, which become the extents of the new
object. It knows no partition, no reference and no policy. What must always hold: every batch that comes out was checked
(frame, CRC32C, dense offsets), be it from memory or from the store, so that damage is never copied over the only good
bytes; no step holds the event loop for more than a millisecond or so (`STEP_WORK`).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

from crc32c import crc32c

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectMissing
from kafscale.storage.extents import Extent, checksum_of
from kafscale.storage.store import Buffer, ObjectStore, Purpose

# A new extent ends at this size or number of batches: a ranged read and a walk through it stay short.
CHUNK_BYTES = 1 << 20
CHUNK_BATCHES = 1000
# Pieces up to this size are copied together with their neighbours.
JOIN_BELOW_BYTES = 16 * 1024
# One GET: at most so long, across gaps of at most so many bytes, so many at a time.
RANGE_BYTES = 8 << 20
RANGE_GAP_BYTES = 64 << 10
READS_AT_ONCE = 4
# Work done before others get their turn, in units of a batch or 16 KiB: about half a millisecond.
STEP_WORK = 400
_WORK_SHIFT = 14

# Base offset, length, magic, CRC, last offset delta, max timestamp, record count: Kafka's record batch v2.
_BATCH = struct.Struct(">qi4xbI2xi8xq14xi")
_LENGTH_OVERHEAD = 12
_CHECKED_FROM = 21
_MAGIC = 2

Place = tuple[str, int]


class DamagedExtent(Corrupt):
    """Corrupt, and in which extent."""

    def __init__(self, extent: Extent, message: str) -> None:
        super().__init__(
            f"{extent.key} at {extent.position}, offsets {extent.base_offset}-{extent.last_offset}: {message}"
        )
        self.place: Place = (extent.key, extent.position)


class Chunk:
    """Whole batches with dense offsets that become one extent. `is_hot`: all of it was in memory before."""

    __slots__ = ("base_offset", "batches", "is_hot", "last_offset", "length", "max_timestamp", "pieces", "records")

    def __init__(self, base_offset: int) -> None:
        self.base_offset = base_offset
        self.last_offset = base_offset - 1
        self.max_timestamp = -1
        self.length = 0
        self.batches = 0
        self.records = 0
        self.is_hot = True
        self.pieces: list[Buffer] = []

    def join(self) -> None:
        """Copy neighbouring small pieces together: fewer buffers to write, and to answer a fetch from."""
        if len(self.pieces) < 2:
            return
        joined: list[Buffer] = []
        small: list[Buffer] = []
        for piece in self.pieces:
            if len(piece) <= JOIN_BELOW_BYTES:
                small.append(piece)
                continue
            _flush(small, joined)
            joined.append(piece)
        _flush(small, joined)
        self.pieces = joined


def _flush(small: list[Buffer], joined: list[Buffer]) -> None:
    if small:
        joined.append(b"".join(small) if len(small) > 1 else small[0])
        small.clear()


class Pace:
    """Gives others their turn after every so much work."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work = 0

    async def spend(self, work: int) -> None:
        self._work += work
        if self._work >= STEP_WORK:
            self._work = 0
            await self._clock.sleep(0)

    async def spend_on(self, byte_count: int) -> None:
        await self.spend(1 + (byte_count >> _WORK_SHIFT))


class Source:
    """The bytes of some extents: those that were in memory when they were added, and what `read` fetched of the others.

    Holds the memory of all of them for as long as it lives; callers bound it by the extents they add.
    """

    def __init__(self) -> None:
        self._views: dict[Place, Sequence[Buffer]] = {}
        self._cold: dict[str, list[Extent]] = {}
        self._fetched: dict[Place, memoryview] = {}
        self.bytes_read = 0

    def add(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            if extent.views is not None:
                self._views[extent.key, extent.position] = extent.views
            else:
                self._cold.setdefault(extent.key, []).append(extent)

    async def read(self, store: ObjectStore, pace: Pace) -> None:
        """Fetch what is not in memory. An object that is not there is only noticed by `views`.

        Raises StoreUnavailable.
        """
        waiting: list[list[Extent]] = []
        for extents in self._cold.values():
            for members in _ranges(extents):
                waiting.append(members)
                if len(waiting) == READS_AT_ONCE:
                    await asyncio.gather(*(self._read_range(store, members) for members in waiting))
                    waiting = []
            await pace.spend(1 + len(extents) // 4)
        await asyncio.gather(*(self._read_range(store, members) for members in waiting))

    async def _read_range(self, store: ObjectStore, members: list[Extent]) -> None:
        first, last = members[0], members[-1]
        length = last.position + last.length - first.position
        try:
            data = memoryview(await store.get_range(first.key, first.position, length, Purpose.COMPACTION))
        except ObjectMissing:
            return
        self.bytes_read += len(data)
        for extent in members:
            start = extent.position - first.position
            self._fetched[extent.key, extent.position] = data[start : start + extent.length]

    def is_hot(self, extent: Extent) -> bool:
        return (extent.key, extent.position) in self._views

    def views(self, extent: Extent) -> Sequence[Buffer]:
        """Raises DamagedExtent where the store does not hold it."""
        place = (extent.key, extent.position)
        hot = self._views.get(place)
        if hot is not None:
            return hot
        data = self._fetched.get(place)
        if data is None:
            raise DamagedExtent(extent, "the object is missing")
        return (data,)


def _ranges(extents: Sequence[Extent]) -> list[list[Extent]]:
    """The neighbours among extents of one object, to be read with one GET each."""
    ranges: list[list[Extent]] = []
    end = 0
    for extent in sorted(extents, key=lambda extent: extent.position):
        if (
            ranges
            and extent.position - end <= RANGE_GAP_BYTES
            and extent.position + extent.length - ranges[-1][0].position <= RANGE_BYTES
        ):
            ranges[-1].append(extent)
        else:
            ranges.append([extent])
        end = extent.position + extent.length
    return ranges


async def cut_into_chunks(extents: Sequence[Extent], source: Source, pace: Pace) -> list[Chunk]:
    """The batches of adjacent extents of one partition as chunks, every batch checked.

    Raises DamagedExtent, and then nothing of the run may be replaced.
    """
    chunks: list[Chunk] = []
    chunk = Chunk(extents[0].base_offset)
    expected = chunk.base_offset
    for extent in extents:
        is_hot = source.is_hot(extent)
        if is_hot and 0 < extent.batches <= CHUNK_BATCHES:
            chunk = _add_whole(chunks, chunk, extent, source.views(extent))
            expected = extent.last_offset + 1
            await pace.spend(1)
            continue
        size = 0
        for buffer in source.views(extent):
            view = memoryview(buffer)
            position = start = 0
            end = len(view)
            size += end
            work = 0
            while position < end:
                try:
                    base, rest, magic, crc, delta, newest, records = _BATCH.unpack_from(view, position)
                except struct.error:
                    raise DamagedExtent(extent, f"{end - position} bytes are left, too few for a batch") from None
                length = rest + _LENGTH_OVERHEAD
                if magic != _MAGIC or length < _BATCH.size or length > end - position:
                    raise DamagedExtent(extent, f"no batch of magic {magic} and length {length} at {position}")
                if base != expected or delta < 0:
                    raise DamagedExtent(extent, f"batch at offset {base}, {expected} comes next")
                if crc32c(view[position + _CHECKED_FROM : position + length]) != crc:
                    raise DamagedExtent(extent, f"the batch at offset {base} does not match its CRC")
                if chunk.batches and (chunk.length + length > CHUNK_BYTES or chunk.batches >= CHUNK_BATCHES):
                    if position > start:
                        chunk.pieces.append(view[start:position])
                        start = position
                    chunks.append(chunk)
                    chunk.join()
                    chunk = Chunk(base)
                expected = base + delta + 1
                chunk.last_offset = expected - 1
                # A batch without timestamps ages from its append, which only its extent remembers.
                chunk.max_timestamp = max(chunk.max_timestamp, newest if newest >= 0 else extent.max_timestamp)
                chunk.length += length
                chunk.batches += 1
                chunk.records += records
                chunk.is_hot = chunk.is_hot and is_hot
                position += length
                work += 1 + (length >> _WORK_SHIFT)
                if work >= STEP_WORK:
                    await pace.spend(work)
                    work = 0
            if start < end:
                chunk.pieces.append(view[start:end])
            await pace.spend(work)
        if size != extent.length or expected != extent.last_offset + 1:
            raise DamagedExtent(extent, f"holds {size} bytes up to offset {expected - 1}")
    chunk.join()
    chunks.append(chunk)
    return chunks


def _add_whole(chunks: list[Chunk], chunk: Chunk, extent: Extent, views: Sequence[Buffer]) -> Chunk:
    """Put a small extent into `chunk`, or into a new one if it doesn't fit; returns the chunk that goes on.

    Its batches were checked when they came; that they are the same since, one checksum says of all of them. Raises
    DamagedExtent.
    """
    if checksum_of(views) != extent.checksum:
        raise DamagedExtent(extent, "its bytes in memory are not what was written")
    if extent.base_offset != chunk.last_offset + 1:
        raise DamagedExtent(extent, f"{chunk.last_offset + 1} comes next")
    if chunk.batches and (chunk.length + extent.length > CHUNK_BYTES or chunk.batches + extent.batches > CHUNK_BATCHES):
        chunks.append(chunk)
        chunk.join()
        chunk = Chunk(extent.base_offset)
    chunk.last_offset = extent.last_offset
    chunk.max_timestamp = max(chunk.max_timestamp, extent.max_timestamp)
    chunk.length += extent.length
    chunk.batches += extent.batches
    chunk.records += extent.last_offset - extent.base_offset + 1
    chunk.pieces += views
    return chunk
