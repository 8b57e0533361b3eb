"""Primitives of the Kafka wire format that every codec shares: variable-length integers and tagged fields (KIP-482).

Pure functions over buffers. It knows no message, version or socket. Numbers are big-endian; what is read comes from
strangers, so every length is checked against the end of the frame before it is believed.
"""

from __future__ import annotations

from typing import Final

from kafscale.errors import ProtocolError
from kafscale.protocol.schema import Buffer, Records

MAX_STRING_BYTES: Final = 0x7FFF
MAX_VARINT_BYTES: Final = 5

MAX_ELEMENTS: Final = 1_000_000
"""Array elements in one message, all arrays together. An element may take one byte of a frame and a hundred of memory,
so a bound on the frame alone would bound nothing."""

SMALL_UVARINTS: Final = tuple(bytes((value,)) for value in range(128))
"""The one-byte varints, ready made."""


def uvarint(value: int) -> bytes:
    """`value` as an unsigned varint: seven bits a byte, least first, the high bit says that more follows."""
    if value < 128:
        return SMALL_UVARINTS[value]
    out = bytearray()
    while value > 127:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_uvarint(buffer: Buffer, position: int) -> tuple[int, int]:
    """(value, position after it). IndexError past the buffer, ProtocolError when longer than five bytes.

    It does not look at the end of the frame: the caller compares the position that comes back.
    """
    value = buffer[position]
    if value < 128:
        return value, position + 1
    return read_uvarint_tail(buffer, position + 1, value)


def read_uvarint_tail(buffer: Buffer, position: int, first: int) -> tuple[int, int]:
    """The rest of a varint whose first byte, already read, had its high bit set."""
    value = first & 0x7F
    for shift in (7, 14, 21, 28):
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, position
    raise ProtocolError(f"a varint is longer than {MAX_VARINT_BYTES} bytes")


def skip_tags(buffer: Buffer, position: int, end: int, count: int) -> int:
    """Pass over `count` tagged fields and return the position after them.

    `count` is the first byte of the count, already read; the rest of a longer one is read here.
    """
    if count > 127:
        count, position = read_uvarint_tail(buffer, position, count)
    if count * 2 > end - position:
        raise ProtocolError(f"{count} tagged fields in {end - position} bytes")
    for _ in range(count):
        _, position = read_uvarint(buffer, position)
        size, position = read_uvarint(buffer, position)
        if size > end - position:
            raise ProtocolError(f"a tagged field of {size} bytes where {end - position} are left")
        position += size
    return position


def string_length(size_and_one: int) -> bytes:
    """The varint before a compact string: its size and one. ValueError when it is longer than Kafka reads."""
    if size_and_one > MAX_STRING_BYTES + 1:
        raise ValueError(f"a string of {size_and_one - 1} bytes; the format holds {MAX_STRING_BYTES}")
    return uvarint(size_and_one)


def records_size(records: Records) -> int:
    """Bytes in `records`, be it one buffer or several."""
    if isinstance(records, (bytes, bytearray, memoryview)):
        return len(records)
    return sum(map(len, records))


def add_records(buffers: list[Buffer], records: Records) -> None:
    """Append `records` to `buffers` without copying them."""
    if isinstance(records, (bytes, bytearray, memoryview)):
        buffers.append(records)
    else:
        buffers.extend(records)
