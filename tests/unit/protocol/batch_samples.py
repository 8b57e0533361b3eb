"""Record batches for tests: random ones, ones with a field changed behind a valid CRC, and compression bombs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import crc32c
import lz4.frame
import zstandard
from hypothesis import strategies as st

from kafscale.protocol import batches

NOW_MS = 1_760_000_000_000
ZSTD_FRAME_HEADER = struct.pack("<IBB", 0xFD2FB528, 0, 7 << 3)  # no content size, a window of 128 KiB

_contents = st.none() | st.binary(max_size=40)
_headers = st.lists(st.tuples(st.text(max_size=8), _contents), max_size=3)
_record = st.tuples(_contents, _contents, _headers, st.integers(-5000, 5000))


@st.composite
def sample_records(draw: st.DrawFn, max_size: int = 20) -> list[tuple]:
    """Lists of (key, value, headers, timestamp); never empty."""
    return [
        (key, value, headers, NOW_MS + delta)
        for key, value, headers, delta in draw(st.lists(_record, min_size=1, max_size=max_size))
    ]


def built(records: list[tuple], **options: object) -> bytearray:
    """The batch of `sample_records`."""
    return batches.build_batch(
        [(key, value) for key, value, _, _ in records],
        headers=[headers for _, _, headers, _ in records],
        timestamps=[timestamp for *_, timestamp in records],
        **options,
    )


def small(**options: object) -> bytearray:
    """A batch of two short records at NOW_MS."""
    return batches.build_batch([(b"k", b"v" * 10), (None, b"w")], timestamp_ms=NOW_MS, **options)


def recrc(batch: bytearray) -> bytearray:
    """The same batch with the CRC and the length that it should have."""
    struct.pack_into(">i", batch, 8, len(batch) - 12)
    struct.pack_into(">I", batch, 17, crc32c.crc32c(bytes(batch[21:])))
    return batch


def patched(batch: bytearray, position: int, layout: str, value: int) -> bytearray:
    """A copy with one field of the header changed and the CRC made right again."""
    copy = bytearray(batch)
    struct.pack_into(">" + layout, copy, position, value)
    return recrc(copy)


def with_payload(codec: int, payload: bytes, count: int = 1) -> bytearray:
    """A batch with a good header and CRC around whatever records."""
    batch = small(attributes=0)[: batches.HEADER_BYTES] + payload
    struct.pack_into(">hi", batch, 21, codec, count - 1)
    struct.pack_into(">i", batch, 57, count)
    return recrc(batch)


def zstd_block(last: int, kind: int, size: int) -> bytes:
    return struct.pack("<I", last | kind << 1 | size << 3)[:3]


def zstd_bomb() -> bytes:
    """1 MiB that grows to 32 GiB: one frame of 262,144 RLE blocks, each 128 KiB from four bytes."""
    block = zstd_block(0, 1, 131072) + b"\x00"
    return ZSTD_FRAME_HEADER + block * 262143 + zstd_block(1, 1, 131072) + b"\x00"


def gzip_bomb(stated: int | None = None) -> bytes:
    """1 MiB that grows to 1 GiB of zeros, with a trailer that says so or says `stated`."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # A full flush makes the compressed bytes of these 16 MiB good for any place in the stream.
    chunk = compressor.compress(bytes(16 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    size = (1 << 30) if stated is None else stated
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + chunk * 64 + b"\x03\x00" + struct.pack("<II", 0, size)


def lz4_bomb() -> bytes:
    """1 MiB that grows to 256 MiB of zeros, in blocks of 4 MiB."""
    compressor = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB, block_linked=False)
    zeros = bytes(4 << 20)
    return compressor.begin() + b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()


def zstd_streamed(mebibytes: int) -> bytes:
    """Zeros as a compressor streams them: compressed blocks, no content size."""
    return b"".join(_zstd_stream(mebibytes))


def _zstd_stream(mebibytes: int) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor().compressobj()
    pattern = bytes(range(64)) * 16384
    for _ in range(mebibytes):
        yield compressor.compress(pattern)
    yield compressor.flush()


def snappy_bomb() -> bytes:
    """A kilobyte that claims 4 GiB less one byte: a reader that believes it has allocated them."""
    return b"\xff\xff\xff\xff\x0f" + bytes(1000)
