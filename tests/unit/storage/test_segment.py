"""Goal: segments are KafScale v1's to the byte, and whatever is wrong with one is found."""

from __future__ import annotations

import struct
from itertools import pairwise

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import Corrupt
from kafscale.protocol.batches import build_batch, iterate
from kafscale.storage.segment import SegmentIndex, encode_segment, read_index, read_segment

CREATED_MS = 1_760_000_000_123


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, list[bytearray]]:
    """A base offset and batches from there on, some with gaps of offsets between them, as compaction leaves."""
    base_offset = offset = draw(st.integers(0, 1 << 40))
    batches = []
    for count, gap in draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=12)):
        batches.append(build_batch([(b"k", b"v" * count)] * count, offset, 4, CREATED_MS))
        offset += count + gap
    return base_offset, batches


def joined(base_offset: int, batches: list[bytearray], interval: int = 1) -> tuple[bytes, bytes]:
    parts, index = encode_segment(base_offset, batches, CREATED_MS, interval)
    return b"".join(parts), index


def sample() -> tuple[bytes, bytes]:
    return joined(10, [build_batch([(b"k", b"v")] * 2, offset, 0, CREATED_MS) for offset in (10, 12, 20)])


@given(runs(), st.integers(1, 12))
def test_a_segment_reads_back(run: tuple[int, list[bytearray]], interval: int) -> None:
    """Goal: a round trip of segment and index; every entry leads to its batch, at least `interval` records apart."""
    base_offset, batches = run
    data, index_data = joined(base_offset, batches, interval)
    segment = read_segment(data)
    headers = [(32 + position, header) for position, header in iterate(segment.body)]
    assert bytes(segment.body) == b"".join(batches)
    assert segment.base_offset == base_offset
    assert segment.last_offset == headers[-1][1].last_offset
    assert segment.record_count == sum(header.record_count for _, header in headers)
    assert segment.created_ms == CREATED_MS
    index = read_index(index_data)
    by_offset = {header.base_offset: position for position, header in headers}
    assert [by_offset[offset] for offset in index.offsets] == index.positions
    assert (index.interval, index.offsets[0]) == (interval, base_offset)
    counts = {header.base_offset: header.record_count for _, header in headers}
    for before, after in pairwise([*index.offsets, 1 << 62]):
        between = [counts[offset] for offset in counts if before <= offset < after]
        assert sum(between[:-1]) < interval  # no entry is late
        assert after == 1 << 62 or sum(between) >= interval  # nor early


@given(runs(), st.integers(1, 12), st.data())
def test_a_lookup_never_starts_behind_the_offset(
    run: tuple[int, list[bytearray]], interval: int, data: st.DataObject
) -> None:
    """Goal: reading on from the position found always meets the batch with the offset, if there is one."""
    segment_data, index_data = joined(*run, interval)
    segment = read_segment(segment_data)
    offset = data.draw(st.integers(segment.base_offset, segment.last_offset))
    position = read_index(index_data).position_of(offset)
    first_with_it = next(at for at, header in iterate(segment.body) if header.last_offset >= offset)
    assert position <= 32 + first_with_it
    next(iterate(segment.body[position - 32 :]))  # a batch begins there


def test_a_lookup_before_the_first_entry_starts_at_the_first_batch() -> None:
    """Goal: an offset below the segment, or an index without entries, leads to the beginning."""
    assert read_index(sample()[1]).position_of(3) == 32
    assert SegmentIndex(1, [], []).position_of(3) == 32


def test_the_bytes_are_those_of_the_format() -> None:
    """Goal: each field where the format has it, written down apart from the code."""
    batches = [build_batch([(b"k", b"v")] * 2, offset, 0, CREATED_MS) for offset in (10, 12, 20)]
    data, index = joined(10, batches, 4)
    body = b"".join(batches)
    assert data[:32] == (
        b"KAFS"
        + b"\x00\x01"
        + b"\x00\x00"
        + bytes(7)
        + b"\x0a"
        + b"\x00\x00\x00\x06"
        + CREATED_MS.to_bytes(8, "big")
        + bytes(4)
    )
    assert data[32:-16] == body
    assert data[-16:] == crc32c.crc32c(body).to_bytes(4, "big") + bytes(7) + b"\x15" + b"END!"
    # Four records after the first entry the third batch begins.
    third = (32 + len(batches[0]) + len(batches[1])).to_bytes(4, "big")
    assert index == (
        b"IDX\x00" + b"\x00\x01" + b"\x00\x00\x00\x02" + b"\x00\x00\x00\x04" + b"\x00\x00"
        + bytes(7) + b"\x0a" + b"\x00\x00\x00\x20"
        + bytes(7) + b"\x14" + third
    )  # fmt: skip


def test_buffers_may_hold_several_batches_and_are_not_copied() -> None:
    """Goal: a run of batches goes through as it lies in memory, with the same result as one by one."""
    batches = [build_batch([(b"k", b"v")] * 2, offset, 0, CREATED_MS) for offset in (10, 12, 20)]
    run = memoryview(b"".join(batches))
    parts, index = encode_segment(10, [run], CREATED_MS, 1)
    assert parts[1] is run
    assert (b"".join(parts), index) == joined(10, batches)


def test_every_flipped_bit_is_found_but_in_the_time_of_creation() -> None:
    """Goal: any flip is an error. The format checks all but the creation time."""
    data = bytearray(sample()[0])
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            if 20 <= position < 28:
                assert read_segment(data).created_ms != CREATED_MS
            else:
                with pytest.raises(Corrupt):
                    read_segment(data)
            data[position] ^= 1 << bit
    read_segment(data)


def test_truncation_at_every_byte_is_found() -> None:
    """Goal: no shorter file is a segment or an index, nor a longer one."""
    data, index = sample()
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            read_segment(data[:length])
    for length in range(len(index)):
        with pytest.raises(Corrupt):
            read_index(index[:length])
    for read, whole in ((read_segment, data), (read_index, index)):
        with pytest.raises(Corrupt):
            read(whole + b"\x00")


@pytest.mark.parametrize(("position", "layout", "value"), [(4, ">H", 2), (6, ">H", 1), (8, ">q", 9), (16, ">i", 5)])
def test_a_header_that_disagrees_with_its_batches_is_found(position: int, layout: str, value: int) -> None:
    """Goal: version, flags, base offset and count are checked though no CRC covers them."""
    data = bytearray(sample()[0])
    struct.pack_into(layout, data, position, value)
    with pytest.raises(Corrupt):
        read_segment(data)


@pytest.mark.parametrize(
    ("position", "layout", "value"),
    [
        (0, ">B", 0),
        (5, ">B", 2),
        (6, ">i", -1),
        (6, ">i", 2),
        (6, ">i", 1 << 30),
        (16, ">q", 12),
        (24, ">i", 31),
        (36, ">i", 32),
    ],
)
def test_an_index_that_cannot_be_is_found(position: int, layout: str, value: int) -> None:
    """Goal: an index that would lead astray, or claims more entries than it has, is refused."""
    data = bytearray(sample()[1])
    struct.pack_into(layout, data, position, value)
    with pytest.raises(Corrupt):
        read_index(data)


def test_wrong_batches_make_no_segment() -> None:
    """Goal: what would be a lie in the store is never written: another base, offsets out of order, no batch."""
    first, second = (build_batch([(b"k", b"v")] * 2, offset) for offset in (10, 12))
    for base_offset, batches in (
        (9, [first]),
        (11, [first]),
        (10, [first, first]),
        (12, [second, first]),
        (10, []),
        (10, [b""]),
    ):
        with pytest.raises(Corrupt):
            encode_segment(base_offset, batches, CREATED_MS, 1)
    with pytest.raises(Corrupt):
        encode_segment(10, [first[:-1], second], CREATED_MS, 1)
