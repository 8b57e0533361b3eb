"""The four codecs of record batches: compressed, decompressed within a bound, and measured without decompressing.

Owns the framing of gzip, snappy (bare and xerial), LZ4 frames and zstd. It must not know batches or records. Whatever
a payload claims, `decompress` allocates no more than the caller's bound and a chunk.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from struct import Struct
from typing import Final

import cramjam
import lz4.frame
import zstandard

from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode

Buffer = bytes | bytearray | memoryview

NONE: Final = 0
GZIP: Final = 1
SNAPPY: Final = 2
LZ4: Final = 3
ZSTD: Final = 4

# What a batch may grow to, 64 times the default message.max.bytes. Default clients stay far below: librdkafka, aiokafka
# and kafka-python count uncompressed bytes against their 1 MB (16 KB) limits, and a Java client, whose 16 KB batch.size
# counts estimated compressed bytes, would need a ratio of 4096; it splits its batch when told MESSAGE_TOO_LARGE.
MAX_DECOMPRESSED_BYTES: Final = 64 * 1024 * 1024
# A batch of more than 4 MiB, for a topic that takes such, may grow by this factor instead.
MAX_DECOMPRESSED_RATIO: Final = 16

# What one compressed byte can become at most, by codec. DEFLATE: 258 bytes per two one-bit codes. Snappy: 64 bytes per
# three-byte copy. LZ4: 255 per length byte. zstd: an RLE block, 128 KiB in four bytes.
MAX_RATIO: Final = (1, 1032, 22, 255, 32768)

CHUNK_BYTES: Final = 256 * 1024
# A payload in more pieces (frames, blocks, chunks) than this is refused: no producer cuts that fine, and the walk over
# the headers stays within some 20 ms.
MAX_PIECES: Final = 1 << 16
# zstd decoders allocate the window a frame asks for. 128 MiB is what `--ultra -22` asks for and libzstd's own limit.
MAX_ZSTD_WINDOW_BYTES: Final = 1 << 27

_ZSTD_MAGIC: Final = 0xFD2FB528  # RFC 8878, 3.1.1
_LZ4_MAGIC: Final = 0x184D2204
_SKIPPABLE_MAGIC: Final = 0x184D2A50  # to ...5F, the same for zstd and LZ4
_ZSTD_BLOCK_MAX: Final = 128 * 1024
_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16
_XERIAL_CHUNK_BYTES: Final = 32 * 1024
_GZIP_MIN_BYTES: Final = 18
_GZIP_FEED_BYTES: Final = 4096
_LZ4_FEED_BYTES: Final = 64 * 1024
_FAR: Final = 1 << 62

_le32 = Struct("<I").unpack_from
_le64 = Struct("<Q").unpack_from
_be32 = Struct(">i").unpack_from


def decompressed_limit(size: int, least: int = MAX_DECOMPRESSED_BYTES) -> int:
    """What a batch of `size` bytes may grow to, when it is produced and whenever it is opened later."""
    return max(least, size * MAX_DECOMPRESSED_RATIO)


def compress(codec: int, payload: Buffer) -> bytes:
    """`payload` compressed as Java clients do it (snappy in xerial framing). Raises `Invalid` on an unknown codec."""
    if codec == NONE:
        return bytes(payload)
    if codec == GZIP:
        return gzip.compress(payload, mtime=0)
    if codec == SNAPPY:
        return _compress_xerial(payload)
    if codec == LZ4:
        return bytes(lz4.frame.compress(payload, store_size=False, block_linked=False))  # Java reads no linked blocks
    if codec == ZSTD:
        return zstandard.ZstdCompressor().compress(payload)
    raise _unknown(codec)


def decompress(codec: int, payload: Buffer, max_bytes: int) -> bytes:
    """All of `payload`, decompressed. Raises `Invalid`.

    MESSAGE_TOO_LARGE when it is more than `max_bytes`, found before more than that and a chunk are allocated;
    INVALID_RECORD when it is not what the codec says, or stops short; UNSUPPORTED_COMPRESSION_TYPE for no known codec.
    """
    chunks = _chunks(codec, memoryview(payload), max_bytes)
    out = io.BytesIO()  # getvalue hands its bytes over without a copy
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        out.write(chunk)
    return out.getvalue()


def claimed_size(codec: int, payload: Buffer) -> int:
    """What `payload` grows to at most, from the headers of its frames and blocks alone.

    An upper bound for zstd, LZ4 and snappy. For gzip it is the trailer's ISIZE (RFC 1952) where that is plausible,
    which a liar can forge. Raises `Invalid` where the headers make no sense.
    """
    return _sizes(codec, memoryview(payload), _FAR)[1]


def check_bounded(codec: int, payload: memoryview, max_bytes: int) -> None:
    """Refuses a payload that grows past `max_bytes`, without decompressing it unless its headers leave that open.

    They leave it open for an odd few: hundreds of small blocks each of which may hold 128 KiB, or several gzip members.
    These are decompressed a chunk at a time, up to the bound, and thrown away. Raises `Invalid`.
    """
    if codec != SNAPPY and len(payload) * MAX_RATIO[codec] <= max_bytes:
        return  # no need to look; snappy's readers allocate what it claims, so look
    certain, possible = _sizes(codec, payload, max_bytes)
    if certain > max_bytes:
        raise _too_large(max_bytes)
    if possible > max_bytes:
        size = 0
        for chunk in _chunks(codec, payload, max_bytes):
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> Invalid:
    return Invalid(ErrorCode.MESSAGE_TOO_LARGE, f"compressed records grow to more than {max_bytes} bytes")


def _damaged(what: str) -> Invalid:
    # The batch's CRC matched, so the client compressed it so: CORRUPT_MESSAGE would have it try again for ever.
    return Invalid(ErrorCode.INVALID_RECORD, f"compressed records are damaged: {what}")


def _unknown(codec: int) -> Invalid:
    return Invalid(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"compression codec {codec} is unknown")


# Sizes, from headers. A walker yields (certain, possible) for each piece: the least and the most that it grows to. It
# raises IndexError or struct.error where it runs past the end.


def _sizes(codec: int, payload: memoryview, enough: int) -> tuple[int, int]:
    """The least and the most that all of `payload` grows to; may stop looking once the least is above `enough`."""
    if codec not in _WALKERS:
        raise _unknown(codec)
    if not len(payload) and codec:
        raise _damaged("there are none")
    certain = possible = pieces = 0
    try:
        for least, most in _WALKERS[codec](payload):
            certain += least
            possible += most
            pieces += 1
            if certain > enough:
                break
            if pieces > MAX_PIECES:
                raise Invalid(ErrorCode.MESSAGE_TOO_LARGE, f"compressed records in more than {MAX_PIECES} pieces")
    except (IndexError, struct.error):
        raise _damaged("they stop short") from None
    return certain, max(certain, possible)


def _walk_none(payload: memoryview) -> Iterator[tuple[int, int]]:
    yield len(payload), len(payload)


def _walk_gzip(payload: memoryview) -> Iterator[tuple[int, int]]:
    """The trailer's ISIZE, where that can be all there is."""
    size = len(payload)
    if size < _GZIP_MIN_BYTES or payload[0] != 0x1F or payload[1] != 0x8B:
        raise _damaged("no gzip header")
    (stated,) = _le32(payload, size - 4)
    possible = size * MAX_RATIO[GZIP]
    # Incompressible data grows by five bytes in 16 KiB at worst. If less is stated than can have filled the payload
    # there is more than one member, or more than the 4 GiB that ISIZE counts, or a lie; above DEFLATE's ratio, a lie.
    if stated * 1.001 + 1024 < size or stated > possible:
        yield 0, possible
    else:
        yield stated, stated


def _walk_snappy(payload: memoryview) -> Iterator[tuple[int, int]]:
    for block in _snappy_blocks(payload):
        length = _snappy_length(block)
        yield length, length


def _snappy_blocks(payload: memoryview) -> Iterator[memoryview]:
    """The bare blocks of a payload: the chunks of snappy-java's (xerial) stream, or all of it, as librdkafka sends."""
    if not _is_xerial(payload, 0):
        yield payload
        return
    position, end = _XERIAL_HEADER_BYTES, len(payload)
    if end < position:
        raise _damaged("snappy stream stops short")
    while position < end:
        if payload[position] == _XERIAL_MAGIC[0] and _is_xerial(payload, position):  # one stream behind another
            position += _XERIAL_HEADER_BYTES
            continue
        (size,) = _be32(payload, position)
        position += 4
        if not 0 < size <= end - position:
            raise _damaged("snappy chunk stops short")
        yield payload[position : position + size]
        position += size
    if position != end:
        raise _damaged("snappy stream stops short")


def _is_xerial(payload: memoryview, position: int) -> bool:
    return bytes(payload[position : position + len(_XERIAL_MAGIC)]) == _XERIAL_MAGIC


def _snappy_length(block: memoryview) -> int:
    """The length of the decompressed block, a varint at its start: what snappy's readers allocate, true or not."""
    length = shift = 0
    for index in range(5):
        byte = block[index]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    else:
        raise _damaged("snappy length is no varint")
    return length


def _walk_lz4(payload: memoryview) -> Iterator[tuple[int, int]]:
    """LZ4 frame format 1.6: a descriptor, blocks that state their compressed size, an end mark."""
    position, end = 0, len(payload)
    while position < end:
        (magic,) = _le32(payload, position)
        if magic & ~0xF == _SKIPPABLE_MAGIC:
            position += 8 + _le32(payload, position + 4)[0]
            yield 0, 0
            continue
        flags = payload[position + 4]
        block_code = payload[position + 5] >> 4
        if magic != _LZ4_MAGIC or flags >> 6 != 1 or not 4 <= block_code <= 7:
            raise _damaged("no LZ4 frame header")
        block_max = 1 << (2 * block_code + 8)
        position += 6
        stated = 0
        if flags & 0x08:
            (stated,) = _le64(payload, position)
            position += 8
        position += 5 if flags & 0x01 else 1  # dictionary id; checksum of the descriptor
        checksum_bytes = 4 if flags & 0x10 else 0
        while True:
            (size,) = _le32(payload, position)
            position += 4
            if size == 0:
                break
            if size & 0x80000000:
                size &= 0x7FFFFFFF
                stated -= size
                yield size, size
            else:
                yield 0, min(block_max, size * MAX_RATIO[LZ4])
            position += size + checksum_bytes
        if flags & 0x04:
            position += 4
        yield max(stated, 0), 0
    if position != end:
        raise _damaged("they stop short")


def _walk_zstd(payload: memoryview) -> Iterator[tuple[int, int]]:
    """RFC 8878, 3.1: raw and RLE blocks state what they grow to, compressed ones hold 128 KiB or a window at most."""
    position, end = 0, len(payload)
    while position < end:
        (magic,) = _le32(payload, position)
        if magic & ~0xF == _SKIPPABLE_MAGIC:
            position += 8 + _le32(payload, position + 4)[0]
            yield 0, 0
            continue
        if magic != _ZSTD_MAGIC:
            raise _damaged("no zstd frame header")
        descriptor = payload[position + 4]
        position += 5
        block_max = _ZSTD_BLOCK_MAX
        single = descriptor & 0x20
        if not single:
            window = payload[position]
            block_max = min(block_max, (8 + (window & 7)) << (7 + (window >> 3)))
            position += 1
        position += (0, 1, 2, 4)[descriptor & 3]  # dictionary id
        width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        stated = int.from_bytes(payload[position : position + width], "little") + (256 if width == 2 else 0)
        if single:
            block_max = min(block_max, stated)
        position += width
        last = 0
        while not last:
            block = payload[position] | payload[position + 1] << 8 | payload[position + 2] << 16
            last = block & 1
            kind = block >> 1 & 3
            size = block >> 3
            position += 3
            if kind == 2:
                position += size
                yield 0, block_max
            elif kind == 3:
                raise _damaged("zstd block of a reserved kind")
            else:
                position += size if kind == 0 else 1
                stated -= size
                yield size, size
        if descriptor & 0x04:
            position += 4
        yield max(stated, 0), 0
    if position != end:
        raise _damaged("they stop short")


_WALKERS: Final = {NONE: _walk_none, GZIP: _walk_gzip, SNAPPY: _walk_snappy, LZ4: _walk_lz4, ZSTD: _walk_zstd}


# Contents, a bounded chunk at a time. Each function raises `Invalid` where the payload is damaged or stops short.


def _chunks(codec: int, payload: memoryview, max_bytes: int) -> Iterator[Buffer]:
    if codec == NONE:
        return iter((payload,))
    if codec in _WALKERS and not len(payload):
        raise _damaged("there are none")
    if codec == GZIP:
        return _gunzip(payload)
    if codec == SNAPPY:
        return _unsnappy(payload, max_bytes)
    if codec == LZ4:
        return _unlz4(payload)
    if codec == ZSTD:
        return _unzstd(payload)
    raise _unknown(codec)


def _gunzip(payload: memoryview) -> Iterator[bytes]:
    """All members. Fed in small slices: zlib copies what it leaves over at every call."""
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    fresh = True  # nothing of the next member has been seen
    members = 0
    try:
        for position in range(0, len(payload), _GZIP_FEED_BYTES):
            feed: Buffer = payload[position : position + _GZIP_FEED_BYTES]
            while len(feed):
                chunk = decoder.decompress(feed, CHUNK_BYTES)
                fresh = False
                if chunk:
                    yield chunk
                feed = decoder.unconsumed_tail
                if decoder.eof:
                    feed = decoder.unused_data
                    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
                    fresh = True
                    members += 1
                    if members > MAX_PIECES:
                        raise _damaged(f"more than {MAX_PIECES} gzip members")
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if not fresh or not members:
        raise _damaged("they stop short")


def _unsnappy(payload: memoryview, max_bytes: int) -> Iterator[Buffer]:
    """Each block whole: its length is known beforehand, and refused if it is above what the caller takes in all."""
    try:
        for block in _snappy_blocks(payload):
            length = _snappy_length(block)
            if length > max_bytes:
                raise _too_large(max_bytes)
            if length > len(block) * MAX_RATIO[SNAPPY]:
                raise _damaged(f"snappy block of {len(block)} bytes claims {length}")
            out = bytearray(length)
            if cramjam.snappy.decompress_raw_into(block, out) != length:
                raise _damaged("snappy block is shorter than it says")
            yield out
    except (IndexError, struct.error, cramjam.DecompressionError) as error:
        raise _damaged(str(error)) from None


def _unlz4(payload: memoryview) -> Iterator[bytes]:
    """All frames, fed in slices, so that no call copies what is left."""
    position, end = 0, len(payload)
    try:
        while position < end:
            context = lz4.frame.create_decompression_context()
            whole = False
            while not whole:
                feed = payload[position : position + _LZ4_FEED_BYTES]
                chunk, consumed, whole = lz4.frame.decompress_chunk(context, feed, max_length=CHUNK_BYTES)
                position += consumed
                if chunk:
                    yield chunk
                elif not consumed and not whole:
                    raise _damaged("they stop short")
    except RuntimeError as error:
        raise _damaged(str(error)) from None


def _unzstd(payload: memoryview) -> Iterator[bytes]:
    """All frames, as a stream: one-shot decompression believes what a frame states, or fails if it states nothing."""
    _sizes(ZSTD, payload, _FAR)  # the reader takes a frame that stops short for the end: the walk does not
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).stream_reader(
        payload, read_across_frames=True
    )
    try:
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
    except zstandard.ZstdError as error:
        raise _damaged(str(error)) from None


def _compress_xerial(payload: Buffer) -> bytes:
    """snappy-java's stream: a header of 16 bytes, then chunks of 32 KiB, each behind its compressed length."""
    view = memoryview(payload)
    out = bytearray(_XERIAL_MAGIC + b"\x00\x00\x00\x01\x00\x00\x00\x01")
    for position in range(0, len(view), _XERIAL_CHUNK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[position : position + _XERIAL_CHUNK_BYTES]))
        out += len(block).to_bytes(4, "big")
        out += block
    return bytes(out)
