"""What was read back from the store and may be wanted (again): a bounded cache that knows what nobody has wanted yet.

Owns the bytes of extents by place, and the order in which they go: first what its readers have left behind (they have
gone on to later extents), oldest first, then the least lately used. What is read ahead counts from the moment it is
asked for until somebody wants it; `room_ahead` says how much more may be asked for, so that reading ahead for many
readers never drives out what others are about to read. What nobody came for within a while is given up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

Place = tuple[str, int]

# Of the whole, how much may be bytes that nobody has wanted yet.
AHEAD_SHARE = 0.5
# Whoever read ahead and did not come back within this time will not.
UNWANTED_SECONDS = 20.0


class ReadCache:
    """At most `limit()` bytes, but for one extent that is larger by itself."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self.bytes = 0
        self._limit = limit
        # In the order of their last use; those that were left behind, in the order in which they were.
        self._held: OrderedDict[Place, memoryview] = OrderedDict()
        self._left: OrderedDict[Place, memoryview] = OrderedDict()
        # Asked for ahead, there already or not: when, and how many bytes.
        self._ahead: OrderedDict[Place, tuple[float, int]] = OrderedDict()
        self._ahead_bytes = 0

    def __contains__(self, place: Place) -> bool:
        return place in self._held or place in self._left

    def __len__(self) -> int:
        return len(self._held) + len(self._left)

    @property
    def limit(self) -> int:
        return self._limit()

    def get(self, place: Place) -> memoryview | None:
        """The bytes, wanted now."""
        piece = self._held.get(place)
        if piece is None:
            piece = self._left.pop(place, None)
            if piece is None:
                return None
            self._held[place] = piece
        self._held.move_to_end(place)
        self.wanted(place)
        return piece

    def put(self, place: Place, piece: memoryview) -> None:
        if place in self:
            return
        self._held[place] = piece
        self.bytes += len(piece)
        self.trim()

    def leave(self, place: Place) -> None:
        """A reader has gone on from there."""
        piece = self._held.pop(place, None)
        if piece is not None:
            self._left[place] = piece

    def trim(self) -> None:
        """Keep to the limit, which may have fallen."""
        limit = self._limit()
        while self.bytes > limit and len(self) > 1:
            place, piece = (self._left or self._held).popitem(last=False)
            self.bytes -= len(piece)
            self.wanted(place)

    # Reading ahead

    def room_ahead(self, now: float) -> int:
        """How many more bytes may be asked for that nobody wants yet."""
        while self._ahead:
            place, (asked_at, _) = next(iter(self._ahead.items()))
            if now - asked_at < UNWANTED_SECONDS:
                break
            self.wanted(place)
            self.leave(place)
        return int(self._limit() * AHEAD_SHARE) - self._ahead_bytes

    def ask_ahead(self, place: Place, length: int, now: float) -> None:
        self._ahead[place] = (now, length)
        self._ahead_bytes += length

    def wanted(self, place: Place) -> None:
        """It counts as read ahead no more: somebody wants it, or it will not come."""
        asked = self._ahead.pop(place, None)
        if asked is not None:
            self._ahead_bytes -= asked[1]
