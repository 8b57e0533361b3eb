"""The records inside one batch, opened within a bound: read, searched by timestamp, and checked where a topic asks.

Owns the record layout of magic v2 (varints, deltas, headers). It must not know where a batch came from. Everything
here costs one to two microseconds a record, and a megabyte may hold a million: nothing on the way of a produce or a
fetch calls it, but for topics that need their records seen, and whoever does looks at the count first. Format: Kafka's
documentation, "Record". What is wrong raises `Invalid`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from kafscale.errors import Invalid
from kafscale.protocol import compression
from kafscale.protocol.batches import HEADER_BYTES, NO_LIMIT, NO_TIMESTAMP, BatchHeader, Buffer, read_header
from kafscale.protocol.error_codes import ErrorCode

# Records opened in one go, in some 20 ms; whoever opens more gives others a turn in between.
RECORDS_AT_ONCE: Final = 10_000
# Records of a batch that must be opened before it can be appended, in some 200 ms. Who sends more states what is in it.
RECORDS_OPENED_MAX: Final = 100_000

_VARINT_BYTES: Final = 5  # of 32 bits
_VARLONG_BYTES: Final = 10  # of 64 bits


class Record(NamedTuple):
    """One record. Header names are bytes as sent, UTF-8 if the client kept to the protocol."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...]


def iterate_records(batch: Buffer, max_bytes: int | None = None) -> Iterator[Record]:
    """The records of the one batch in `batch`, in order, decompressed to `max_bytes` at most. Raises `Invalid`.

    Without `max_bytes`, here and below, the bound is the one under which a batch of this size was produced.
    """
    header, payload = _open(batch, max_bytes)
    for offset, timestamp_ms, position, end in _walk(header, payload):
        key, position = _read_bytes(payload, position, end)
        value, position = _read_bytes(payload, position, end)
        count, position = _read_varint(payload, position, end, _VARINT_BYTES)
        if not 0 <= count <= end - position:
            raise _damaged(f"record at offset {offset} claims {count} headers")
        headers = []
        for _ in range(count):
            name, position = _read_bytes(payload, position, end)
            if name is None:
                raise _damaged(f"record at offset {offset} has a header without a name")
            content, position = _read_bytes(payload, position, end)
            headers.append((name, content))
        if position != end:
            raise _damaged(f"record at offset {offset} has {end - position} bytes behind its headers")
        yield Record(offset, timestamp_ms, key, value, tuple(headers))


def timestamps(batch: Buffer, max_bytes: int | None = None) -> Iterator[tuple[int, int]]:
    """Offset and timestamp of each record, in order. Raises `Invalid`."""
    header, payload = _open(batch, max_bytes)
    for offset, timestamp_ms, _, _ in _walk(header, payload):
        yield offset, timestamp_ms


def first_record_at_or_after(
    batch: Buffer, timestamp_ms: int, max_bytes: int | None = None, from_offset: int = 0
) -> tuple[int, int] | None:
    """Offset and timestamp of the first record with this timestamp or a later one, or None. Raises `Invalid`.

    Here and below records before `from_offset` don't count.
    """
    header = read_header(batch)
    if header.is_log_append_time and header.max_timestamp < timestamp_ms:
        return None
    header, payload = _open(batch, max_bytes)
    for offset, found_ms, _, _ in _walk(header, payload):
        if found_ms >= timestamp_ms and offset >= from_offset:
            return offset, found_ms
    return None


def max_timestamp_record(batch: Buffer, max_bytes: int | None = None, from_offset: int = 0) -> tuple[int, int] | None:
    """Offset and timestamp of the first record with the largest timestamp; None if no record has one.

    Under LogAppendTime all are alike, and it is the base offset, as Kafka has it since 3.8. Raises `Invalid`.
    """
    header = read_header(batch)
    if header.is_log_append_time:
        first = max(header.base_offset, from_offset)
        return None if header.max_timestamp == NO_TIMESTAMP else (first, header.max_timestamp)
    header, payload = _open(batch, max_bytes)
    largest: tuple[int, int] | None = None
    for offset, timestamp_ms, _, _ in _walk(header, payload):
        if offset >= from_offset and timestamp_ms > (NO_TIMESTAMP if largest is None else largest[1]):
            largest = offset, timestamp_ms
    return largest


def check_records(batch: Buffer, *, keys_required: bool = False, max_bytes: int | None = None) -> int:
    """Opens all of a produced batch and checks each record, as LogValidator does. Returns the largest timestamp.

    Where every record must have a key (`keys_required`), it is for compacted topics. Raises `Invalid`: INVALID_RECORD
    for a missing key or a delta that is not the record's place.
    """
    base_offset = read_header(batch).base_offset
    largest_ms = NO_TIMESTAMP
    for index, record in enumerate(iterate_records(batch, max_bytes)):
        if record.offset - base_offset != index:
            raise _damaged(f"record {index} has offset delta {record.offset - base_offset}")
        if keys_required and record.key is None:
            raise Invalid(ErrorCode.INVALID_RECORD, f"record {index} has no key, and the topic is compacted")
        if record.timestamp_ms > largest_ms:
            largest_ms = record.timestamp_ms
    return largest_ms


def _damaged(what: str) -> Invalid:
    return Invalid(ErrorCode.INVALID_RECORD, f"records are damaged: {what}")


def _open(batch: Buffer, max_bytes: int | None) -> tuple[BatchHeader, bytes]:
    """Header and uncompressed records. A copy even where nothing is compressed: bytes are read fastest."""
    header = read_header(batch)
    if len(batch) != header.size_bytes:
        raise _damaged(f"batch says {header.size_bytes} bytes, {len(batch)} are there")
    payload = memoryview(batch)[HEADER_BYTES:]
    if max_bytes is None:
        max_bytes = compression.decompressed_limit(len(batch))
    return header, compression.decompress(header.codec, payload, max_bytes)


def _walk(header: BatchHeader, payload: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Per record: offset, timestamp, where its key begins, and its end. Checks that they fill the payload exactly."""
    position, size = 0, len(payload)
    base_offset, base_timestamp = header.base_offset, header.base_timestamp
    last_delta = -1
    timestamp_ms = header.max_timestamp
    created = not header.is_log_append_time
    for index in range(header.record_count):
        length, position = _read_varint(payload, position, size, _VARINT_BYTES)
        end = position + length
        if length <= 0 or end > size:
            raise _damaged(f"record {index} claims {length} bytes, {size - position} are left")
        position += 1  # attributes: none are in use
        timestamp_delta, position = _read_varint(payload, position, end, _VARLONG_BYTES)
        delta, position = _read_varint(payload, position, end, _VARINT_BYTES)
        if not last_delta < delta <= header.last_offset_delta:
            raise _damaged(f"record {index} has offset delta {delta} after {last_delta}")
        last_delta = delta
        if created:
            timestamp_ms = base_timestamp + timestamp_delta
            if timestamp_ms > NO_LIMIT:  # would not fit a response
                raise _damaged(f"record {index} has timestamp {timestamp_ms}")
        yield base_offset + delta, timestamp_ms, position, end
        position = end
    if position != size:
        raise _damaged(f"{size - position} bytes behind the last of {header.record_count} records")


def _read_varint(buffer: bytes, position: int, end: int, max_bytes: int) -> tuple[int, int]:
    """A zigzag varint that lies before `end`, and the position behind it."""
    value = shift = 0
    limit = min(end, position + max_bytes)
    while position < limit:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
        shift += 7
    raise _damaged(f"varint at {position} has no end")


def _read_bytes(buffer: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    """Bytes behind their length, which is -1 for null."""
    length, position = _read_varint(buffer, position, end, _VARINT_BYTES)
    if length < 0:
        if length != -1:
            raise _damaged(f"length {length} at {position}")
        return None, position
    if length > end - position:
        raise _damaged(f"{length} bytes claimed at {position}, {end - position} are left")
    return buffer[position : position + length], position + length
