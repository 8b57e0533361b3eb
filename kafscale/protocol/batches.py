"""The frame of a Kafka record batch (magic v2): read, checked, stamped and built.

Owns the 61-byte header and what must hold of a batch that a client produced or that the store gives back. It must not
know records (they stay unopened here; see `records`), topics, or where batches are kept. Hot path: one unpack, a few
comparisons and one CRC per batch. Format: Kafka's documentation, "Record Batch"; KIP-98 for the v2 layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple, NoReturn

from crc32c import crc32c

from kafscale.errors import Corrupt, Invalid
from kafscale.protocol import compression
from kafscale.protocol.error_codes import ErrorCode

Buffer = bytes | bytearray | memoryview
Header = tuple[str | bytes, bytes | None]

MAGIC: Final = 2
HEADER_BYTES: Final = 61
# Base offset and batch length: the part of the header that the length does not count.
LOG_OVERHEAD: Final = 12
# The smallest value of the length field: a header and not one record.
MIN_BATCH_LENGTH: Final = HEADER_BYTES - LOG_OVERHEAD
# A record is a length, attributes, two deltas, two lengths and a header count, each of one byte at least.
MIN_RECORD_BYTES: Final = 7

BASE_OFFSET_AT: Final = 0
LENGTH_AT: Final = 8
LEADER_EPOCH_AT: Final = 12
MAGIC_AT: Final = 16
CRC_AT: Final = 17
ATTRIBUTES_AT: Final = 21  # also the first byte that the CRC covers
LAST_OFFSET_DELTA_AT: Final = 23
BASE_TIMESTAMP_AT: Final = 27
MAX_TIMESTAMP_AT: Final = 35
PRODUCER_ID_AT: Final = 43
RECORD_COUNT_AT: Final = 57

CODEC_MASK: Final = 0x07
LOG_APPEND_TIME: Final = 0x08
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
DELETE_HORIZON: Final = 0x40

NO_TIMESTAMP: Final = -1
NO_PRODUCER_ID: Final = -1
NO_LIMIT: Final = (1 << 63) - 1
# Kafka's default of message.timestamp.after.max.ms since 4.0 (KIP-1030).
DEFAULT_TIMESTAMP_AFTER_MAX_MS: Final = 3_600_000
# The first version of Produce whose clients may send zstd (KIP-110).
FIRST_ZSTD_PRODUCE_VERSION: Final = 7

_HEADER: Final = Struct(">qiibIhiqqqhii")
_BODY: Final = Struct(">hiqqqhii")  # the same from the attributes on
_BASE_OFFSET: Final = Struct(">q")
_INT32: Final = Struct(">i")
_UINT32: Final = Struct(">I")
_INT16: Final = Struct(">h")
_INT64: Final = Struct(">q")
_unpack_header = _HEADER.unpack_from
# Patches the base offset and the leader epoch of a whole batch: (batch, 0, base offset, its length field, epoch). The
# CRC covers none of it. The same as `stamp`, in one call.
stamp_whole: Final = Struct(">qii").pack_into


class BatchHeader(NamedTuple):
    """The header's fields, in the order of the wire."""

    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole batch, header included."""
        return LOG_OVERHEAD + self.batch_length

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def codec(self) -> int:
        return self.attributes & CODEC_MASK

    @property
    def is_log_append_time(self) -> bool:
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & CONTROL)

    @property
    def lacks_max_timestamp(self) -> bool:
        """The client left the largest timestamp out, as sarama does: Kafka then takes it from the records."""
        return self.max_timestamp < self.base_timestamp


_new_header = tuple.__new__


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, unchecked. Raises `Corrupt` when fewer than 61 bytes are left."""
    if len(buffer) - position < HEADER_BYTES:
        raise Corrupt(f"batch header at {position} needs {HEADER_BYTES} bytes, {len(buffer) - position} are left")
    return _new_header(BatchHeader, _unpack_header(buffer, position))


def check_produced(
    buffer: memoryview,
    max_bytes: int,
    now_ms: int,
    version: int = FIRST_ZSTD_PRODUCE_VERSION,
    timestamp_before_max_ms: int = NO_LIMIT,
    timestamp_after_max_ms: int = DEFAULT_TIMESTAMP_AFTER_MAX_MS,
    max_decompressed_bytes: int = compression.MAX_DECOMPRESSED_BYTES,
) -> BatchHeader:
    """Checks what a client produced for one partition: exactly one good batch. Returns its header.

    `buffer` is the records field of Produce `version`; `max_bytes` the topic's max.message.bytes, header included. The
    timestamp limits are those of the topic; pass `NO_LIMIT` for both where it is set to LogAppendTime. Compressed data
    may grow to `max_decompressed_bytes`, or more for a large batch (`compression.decompressed_limit`). Order and codes
    are those of Kafka's ProduceRequest.validateRecords, UnifiedLog and LogValidator. Raises `Invalid`.
    """
    size = len(buffer)
    if size < HEADER_BYTES:
        _refuse_short(size)
    header: BatchHeader = _new_header(BatchHeader, _unpack_header(buffer, 0))
    (
        base_offset,
        length,
        _,
        magic,
        crc,
        attributes,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count,
    ) = header
    if magic != MAGIC or length != size - LOG_OVERHEAD:
        _refuse_frame(buffer, header)
    if size > max_bytes:
        raise Invalid(ErrorCode.MESSAGE_TOO_LARGE, f"batch of {size} bytes, the topic takes {max_bytes}")
    if crc32c(buffer[ATTRIBUTES_AT:]) != crc:
        raise Invalid(ErrorCode.CORRUPT_MESSAGE, f"batch of {size} bytes does not match its CRC {crc:#010x}")
    if base_offset or record_count <= 0 or record_count != last_offset_delta + 1:
        _refuse_offsets(header)
    if attributes & (CONTROL | DELETE_HORIZON | LOG_APPEND_TIME | TRANSACTIONAL):
        _check_attributes(header)
    if producer_id >= 0:
        if producer_epoch < 0 or base_sequence < 0:
            _refuse_producer(header)
    elif producer_id != NO_PRODUCER_ID:
        _refuse_producer(header)
    if (
        now_ms - base_timestamp > timestamp_before_max_ms
        or base_timestamp - now_ms > timestamp_after_max_ms
        or max_timestamp - now_ms > timestamp_after_max_ms
        or base_timestamp < NO_TIMESTAMP
        or max_timestamp < NO_TIMESTAMP
    ):
        _check_timestamps(header, now_ms, timestamp_before_max_ms, timestamp_after_max_ms)
    codec = attributes & CODEC_MASK
    if codec:
        _check_compressed(buffer, header, version, max_decompressed_bytes)
    elif record_count * MIN_RECORD_BYTES > size - HEADER_BYTES:
        _refuse_count(header, size - HEADER_BYTES)
    return header


def _refuse_short(size: int) -> NoReturn:
    if size == 0:
        raise Invalid(ErrorCode.INVALID_RECORD, "no record batch for the partition; exactly one is wanted")
    raise Invalid(ErrorCode.CORRUPT_MESSAGE, f"{size} bytes are too few for a record batch ({HEADER_BYTES})")


def _refuse_frame(buffer: memoryview, header: BatchHeader) -> NoReturn:
    if header.magic != MAGIC:
        raise Invalid(
            ErrorCode.INVALID_RECORD, f"magic {header.magic}: Produce from version 3 on takes only magic {MAGIC}"
        )
    size = header.size_bytes
    # A sound batch with more behind it is a client that sent two. Anything else is damage, and worth sending again.
    if (
        header.batch_length >= MIN_BATCH_LENGTH
        and size < len(buffer)
        and crc32c(buffer[ATTRIBUTES_AT:size]) == header.crc
    ):
        raise Invalid(
            ErrorCode.INVALID_RECORD, f"{len(buffer) - size} bytes after the record batch; exactly one is wanted"
        )
    raise Invalid(ErrorCode.CORRUPT_MESSAGE, f"batch says {size} bytes, {len(buffer)} were sent")


def _refuse_offsets(header: BatchHeader) -> NoReturn:
    raise Invalid(
        ErrorCode.INVALID_RECORD,
        f"base offset {header.base_offset}, last offset delta {header.last_offset_delta}, {header.record_count} "
        "records: a produced batch starts at 0 and its last delta is its count less one",
    )


def _refuse_producer(header: BatchHeader) -> NoReturn:
    raise Invalid(
        ErrorCode.INVALID_RECORD,
        f"producer id {header.producer_id} with epoch {header.producer_epoch} and sequence {header.base_sequence}: "
        "an id needs both, and no id is -1",
    )


def _refuse_count(header: BatchHeader, record_bytes: int) -> NoReturn:
    raise Invalid(ErrorCode.INVALID_RECORD, f"{header.record_count} records cannot lie in {record_bytes} bytes")


def _check_attributes(header: BatchHeader) -> None:
    """The attribute bits a client may not set, or only with a producer id."""
    attributes = header.attributes
    if attributes & CONTROL:
        raise Invalid(ErrorCode.INVALID_RECORD, "clients may not write control batches")
    if attributes & DELETE_HORIZON:
        raise Invalid(ErrorCode.INVALID_RECORD, "clients may not set a delete horizon")
    if attributes & LOG_APPEND_TIME:
        raise Invalid(ErrorCode.INVALID_TIMESTAMP, "clients may not set the timestamp type to LogAppendTime")
    if header.producer_id < 0:
        raise Invalid(ErrorCode.INVALID_RECORD, "transactional batch without a producer id")


def _check_timestamps(header: BatchHeader, now_ms: int, before_max_ms: int, after_max_ms: int) -> None:
    """The careful form of the hot path's test: -1 is no timestamp, and so within every limit."""
    for timestamp in (header.base_timestamp, header.max_timestamp):
        if timestamp == NO_TIMESTAMP:
            continue
        if timestamp < 0 or now_ms - timestamp > before_max_ms or timestamp - now_ms > after_max_ms:
            raise Invalid(
                ErrorCode.INVALID_TIMESTAMP,
                f"timestamp {timestamp} is not between {before_max_ms} ms before and {after_max_ms} ms after {now_ms}",
            )


def _check_compressed(buffer: memoryview, header: BatchHeader, version: int, max_decompressed_bytes: int) -> None:
    """The codec is one we know, and the records cannot grow past the bound, nor be too few bytes for their count."""
    codec = header.attributes & CODEC_MASK
    if codec > compression.ZSTD:
        raise Invalid(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"compression codec {codec} is unknown")
    if codec == compression.ZSTD and version < FIRST_ZSTD_PRODUCE_VERSION:
        raise Invalid(
            ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
            f"zstd needs Produce version {FIRST_ZSTD_PRODUCE_VERSION} or later, this is {version}",
        )
    payload = buffer[HEADER_BYTES:]
    limit = compression.decompressed_limit(len(buffer), max_decompressed_bytes)
    reach = min(limit, len(payload) * compression.MAX_RATIO[codec])
    if header.record_count * MIN_RECORD_BYTES > reach:
        _refuse_count(header, reach)
    compression.check_bounded(codec, payload, limit)


def stamp(buffer: bytearray | memoryview, base_offset: int, leader_epoch: int, position: int = 0) -> None:
    """Patches the base offset and the leader epoch of the batch at `position`, in place. The CRC covers neither."""
    _BASE_OFFSET.pack_into(buffer, position, base_offset)
    _INT32.pack_into(buffer, position + LEADER_EPOCH_AT, leader_epoch)


def stamp_log_append_time(buffer: bytearray | memoryview, now_ms: int) -> None:
    """Makes the one batch in `buffer` one of LogAppendTime at `now_ms`, in place, with a new CRC."""
    (attributes,) = _INT16.unpack_from(buffer, ATTRIBUTES_AT)
    _INT16.pack_into(buffer, ATTRIBUTES_AT, attributes | LOG_APPEND_TIME)
    stamp_max_timestamp(buffer, now_ms)


def stamp_max_timestamp(buffer: bytearray | memoryview, max_timestamp: int) -> None:
    """Sets the largest timestamp of the one batch in `buffer`, in place, with a new CRC."""
    _INT64.pack_into(buffer, MAX_TIMESTAMP_AT, max_timestamp)
    view = memoryview(buffer)
    _UINT32.pack_into(buffer, CRC_AT, crc32c(view[ATTRIBUTES_AT : read_header(view).size_bytes]))


def iterate(buffer: Buffer) -> Iterator[tuple[int, BatchHeader]]:
    """Position and header of each stored batch, one after the other. Raises `Corrupt` at what is no whole batch."""
    position, end = 0, len(buffer)
    while position < end:
        header = read_header(buffer, position)
        if header.magic != MAGIC:
            raise Corrupt(f"batch at {position}: magic {header.magic}, only {MAGIC} is stored")
        if not MIN_BATCH_LENGTH <= header.batch_length <= end - position - LOG_OVERHEAD:
            raise Corrupt(
                f"batch at {position}: length {header.batch_length}, {end - position - LOG_OVERHEAD} are left"
            )
        yield position, header
        position += LOG_OVERHEAD + header.batch_length


def check_stored(buffer: Buffer) -> int:
    """Verifies frame and CRC of every batch read from the store. Returns how many there are. Raises `Corrupt`."""
    return sum(1 for _ in stored_batches(buffer))


def stored_batches(buffer: Buffer) -> Iterator[int]:
    """Size in bytes of each batch read from the store, its frame and CRC verified. Raises `Corrupt`."""
    view = memoryview(buffer)
    for position, header in iterate(view):
        size = header.size_bytes
        if crc32c(view[position + ATTRIBUTES_AT : position + size]) != header.crc:
            raise Corrupt(f"batch at {position} (base offset {header.base_offset}) does not match its CRC")
        yield size


def build_batch(
    records: Sequence[tuple[bytes | None, bytes | None]],
    base_offset: int = 0,
    leader_epoch: int = 0,
    timestamp_ms: int = 0,
    *,
    producer_id: int = NO_PRODUCER_ID,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    attributes: int = 0,
    codec: int = compression.NONE,
    headers: Sequence[Sequence[Header]] | None = None,
    timestamps: Sequence[int] | None = None,
) -> bytearray:
    """A batch of `records` (key, value), for internal topics and tests.

    `timestamps` (ms, one a record) take the place of `timestamp_ms`; `headers` holds one sequence a record.
    `attributes` adds bits such as `CONTROL` or `TRANSACTIONAL`; the codec's bits come from `codec`.
    """
    count = len(records)
    base_timestamp = timestamps[0] if timestamps else timestamp_ms
    payload = bytearray()
    body = bytearray()
    for index, (key, value) in enumerate(records):
        body.clear()
        body.append(0)  # attributes of a record: none are in use
        _append_varint(body, timestamps[index] - base_timestamp if timestamps else 0)
        _append_varint(body, index)
        _append_bytes(body, key)
        _append_bytes(body, value)
        record_headers = headers[index] if headers else ()
        _append_varint(body, len(record_headers))
        for name, content in record_headers:
            _append_bytes(body, name.encode() if isinstance(name, str) else name)
            _append_bytes(body, content)
        _append_varint(payload, len(body))
        payload += body
    batch = bytearray(HEADER_BYTES)
    batch += compression.compress(codec, payload) if codec else payload
    _BODY.pack_into(
        batch,
        ATTRIBUTES_AT,
        attributes & ~CODEC_MASK | codec,
        count - 1,
        base_timestamp,
        max(timestamps) if timestamps else timestamp_ms,
        producer_id,
        producer_epoch,
        base_sequence,
        count,
    )
    _BASE_OFFSET.pack_into(batch, 0, base_offset)
    _INT32.pack_into(batch, LENGTH_AT, len(batch) - LOG_OVERHEAD)
    _INT32.pack_into(batch, LEADER_EPOCH_AT, leader_epoch)
    batch[MAGIC_AT] = MAGIC
    with memoryview(batch) as view:
        _UINT32.pack_into(batch, CRC_AT, crc32c(view[ATTRIBUTES_AT:]))
    return batch


def _append_varint(out: bytearray, value: int) -> None:
    """Zigzag varint, as in Protocol Buffers' sint64."""
    value = (value << 1) ^ (value >> 63)
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _append_bytes(out: bytearray, content: bytes | None) -> None:
    if content is None:
        out.append(1)  # -1 in zigzag
    else:
        _append_varint(out, len(content))
        out += content
