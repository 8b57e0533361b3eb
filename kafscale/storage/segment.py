"""KAFS segments and their indexes: one partition's batches in one object, in the format of KafScale v1.

Owns the layout of both files, so that KafScale's readers can read ours and we theirs. It must not know keys, stores or
manifests. Big-endian throughout.

    segment   "KAFS", version u16 = 1, flags u16 = 0, base offset i64, record count i32, created i64 (ms), reserved u32
              record batches as served to consumers
              CRC32C of the batches u32, last offset i64, "END!"
    index     "IDX\\0", version u16 = 1, entry count i32, interval i32 (records between entries), reserved u16
              per entry: offset of a batch's first record i64, position of the batch in the segment file i32

The CRC covers the batches only: of the header nothing vouches for the time of creation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from kafscale.errors import Corrupt
from kafscale.protocol.batches import iterate
from kafscale.storage.store import Buffer

SEGMENT_HEADER_BYTES: Final = 32
SEGMENT_FOOTER_BYTES: Final = 16
INDEX_HEADER_BYTES: Final = 16
INDEX_ENTRY_BYTES: Final = 12
# Positions in the index are signed and of 32 bits, and so is the count in the header.
MAX_SEGMENT_BYTES: Final = (1 << 31) - 1
MAX_SEGMENT_RECORDS: Final = (1 << 31) - 1

_SEGMENT_MAGIC: Final = b"KAFS"
_FOOTER_MAGIC: Final = b"END!"
_INDEX_MAGIC: Final = b"IDX\x00"
_VERSION: Final = 1
_SEGMENT_HEADER: Final = Struct(">4sHHqiqI")
_SEGMENT_FOOTER: Final = Struct(">Iq4s")
_INDEX_HEADER: Final = Struct(">4sHiiH")
_INDEX_ENTRY: Final = Struct(">qi")


class Segment(NamedTuple):
    """What a verified segment says, and its batches. Offsets are absolute, times in ms since the epoch."""

    base_offset: int
    last_offset: int
    record_count: int
    created_ms: int
    body: memoryview


class SegmentIndex(NamedTuple):
    """An entry every `interval` records or so: the offset of a batch's first record, and where in the file it is."""

    interval: int
    offsets: list[int]
    positions: list[int]

    def position_of(self, offset: int) -> int:
        """Where in the segment file to begin reading to reach `offset`: the last indexed batch at or before it."""
        slot = bisect_right(self.offsets, offset) - 1
        return self.positions[slot] if slot >= 0 else SEGMENT_HEADER_BYTES


def encode_segment(
    base_offset: int, batches: Sequence[Buffer], created_ms: int, index_interval: int
) -> tuple[list[Buffer], bytes]:
    """The parts of a segment file, in order and uncopied, and its whole index.

    `batches` are buffers of one or more whole batches each, stamped, in ascending order of offsets, the first at
    `base_offset`. An entry of the index is due at the first batch, and at the first batch that begins `index_interval`
    or more records after the last entry. Raises `Corrupt` if the batches are not as said: better no object than a
    wrong one; `ValueError` if it would be too large, which the caller must see to.
    """
    interval = max(index_interval, 1)
    entries: list[tuple[int, int]] = []
    position = SEGMENT_HEADER_BYTES
    record_count = since_entry = crc = 0
    next_offset = base_offset
    for buffer in batches:
        for at, header in iterate(buffer):
            if header.base_offset < next_offset or (not entries and header.base_offset != base_offset):
                raise Corrupt(f"batch at offset {header.base_offset} in a segment of {base_offset} due {next_offset}")
            if not entries or since_entry >= interval:
                entries.append((header.base_offset, position + at))
                since_entry = 0
            since_entry += header.record_count
            record_count += header.record_count
            next_offset = header.last_offset + 1
        crc = crc32c(buffer, crc)
        position += len(buffer)
    if not entries:
        raise Corrupt(f"segment of {base_offset} without a batch")
    if position + SEGMENT_FOOTER_BYTES > MAX_SEGMENT_BYTES or record_count > MAX_SEGMENT_RECORDS:
        raise ValueError(f"segment of {base_offset} is too large: {position} bytes, {record_count} records")
    head, foot = frame_segment(base_offset, next_offset - 1, record_count, created_ms, crc)
    return [head, *batches, foot], encode_index(interval, entries)


def frame_segment(
    base_offset: int, last_offset: int, record_count: int, created_ms: int, body_crc: int
) -> tuple[bytes, bytes]:
    """Header and footer of a segment whose batches the caller has checked; `body_crc` is the CRC32C of all of them."""
    return (
        _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, _VERSION, 0, base_offset, record_count, created_ms, 0),
        _SEGMENT_FOOTER.pack(body_crc, last_offset, _FOOTER_MAGIC),
    )


def encode_index(interval: int, entries: Sequence[tuple[int, int]]) -> bytes:
    """A whole index: per entry the first offset of a batch, and the batch's position in the segment file."""
    index = bytearray(_INDEX_HEADER.pack(_INDEX_MAGIC, _VERSION, len(entries), interval, 0))
    for entry in entries:
        index += _INDEX_ENTRY.pack(*entry)
    return bytes(index)


def read_segment(data: Buffer) -> Segment:
    """Verifies a whole segment file: frame, CRC, every batch's frame, offsets and counts. Raises `Corrupt`."""
    view = memoryview(data)
    if len(view) < SEGMENT_HEADER_BYTES + SEGMENT_FOOTER_BYTES:
        raise Corrupt(f"segment of {len(view)} bytes is shorter than its header and footer")
    magic, version, flags, base_offset, record_count, created_ms, reserved = _SEGMENT_HEADER.unpack_from(view)
    if magic != _SEGMENT_MAGIC or version != _VERSION or flags or reserved:
        raise Corrupt(f"segment header {magic!r}, version {version}, flags {flags}, reserved {reserved}")
    crc, last_offset, end_magic = _SEGMENT_FOOTER.unpack_from(view, len(view) - SEGMENT_FOOTER_BYTES)
    if end_magic != _FOOTER_MAGIC:
        raise Corrupt(f"segment of {base_offset} ends in {end_magic!r}")
    body = view[SEGMENT_HEADER_BYTES:-SEGMENT_FOOTER_BYTES]
    if crc32c(body) != crc:
        raise Corrupt(f"segment of {base_offset} does not match its CRC")
    found_count, next_offset = 0, base_offset
    for position, header in iterate(body):
        if header.base_offset < next_offset or (position == 0 and header.base_offset != base_offset):
            raise Corrupt(f"segment of {base_offset} has a batch at offset {header.base_offset}, {next_offset} was due")
        found_count += header.record_count
        next_offset = header.last_offset + 1
    if found_count != record_count or next_offset - 1 != last_offset:
        raise Corrupt(
            f"segment of {base_offset} holds {found_count} records to offset {next_offset - 1}, "
            f"and claims {record_count} to {last_offset}"
        )
    return Segment(base_offset, last_offset, record_count, created_ms, body)


def read_index(data: Buffer) -> SegmentIndex:
    """Verifies and decodes an index file. Raises `Corrupt`."""
    if len(data) < INDEX_HEADER_BYTES:
        raise Corrupt(f"index of {len(data)} bytes is shorter than its header")
    magic, version, count, interval, _ = _INDEX_HEADER.unpack_from(data)
    if magic != _INDEX_MAGIC or version != _VERSION:
        raise Corrupt(f"index header {magic!r}, version {version}")
    if count < 0 or len(data) != INDEX_HEADER_BYTES + count * INDEX_ENTRY_BYTES:
        raise Corrupt(f"index of {len(data)} bytes claims {count} entries")
    entries = list(_INDEX_ENTRY.iter_unpack(memoryview(data)[INDEX_HEADER_BYTES:]))
    offsets = [offset for offset, _ in entries]
    positions = [position for _, position in entries]
    # The first entry is the first batch, and both columns rise from there.
    if (positions and positions[0] != SEGMENT_HEADER_BYTES) or not (_rises(offsets) and _rises(positions)):
        raise Corrupt(f"index entries do not rise from the first batch: {entries[:3]}")
    return SegmentIndex(interval, offsets, positions)


def _rises(column: list[int]) -> bool:
    return all(before < after for before, after in pairwise(column))
