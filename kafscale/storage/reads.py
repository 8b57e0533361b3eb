"""Reading extents that are no longer in memory: ranged GETs through a bounded cache, shared and read ahead.

Owns the GETs in progress, and who reads where. A miss fetches the wanted extent together with what follows it in the
same object, as one range, and begins the next objects' ranges of the partition, as far as the read-ahead goes: that is
shared out among all partitions that are being read, so that what is read ahead is still there when it is wanted.
Readers of the same extent share one GET. Every batch's CRC32C is checked before a byte is served, a step of some half a
millisecond in a turn of the loop, however many ranges arrive at once. It knows no partition beyond its extents.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from kafscale.clock import Clock
from kafscale.errors import Corrupt
from kafscale.protocol.batches import stored_batches
from kafscale.storage.extents import Extent
from kafscale.storage.read_cache import AHEAD_SHARE, Place, ReadCache
from kafscale.storage.store import ObjectStore, Purpose

# At most so much is read ahead for one partition.
READ_AHEAD_BYTES = 8 << 20
# One GET is no longer than this, but for an extent that is longer by itself.
RANGE_BYTES = 4 << 20
# A partition that nobody has read from for so long gets no share of the read-ahead.
READER_SECONDS = 5.0

# What is checked in one step, in batches or 16 KiB.
STEP_WORK = 300
_WORK_SHIFT = 14


class ColdReader:
    """At most `max_bytes` of extents read back from the store; a function where that changes."""

    def __init__(self, store: ObjectStore, clock: Clock, max_bytes: int | Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._cache = ReadCache(max_bytes if callable(max_bytes) else lambda: max_bytes)
        self._reading: dict[Place, asyncio.Task[None]] = {}
        # Lists of extents that are being read: where last, and when. In the order of the last read.
        self._readers: OrderedDict[int, tuple[Place, float]] = OrderedDict()
        # Checked since others last got their turn, and by whom.
        self._work = 0
        self._checking = asyncio.Lock()

    async def read(self, extents: Sequence[Extent], index: int) -> memoryview:
        """The bytes of `extents[index]`, verified.

        Raises ObjectMissing, Corrupt, StoreUnavailable.
        """
        extent = extents[index]
        place = (extent.key, extent.position)
        self._note_reader(extents, place)
        found = self._cache.get(place)
        if found is None:
            self._begin(extents, index, is_wanted=True)
            purpose = Purpose.COLD_READ
            try:
                await asyncio.shield(self._reading[place])
            except Corrupt:
                purpose = Purpose.SECOND_READ
            found = self._cache.get(place)
            if found is None:
                # Something that came in the same range is damaged, this or another; or so much was read meanwhile that
                # it has been evicted again: read it alone.
                found = memoryview(await self._store.get_range(extent.key, extent.position, extent.length, purpose))
                await self._verify(extent, found)
        else:
            self._begin(extents, index + 1, is_wanted=False)
        return found

    def expect(self, extents: Sequence[Extent], index: int) -> None:
        """`extents[index]` will be wanted in a moment: begin to read it."""
        extent = extents[index]
        if (extent.key, extent.position) not in self._cache:
            self._begin(extents, index, is_wanted=True)

    def trim(self) -> None:
        """Keep to the bound, which may have fallen since something was read."""
        self._cache.trim()

    async def close(self) -> None:
        for task in list(self._reading.values()):
            task.cancel()

    def _note_reader(self, extents: Sequence[Extent], place: Place) -> None:
        now = self._clock.monotonic()
        before = self._readers.pop(id(extents), None)
        if before is not None and before[0] != place:
            self._cache.leave(before[0])
        self._readers[id(extents)] = (place, now)
        while self._readers:
            reader, (_, read_at) = next(iter(self._readers.items()))
            if now - read_at < READER_SECONDS:
                break
            del self._readers[reader]

    def _begin(self, extents: Sequence[Extent], index: int, is_wanted: bool) -> None:
        """Start the GETs for the extent at `index`, if that is wanted, and for what follows it, as far as it goes."""
        now = self._clock.monotonic()
        share = int(self._cache.limit * AHEAD_SHARE) // max(1, len(self._readers))
        room = min(READ_AHEAD_BYTES, share, self._cache.room_ahead(now))
        while index < len(extents) and (is_wanted or room > 0):
            extent = extents[index]
            if extent.views is not None:
                return
            place = (extent.key, extent.position)
            if place in self._cache or place in self._reading:
                room -= 0 if is_wanted else extent.length
                is_wanted = False
                index += 1
                continue
            if not is_wanted and extent.length > room:
                return
            run, ahead = self._run_from(extents, index, room, is_wanted)
            for member in run[1:] if is_wanted else run:
                self._cache.ask_ahead((member.key, member.position), member.length, now)
            task = asyncio.ensure_future(self._read_run(run))
            task.add_done_callback(_retrieve)
            for member in run:
                self._reading[member.key, member.position] = task
            room -= ahead
            index += len(run)
            is_wanted = False

    def _run_from(self, extents: Sequence[Extent], index: int, room: int, is_wanted: bool) -> tuple[list[Extent], int]:
        """The extents from `index` on that one GET brings, and how many of its bytes are read ahead."""
        first = extents[index]
        run = [first]
        size = first.length
        ahead = 0 if is_wanted else first.length
        for following in extents[index + 1 : index + 257]:
            if (
                following.key != first.key
                or following.position != first.position + size
                or size + following.length > RANGE_BYTES
                or ahead + following.length > room
                or following.views is not None
                or (following.key, following.position) in self._cache
                or (following.key, following.position) in self._reading
            ):
                break
            run.append(following)
            size += following.length
            ahead += following.length
        return run, ahead

    async def _read_run(self, run: list[Extent]) -> None:
        first, last = run[0], run[-1]
        is_kept = 0
        try:
            size = last.position + last.length - first.position
            data = memoryview(await self._store.get_range(first.key, first.position, size, Purpose.COLD_READ))
            for extent in run:
                start = extent.position - first.position
                piece = data[start : start + extent.length]
                await self._verify(extent, piece)
                self._cache.put((extent.key, extent.position), piece)
                is_kept += 1
        finally:
            for extent in run:
                self._reading.pop((extent.key, extent.position), None)
            for extent in run[is_kept:]:
                self._cache.wanted((extent.key, extent.position))

    async def _verify(self, extent: Extent, piece: memoryview) -> None:
        if len(piece) != extent.length:
            raise Corrupt(f"{extent.key}: {extent.length} bytes wanted at {extent.position}, {len(piece)} are there")
        batches = stored_batches(piece)
        is_complete = False
        while not is_complete:
            # In turns: a short extent waits for a step of each range that is being checked, not for all of them.
            async with self._checking:
                try:
                    is_complete = self._check_some(batches)
                except Corrupt as error:
                    raise Corrupt(f"{extent.key} at {extent.position}: {error}") from error
                if self._work >= STEP_WORK:
                    self._work = 0
                    await self._clock.sleep(0)

    def _check_some(self, batches: Iterator[int]) -> bool:
        """A step; True at the end."""
        for size in batches:
            self._work += 1 + (size >> _WORK_SHIFT)
            if self._work >= STEP_WORK:
                return False
        return True


def _retrieve(task: asyncio.Task[None]) -> None:
    """A read-ahead that nobody waits for may fail in silence: whoever wants the extent reads it again."""
    if not task.cancelled():
        task.exception()
