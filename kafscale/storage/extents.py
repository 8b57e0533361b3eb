"""Extents: runs of one partition's record batches in one object, and cutting what a fetch wants out of them. Pure.

An extent holds whole batches with dense offsets. While the bytes are still in memory it holds views of them, in order;
a view never cuts a batch in two.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence

import msgspec
from crc32c import crc32c

from kafscale.errors import Corrupt
from kafscale.storage.store import Buffer

_BATCH_START = struct.Struct(">qi")  # base offset, length of what follows
_LAST_OFFSET_DELTA = struct.Struct(">i")
_BATCH_OVERHEAD = 12
# From this size on an extent in a data object reads about as well as one in a segment: the GET it takes weighs little
# beside its bytes. Compaction leaves it where it is. What is smaller is to be compacted, and is checked as one then.
LARGE_EXTENT_BYTES = 256 << 10
_LAST_OFFSET_DELTA_AT = 23


class Extent(msgspec.Struct, gc=False):
    """One partition's batches in one object: `length` bytes at `position` of `key`, offsets `base_offset` to
    `last_offset`, both included.

    What was small when it was written also knows how many batches it holds, and the CRC32C of all its bytes then, so
    that it can be checked as one while it is in memory (`batches` is 0 where neither is known).
    """

    base_offset: int
    last_offset: int
    max_timestamp: int
    key: str
    position: int
    length: int
    views: list[Buffer] | None = None
    batches: int = 0
    checksum: int = 0


def checksum_of(views: Sequence[Buffer]) -> int:
    """The CRC32C of the views' bytes, one after the other."""
    value = 0
    for view in views:
        value = crc32c(view, value)
    return value


def extent_at(extents: Sequence[Extent], offset: int) -> int:
    """Index of the extent that holds `offset`, or of the first one after it (len(extents) past the end)."""
    index = bisect_right(extents, offset, key=_base_offset) - 1
    if index >= 0 and extents[index].last_offset >= offset:
        return index
    return index + 1


def _base_offset(extent: Extent) -> int:
    return extent.base_offset


def cut(views: Sequence[Buffer], offset: int, max_bytes: int, at_least_one: bool) -> tuple[list[Buffer], int]:
    """Whole batches from the one that holds `offset` on, at most `max_bytes` of them (but the first in any case where
    `at_least_one`). Returns the pieces and their length."""
    pieces: list[Buffer] = []
    total = 0
    started = False
    for view in views:
        position, end = 0, len(view)
        start = -1
        while position < end:
            base_offset, rest = _BATCH_START.unpack_from(view, position)
            length = rest + _BATCH_OVERHEAD
            if length <= _BATCH_OVERHEAD or position + length > end:
                raise Corrupt(f"batch at offset {base_offset} claims {length} bytes, {end - position} are there")
            if not started:
                (delta,) = _LAST_OFFSET_DELTA.unpack_from(view, position + _LAST_OFFSET_DELTA_AT)
                if base_offset + delta < offset:
                    position += length
                    continue
                started = True
            if total + length > max_bytes and (total or not at_least_one):
                if start >= 0:
                    pieces.append(view[start:position])
                return pieces, total
            if start < 0:
                start = position
            total += length
            position += length
        if start >= 0:
            pieces.append(view if start == 0 else view[start:])
    return pieces, total
