"""The recent past in memory: the bytes of durable extents, until newer ones need the room.

Owns nothing but the order: a bounded queue of what was committed, oldest first. Evicting clears the extents' views; the
memory behind them is free again when no response in progress refers to it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from kafscale.storage.extents import Extent


class TailCache:
    """At most `max_bytes` of extents' bytes, first in, first out."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._queue: deque[list[Extent]] = deque()

    def add(self, extents: list[Extent], size: int) -> None:
        """Keep the views of one flush's extents, `size` bytes in all."""
        self._queue.append(extents)
        self.bytes += size
        if self.bytes > self.max_bytes:
            self.evict(self.bytes - self.max_bytes)

    def evict(self, wanted: int) -> int:
        """Give up at least `wanted` bytes, oldest first; returns how many. 0: there is nothing left."""
        before = self.bytes
        while before - self.bytes < wanted and self._queue:
            for extent in self._queue.popleft():
                self._let_go(extent)
        return before - self.bytes

    def replace(self, old: Iterable[Extent], new: list[Extent]) -> None:
        """The same bytes lie in other extents now: let go of `old`, and keep what `new` holds in memory.

        What was rewritten counts as new, so it outlives what was flushed just before; the bound holds all the same.
        """
        for extent in old:
            self._let_go(extent)
        held = [extent for extent in new if extent.views is not None]
        if held:
            self.add(held, sum(extent.length for extent in held))

    def _let_go(self, extent: Extent) -> None:
        if extent.views is not None:
            extent.views = None
            self.bytes -= extent.length
