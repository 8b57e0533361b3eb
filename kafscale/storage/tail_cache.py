"""The recent past in memory: the bytes of durable extents, until newer ones need the room.

Owns nothing but the order: a bounded queue of what was committed, oldest first. Evicting clears the extents' views; the
memory behind them is free again when no response in progress refers to it any more.
"""

from __future__ import annotations

from collections import deque

from kafscale.storage.extents import Extent


class TailCache:
    """At most `max_bytes` of extents' bytes, first in, first out."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._queue: deque[tuple[list[Extent], int]] = deque()

    def add(self, extents: list[Extent], size: int) -> None:
        """Keep the views of one flush's extents, `size` bytes in all."""
        self._queue.append((extents, size))
        self.bytes += size
        if self.bytes > self.max_bytes:
            self.evict(self.bytes - self.max_bytes)

    def evict(self, wanted: int) -> int:
        """Give up at least `wanted` bytes, oldest first; returns how many. 0: there is nothing left."""
        given = 0
        while given < wanted and self._queue:
            extents, size = self._queue.popleft()
            given += size
            for extent in extents:
                extent.views = None
        self.bytes -= given
        return given
