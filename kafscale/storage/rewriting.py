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
from kafscale.storage.extents import LARGE_EXTENT_BYTES, Extent, checksum_of
from kafscale.storage.store import Buffer, ObjectStore, Purpose

# A new extent ends at this size or number of batches: a ranged read and a walk through it stay short.
CHUNK_BYTES = 1 << 20
CHUNK_BATCHES = 1000
# Pieces up to this size are copied together with their neighbours. Memory for copies is fresh and costs 0.5 CPU-s/GB in
# page faults; below this size a look at each piece, now and at each fetch, costs more.
JOIN_BELOW_BYTES = 4 * 1024
# One GET: at most so long, across gaps of at most so many bytes, so many at a time.
RANGE_BYTES = 8 << 20
RANGE_GAP_BYTES = 64 << 10
READS_AT_ONCE = 4
# Work done before others get their turn, in units of a batch or 16 KiB: about half a millisecond.
STEP_WORK = 400
_WORK_SHIFT = 14
REST_SECONDS = 0.001
# What it takes to look at an extent that is checked as one, beside its bytes.
_WORK_OF_WHOLE = 3
# Handed to the pace at once: a call for every extent or batch would cost as much as a small one does.
_WORK_AT_ONCE = STEP_WORK // 8
# Copied into fresh memory, this many bytes (as a power of two) are a unit.
_COPY_WORK_SHIFT = 12

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
    """Whole batches with dense offsets that become one extent. `is_hot`: all of it was in memory before; `checksum` is
    then known once it is complete, if it is small."""

    __slots__ = (
        "base_offset",
        "batches",
        "checksum",
        "is_hot",
        "last_offset",
        "length",
        "max_timestamp",
        "pieces",
        "records",
    )

    def __init__(self, base_offset: int) -> None:
        self.base_offset = base_offset
        self.last_offset = base_offset - 1
        self.max_timestamp = -1
        self.length = 0
        self.batches = 0
        self.records = 0
        self.is_hot = True
        self.checksum: int | None = None
        self.pieces: list[Buffer] = []

    def has_room(self, length: int, batches: int) -> bool:
        """Whether so much can be added; an empty chunk takes anything."""
        return not self.batches or (self.length + length <= CHUNK_BYTES and self.batches + batches <= CHUNK_BATCHES)

    def complete(self) -> int:
        """Nothing more is added. Returns the work done, in the units of STEP_WORK."""
        copied = self._join()
        work = copied >> _COPY_WORK_SHIFT
        if self.is_hot and self.length < LARGE_EXTENT_BYTES:
            self.checksum = checksum_of(self.pieces)
            work += self.length >> _WORK_SHIFT
        return work

    def _join(self) -> int:
        """Copy neighbouring small pieces together: fewer buffers to write, and to answer a fetch from. Returns how many
        bytes were copied."""
        if len(self.pieces) < 2:
            return 0
        copied = 0
        joined: list[Buffer] = []
        small: list[Buffer] = []
        for piece in self.pieces:
            if len(piece) <= JOIN_BELOW_BYTES:
                small.append(piece)
                continue
            copied += _join_into(joined, small)
            joined.append(piece)
        copied += _join_into(joined, small)
        self.pieces = joined
        return copied


def _join_into(joined: list[Buffer], small: list[Buffer]) -> int:
    if len(small) < 2:
        joined += small
        small.clear()
        return 0
    joined.append(b"".join(small))
    small.clear()
    return len(joined[-1])


class Pace:
    """Gives others their turn after every so much work, and rests a little: a turn alone leaves the store's threads
    to wait for the interpreter, and with them everybody whose records they write."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work = 0
        self._resumed_at = clock.monotonic()

    async def spend(self, work: int) -> None:
        self._work += work
        if self._work >= STEP_WORK:
            self._work = 0
            is_real = self._clock.monotonic() > self._resumed_at  # In a simulation work takes no time.
            await self._clock.sleep(REST_SECONDS if is_real else 0)
            self._resumed_at = self._clock.monotonic()

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

    def views(self, extent: Extent) -> tuple[Sequence[Buffer], bool]:
        """Its bytes, and whether they were in memory. Raises DamagedExtent where the store does not hold it."""
        place = (extent.key, extent.position)
        hot = self._views.get(place)
        if hot is not None:
            return hot, True
        data = self._fetched.get(place)
        if data is None:
            raise DamagedExtent(extent, "the object is missing")
        return (data,), False


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
    work = 0
    for extent in extents:
        views, is_hot = source.views(extent)
        if is_hot and 0 < extent.batches <= CHUNK_BATCHES:
            if not chunk.has_room(extent.length, extent.batches):
                work += chunk.complete()
                chunks.append(chunk)
                chunk = Chunk(extent.base_offset)
            _add_whole(chunk, expected, extent, views)
            expected = extent.last_offset + 1
            work += _WORK_OF_WHOLE + (extent.length >> _WORK_SHIFT)
            if work >= _WORK_AT_ONCE:
                await pace.spend(work)
                work = 0
            continue
        size = 0
        for buffer in views:
            view = memoryview(buffer)
            position = start = 0
            end = len(view)
            size += end
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
                if not chunk.has_room(length, 1):
                    if position > start:
                        chunk.pieces.append(view[start:position])
                        start = position
                    work += chunk.complete()
                    chunks.append(chunk)
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
                if work >= _WORK_AT_ONCE:
                    await pace.spend(work)
                    work = 0
            if start < end:
                chunk.pieces.append(view[start:end])
        if size != extent.length or expected != extent.last_offset + 1:
            raise DamagedExtent(extent, f"holds {size} bytes up to offset {expected - 1}")
    work += chunk.complete()
    chunks.append(chunk)
    await pace.spend(work)
    return chunks


def _add_whole(chunk: Chunk, expected: int, extent: Extent, views: Sequence[Buffer]) -> None:
    """Put a small extent into `chunk`.

    Its batches were checked when they came; that they are the same since, one checksum says of all of them. Raises
    DamagedExtent.
    """
    if checksum_of(views) != extent.checksum:
        raise DamagedExtent(extent, "its bytes in memory are not what was written")
    if extent.base_offset != expected:
        raise DamagedExtent(extent, f"{expected} comes next")
    chunk.last_offset = extent.last_offset
    chunk.max_timestamp = max(chunk.max_timestamp, extent.max_timestamp)
    chunk.length += extent.length
    chunk.batches += extent.batches
    chunk.records += extent.last_offset - extent.base_offset + 1
    chunk.pieces += views
