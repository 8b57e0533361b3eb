"""Memory for large received frames: a bounded pool of slabs that are recycled.

Fresh memory costs a worker more than all of its Python (page faults), so frames go into slabs that were there before. A
slab is cut into regions from front to back; it is used again, oldest first, when nobody holds a view of any of them.
That needs no bookkeeping by the holders: a region is a view with one root of its own, the root holds the slab, and
CPython's reference count of the slab tells when the last root is gone. Slabs are anonymous maps, which begin at a page,
in large pages where the kernel has them. The pool knows nothing of frames, caches or sockets.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from contextlib import suppress

# What a disk wants of memory that it writes from.
PAGE_BYTES = 4096
# An idle oversized piece is taken for a smaller frame only if it is not wasted on it.
_LARGE_WASTE_FACTOR = 4


def _nothing_to_evict(_byte_count: int) -> int:
    return 0


class SlabPool:
    """Hands out regions of at most `max_bytes` of memory in all.

    `evict(byte_count)` is called when all of it is held: it should let go of about that many bytes, oldest first, and
    return how many it gave up (0: there is nothing left to give).
    """

    def __init__(self, slab_bytes: int, max_bytes: int, evict: Callable[[int], int] = _nothing_to_evict) -> None:
        if not 0 < slab_bytes <= max_bytes:
            raise ValueError(f"a pool of {max_bytes} bytes can't be cut into slabs of {slab_bytes}")
        self.slab_bytes = slab_bytes
        self.max_bytes = max_bytes
        self.evict = evict
        self.allocated_bytes = 0
        self._current: mmap.mmap | None = None
        self._position = 0
        # Slabs that are full, oldest first; and pieces for frames larger than a slab. Some hundred entries at most.
        self._used: list[mmap.mmap] = []
        self._large: list[mmap.mmap] = []
        self._idle_count = _reference_count_when_idle()

    def take(self, length: int, lead: int = 0) -> memoryview | None:
        """A writable region of `length` bytes, its content undefined; None while all memory is held. Where there is
        room for that, its byte `lead` lies at the beginning of a page.

        Its memory is not handed out again while the region, or a view made from it, is alive.
        """
        shift = -lead % PAGE_BYTES
        if shift + length > self.slab_bytes:
            return self._take_large(length, shift)
        start = self._position + shift
        if self._current is None or start + length > self.slab_bytes:
            if not self._next_slab():
                return None
            start = shift
        assert self._current is not None
        self._position = -(-(start + length) // PAGE_BYTES) * PAGE_BYTES
        return memoryview(self._current)[start : start + length]

    def _next_slab(self) -> bool:
        if self._current is not None:
            self._used.append(self._current)
            self._current = None
        slab = self._pop_idle_slab()
        if slab is None and self._make_room(self.slab_bytes):
            slab = self._allocate(self.slab_bytes)
        while slab is None and self.evict(self.slab_bytes) > 0:
            slab = self._pop_idle_slab()
            if slab is None and self._make_room(self.slab_bytes):
                slab = self._allocate(self.slab_bytes)
        self._current = slab
        self._position = 0
        return slab is not None

    def _take_large(self, length: int, shift: int) -> memoryview | None:
        """Memory of its own for a frame larger than a slab, in whole slabs' worth so that it can serve another."""
        if shift + length > self.max_bytes:
            shift = 0
        region = self._take_piece(shift + length)
        return None if region is None else region[shift:]

    def _take_piece(self, length: int) -> memoryview | None:
        size = -(-length // self.slab_bytes) * self.slab_bytes
        if size > self.max_bytes:
            size = length
        if size > self.max_bytes:
            return None
        while True:
            for index in range(len(self._large)):
                capacity = len(self._large[index])
                if length <= capacity <= size * _LARGE_WASTE_FACTOR and self._is_idle(self._large, index):
                    return memoryview(self._large[index])[:length]
            if self._make_room(size):
                piece = self._allocate(size)
                self._large.append(piece)
                return memoryview(piece)[:length]
            if self.evict(size) <= 0:
                return None

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes fit under the bound, after giving idle memory back where they don't."""
        for pieces in (self._large, self._used):
            index = 0
            while self.allocated_bytes + size > self.max_bytes and index < len(pieces):
                if self._is_idle(pieces, index):
                    self.allocated_bytes -= len(pieces[index])
                    del pieces[index]
                else:
                    index += 1
        return self.allocated_bytes + size <= self.max_bytes

    def _pop_idle_slab(self) -> mmap.mmap | None:
        for index in range(len(self._used)):
            if self._is_idle(self._used, index):
                return self._used.pop(index)
        return None

    def _is_idle(self, pieces: list[mmap.mmap], index: int) -> bool:
        return sys.getrefcount(pieces[index]) == self._idle_count

    def _allocate(self, size: int) -> mmap.mmap:
        self.allocated_bytes += size
        slab = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Its pages are found when they are first written to, some at a time: all at once would hold everybody up.
        with suppress(OSError):
            slab.madvise(mmap.MADV_HUGEPAGE)
        return slab


def _reference_count_when_idle() -> int:
    """What `sys.getrefcount` says of an entry of a list that nothing else refers to."""
    pieces = [mmap.mmap(-1, PAGE_BYTES)]
    return sys.getrefcount(pieces[0])
