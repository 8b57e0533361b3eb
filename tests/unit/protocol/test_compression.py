"""Goal: every codec's framings are read whole, never past the bound, and their size is known without reading them."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys

import cramjam
import lz4.frame
import pytest
import zstandard
from aiokafka import codec as aiokafka_codec
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import Invalid
from kafscale.protocol import compression
from kafscale.protocol.compression import check_bounded, claimed_size, compress, decompress
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.protocol.batch_samples import ZSTD_FRAME_HEADER, zstd_block

CODECS = range(5)
BOUND = 1 << 24
# Random data, repetitive data, and data of one byte, from nothing to several chunks.
_data = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=50), st.integers(0, 30_000)),
)


def error_of(codec: int, payload: bytes, bound: int = BOUND) -> int:
    with pytest.raises(Invalid) as caught:
        decompress(codec, payload, bound)
    return caught.value.code


def framings(data: bytes) -> list[tuple[str, int, bytes]]:
    """`data` as other programs may frame it: name, codec, payload."""
    half, rest = data[: len(data) // 2], data[len(data) // 2 :]
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    stream = zstandard.ZstdCompressor().compressobj()
    flushed = stream.compress(half) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + stream.compress(rest)
    return [
        ("gzip members", compression.GZIP, gzip.compress(half) + gzip.compress(rest)),
        ("gzip stored", compression.GZIP, gzip.compress(data, compresslevel=0)),
        ("snappy bare", compression.SNAPPY, bytes(cramjam.snappy.compress_raw(data))),
        ("snappy by aiokafka", compression.SNAPPY, aiokafka_codec.snappy_encode(data)),
        ("snappy streams", compression.SNAPPY, compress(2, half) + compress(2, rest)),
        ("lz4 sized", compression.LZ4, lz4.frame.compress(data, store_size=True)),
        ("lz4 linked, checked", compression.LZ4, lz4.frame.compress(data, content_checksum=True, block_checksum=True)),
        ("lz4 frames", compression.LZ4, lz4.frame.compress(half) + skippable + compress(3, rest)),
        ("lz4 of 4 MiB blocks", compression.LZ4, lz4.frame.compress(data, block_size=7, store_size=False)),
        ("zstd sized", compression.ZSTD, zstandard.ZstdCompressor(write_checksum=True).compress(data)),
        ("zstd unsized", compression.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(data)),
        ("zstd frames", compression.ZSTD, compress(4, half) + skippable + compress(4, rest)),
        ("zstd flushed", compression.ZSTD, flushed + stream.flush()),
        ("zstd level 19", compression.ZSTD, zstandard.ZstdCompressor(level=19).compress(data)),
    ]


@given(_data, st.sampled_from(CODECS))
def test_what_is_compressed_comes_back(data: bytes, codec: int) -> None:
    """Goal: a round trip at the exact bound, and a refusal one byte below it."""
    payload = compress(codec, data)
    assert decompress(codec, memoryview(payload), len(data)) == data
    if data:
        assert error_of(codec, payload, len(data) - 1) == ErrorCode.MESSAGE_TOO_LARGE


@given(_data)
def test_every_framing_is_read_and_sized(data: bytes) -> None:
    """Goal: what other programs send is read whole; the claimed size is never less, nor over a block more per piece."""
    for name, codec, payload in framings(data):
        assert decompress(codec, payload, len(data)) == data, name
        claimed = claimed_size(codec, payload)
        if codec != compression.GZIP:  # whose trailer is all there is to go by
            assert claimed >= len(data), name
            assert claimed <= len(data) + 3 * (4 << 20), name
        check_bounded(codec, memoryview(payload), len(data))
        if data and codec == compression.SNAPPY:
            with pytest.raises(Invalid):
                check_bounded(codec, memoryview(payload), len(data) - 1)


@given(st.binary(min_size=1, max_size=2000), st.sampled_from([1, 3, 4]), st.integers(1, 200))
def test_independent_decoders_read_what_we_compress(part: bytes, codec: int, times: int) -> None:
    """Goal: clients read our batches: aiokafka's codecs on our payloads, ours on theirs."""
    names = {1: "gzip", 3: "lz4", 4: "zstd"}
    data = part * times
    assert getattr(aiokafka_codec, names[codec] + "_decode")(compress(codec, data)) == data
    assert decompress(codec, getattr(aiokafka_codec, names[codec] + "_encode")(data), len(data)) == data
    assert aiokafka_codec.snappy_decode(compress(2, data)) == data


def test_lz4_blocks_are_independent() -> None:
    """Goal: Java's reader knows no linked blocks (flag bit 5 must be set)."""
    assert compress(3, bytes(300_000))[4] & 0x20


def test_a_payload_cut_short_at_any_byte_is_damaged() -> None:
    """Goal: every framing tells its end, so that no record is lost silently."""
    data = b"".join(struct.pack(">I", number * 2654435761 % 2**32) + b"abc" for number in range(60))
    for name, codec, payload in framings(data):
        whole = {len(payload)}
        for length in range(len(payload)):
            try:
                found = decompress(codec, payload[:length], BOUND)
            except Invalid as error:
                assert error.code == ErrorCode.INVALID_RECORD, name
            else:
                whole.add(length)
                assert data.startswith(found), name
        # Where a member, frame or chunk ends, so may the payload.
        assert len(whole) <= 5, name


@given(st.sampled_from(CODECS), st.binary(max_size=60), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"\x82SNAPPY\x00",
       b"\x04\x22\x4d\x18\x60\x40\x82", b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd", b"\x53\x2a\x4d\x18"]))  # fmt: skip
def test_garbage_is_refused_and_nothing_worse(codec: int, tail: bytes, head: bytes) -> None:
    """Goal: bytes of any kind behind any magic end in `Invalid` or in data within the bound."""
    for look in (lambda: decompress(codec, head + tail, 1000), lambda: claimed_size(codec, head + tail)):
        try:
            look()
        except Invalid:
            pass


def test_unknown_codecs_are_named() -> None:
    """Goal: 5 to 7 are no codecs."""
    for codec in (5, 6, 7):
        assert error_of(codec, b"") == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
        with pytest.raises(Invalid):
            compress(codec, b"")
        with pytest.raises(Invalid):
            claimed_size(codec, b"")


def test_small_blocks_that_might_be_large_are_measured_not_guessed() -> None:
    """Goal: a stream flushed after each record is no bomb, although its blocks could hold 2.5 GB."""
    stream = zstandard.ZstdCompressor().compressobj()
    parts = [stream.compress(b"%d" % n) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for n in range(20_000)]
    payload = b"".join(parts) + stream.flush()
    assert claimed_size(4, payload) >= 88_890
    check_bounded(4, memoryview(payload), 1 << 20)
    with pytest.raises(Invalid):
        check_bounded(4, memoryview(payload), 80_000)


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        (4, ZSTD_FRAME_HEADER + zstd_block(0, 0, 0) * 300_000 + zstd_block(1, 0, 0)),
        (4, (ZSTD_FRAME_HEADER + zstd_block(1, 0, 0)) * 110_000),
        (4, struct.pack("<II", 0x184D2A50, 0) * 130_000),
        (3, struct.pack("<II", 0x184D2A50, 0) * 130_000),
        (3, b"\x04\x22\x4d\x18\x60\x40\x82" + b"\x01\x00\x00\x80x" * 200_000 + bytes(4)),
        (2, b"\x82SNAPPY\x00" + bytes(8) + b"\x00\x00\x00\x02\x00\x00" * 170_000),
    ],
)
def test_the_walk_over_the_headers_is_short(codec: int, payload: bytes) -> None:
    """Goal: a megabyte of empty pieces is refused after 65,536 of them."""
    with pytest.raises(Invalid) as caught:
        check_bounded(codec, memoryview(payload), 1 << 20)
    assert caught.value.code == ErrorCode.MESSAGE_TOO_LARGE


def test_a_frame_that_states_a_huge_size_is_refused_unopened() -> None:
    """Goal: readers that allocate what a frame states are kept from it."""
    stated = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 7 << 3, 1 << 35) + zstd_block(1, 0, 1) + b"x"
    lz4_stated = struct.pack("<IBBQB", 0x184D2204, 0x68, 0x40, 1 << 35, 0) + b"\x01\x00\x00\x80x" + bytes(4)
    for codec, payload in ((4, stated), (3, lz4_stated), (2, b"\xff\xff\xff\xff\x0f" + b"x" * 50)):
        with pytest.raises(Invalid) as caught:
            check_bounded(codec, memoryview(payload), 1000)
        assert caught.value.code == ErrorCode.MESSAGE_TOO_LARGE


def test_a_frame_that_states_its_size_bounds_its_blocks() -> None:
    """Goal: many small frames of known size are known to be small."""
    data = b"".join(b"%d, " % number for number in range(300))
    payload = zstandard.ZstdCompressor().compress(data)
    assert claimed_size(4, payload * 1000) == len(data) * 1000


def test_a_window_beyond_the_limit_is_refused() -> None:
    """Goal: a few bytes can't have the decoder allocate gigabytes."""
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 21 << 3) + zstd_block(1, 1, 10) + b"x"  # a window of 2 GiB
    assert error_of(4, frame) == ErrorCode.INVALID_RECORD


_BOMBS_IN_A_PROCESS = """
import resource
from kafscale.errors import Invalid
from kafscale.protocol.compression import check_bounded, decompress
from tests.unit.protocol import batch_samples as samples

bombs = [(4, samples.zstd_streamed(512)), (1, samples.gzip_bomb()), (1, samples.gzip_bomb(5_000_000)),
         (3, samples.lz4_bomb()), (2, samples.snappy_bomb()), (4, samples.zstd_bomb())]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for codec, payload in bombs:
    for function in check_bounded, decompress:
        try:
            function(codec, memoryview(payload), 16 << 20)
        except Invalid as error:
            refused += error.code == 10
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_cost_no_more_memory_than_the_bound() -> None:
    """Goal: by the process's own high-water mark of memory, so that C allocations count too.

    One of the twelve calls is let through: gzip with a forged but plausible trailer passes the check on produce.
    """
    run = subprocess.run(
        [sys.executable, "-c", _BOMBS_IN_A_PROCESS],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.getcwd(),
        timeout=60,
    )
    refused, grown_kib = map(int, run.stdout.split())
    assert refused == 11
    assert grown_kib < 40 * 1024
