"""Reading extents that are no longer in memory: ranged GETs through a bounded cache, shared and read ahead.

Owns the cache and the GETs in progress. A miss fetches the wanted extent together with what follows it in the same
object, as one range, and begins the next objects' ranges of the partition up to the read-ahead; readers of the same
extent share one GET. Every batch's CRC32C is checked before a byte is served, a step of some half a millisecond in a
turn of the loop, however many ranges arrive at once. It knows no partition beyond its extents.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from kafscale.clock import Clock
from kafscale.errors import Corrupt
from kafscale.protocol.batches import stored_batches
from kafscale.storage.extents import Extent
from kafscale.storage.store import ObjectStore, Purpose

READ_AHEAD_BYTES = 8 << 20
# One GET is no longer than this, but for an extent that is longer by itself.
RANGE_BYTES = 4 << 20

# What is checked in one step, in batches or 16 KiB.
STEP_WORK = 300
_WORK_SHIFT = 14

_Place = tuple[str, int]


class ColdReader:
    """At most `max_bytes` of extents read back from the store."""

    def __init__(self, store: ObjectStore, clock: Clock, max_bytes: int) -> None:
        self._store = store
        self._clock = clock
        self._max_bytes = max_bytes
        self._cache: OrderedDict[_Place, memoryview] = OrderedDict()
        self._bytes = 0
        self._reading: dict[_Place, asyncio.Task[None]] = {}
        # Checked since others last got their turn, and by whom.
        self._work = 0
        self._checking = asyncio.Lock()

    async def read(self, extents: Sequence[Extent], index: int) -> memoryview:
        """The bytes of `extents[index]`, verified.

        Raises ObjectMissing, Corrupt, StoreUnavailable.
        """
        extent = extents[index]
        place = (extent.key, extent.position)
        found = self._cache.get(place)
        if found is None:
            self._begin(extents, index)
            with contextlib.suppress(Corrupt):
                await asyncio.shield(self._reading[place])
            found = self._cache.get(place)
            if found is None:
                # Something that came in the same range is damaged, this or another; or so much was read meanwhile that
                # it has been evicted again: read it alone.
                found = memoryview(await self._get(extent.key, extent.position, extent.length))
                await self._verify(extent, found)
        else:
            self._cache.move_to_end(place)
            self._begin(extents, index + 1)
        return found

    async def close(self) -> None:
        for task in list(self._reading.values()):
            task.cancel()

    def _begin(self, extents: Sequence[Extent], index: int) -> None:
        """Start the GETs for the extent at `index` and what follows it, as far as the read-ahead goes."""
        ahead = 0
        budget = min(READ_AHEAD_BYTES, self._max_bytes // 2)
        while index < len(extents) and (ahead == 0 or ahead < budget):
            extent = extents[index]
            if extent.views is not None:
                return
            place = (extent.key, extent.position)
            if place in self._cache or place in self._reading:
                ahead += extent.length
                index += 1
                continue
            run = [extent]
            size = extent.length
            for following in extents[index + 1 : index + 257]:
                if (
                    following.key != extent.key
                    or following.position != extent.position + size
                    or size + following.length > RANGE_BYTES
                    or following.views is not None
                ):
                    break
                run.append(following)
                size += following.length
            task = asyncio.ensure_future(self._read_run(run, size))
            task.add_done_callback(_retrieve)
            for member in run:
                self._reading[member.key, member.position] = task
            ahead += size
            index += len(run)

    async def _read_run(self, run: list[Extent], size: int) -> None:
        first = run[0]
        try:
            data = memoryview(await self._get(first.key, first.position, size))
            for extent in run:
                start = extent.position - first.position
                piece = data[start : start + extent.length]
                await self._verify(extent, piece)
                self._keep((extent.key, extent.position), piece)
        finally:
            for extent in run:
                self._reading.pop((extent.key, extent.position), None)

    async def _get(self, key: str, position: int, length: int) -> bytes:
        return await self._store.get_range(key, position, length, Purpose.COLD_READ)

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

    def _keep(self, place: _Place, piece: memoryview) -> None:
        self._cache[place] = piece
        self._bytes += len(piece)
        while self._bytes > self._max_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._bytes -= len(dropped)


def _retrieve(task: asyncio.Task[None]) -> None:
    """A read-ahead that nobody waits for may fail in silence: whoever wants the extent reads it again."""
    if not task.cancelled():
        task.exception()
