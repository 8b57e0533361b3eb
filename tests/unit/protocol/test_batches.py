"""Goal: no bad batch from a client or the store passes for a good one, and every good one passes unchanged."""

from __future__ import annotations

import struct
import time

import aiokafka.record.default_records as aiokafka_records
import kafka.record.default_records as kafka_records
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kio.records.readers import read_batch

from kafscale.errors import Corrupt, Invalid
from kafscale.protocol import batches, compression
from kafscale.protocol.batches import build_batch, check_produced, check_stored, iterate, read_header, stamp
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.protocol.batch_samples import (
    NOW_MS,
    built,
    gzip_bomb,
    lz4_bomb,
    patched,
    recrc,
    sample_records,
    small,
    snappy_bomb,
    with_payload,
    zstd_bomb,
    zstd_streamed,
)

CODECS = range(5)
MAX_BYTES = 1 << 21


def check(batch: bytes | bytearray, **options: int) -> batches.BatchHeader:
    return check_produced(memoryview(batch), options.pop("max_bytes", MAX_BYTES), NOW_MS, **options)


def refusal(batch: bytes | bytearray, **options: int) -> int:
    with pytest.raises(Invalid) as caught:
        check(batch, **options)
    return caught.value.code


@given(sample_records(), st.sampled_from(CODECS))
def test_a_built_batch_passes_and_its_header_says_what_was_put_in(records: list[tuple], codec: int) -> None:
    """Goal: what we build is what a good client sends."""
    header = check(built(records, codec=codec, producer_id=7, producer_epoch=1, base_sequence=3))
    timestamps = [timestamp for *_, timestamp in records]
    assert header.record_count == len(records) == header.last_offset + 1
    assert (header.base_timestamp, header.max_timestamp) == (timestamps[0], max(timestamps))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 1, 3)
    assert header.codec == codec
    assert not header.is_control
    assert not header.is_transactional


@given(sample_records(), st.sampled_from([0, 1, 3, 4]), st.booleans())
def test_what_kafka_python_builds_passes(records: list[tuple], codec: int, transactional: bool) -> None:
    """Goal: agreement with an independent builder."""
    builder = kafka_records.DefaultRecordBatchBuilder(2, codec, transactional, 9, 0, 5, 1 << 20)
    for offset, (key, value, headers, timestamp) in enumerate(records):
        builder.append(offset, timestamp, key, value, headers)
    header = check(builder.build())
    assert (header.record_count, header.producer_id, header.base_sequence) == (len(records), 9, 5)
    assert header.is_transactional == transactional


@given(sample_records(), st.sampled_from(CODECS))
def test_what_aiokafka_builds_passes(records: list[tuple], codec: int) -> None:
    """Goal: agreement with a second independent builder, snappy included."""
    builder = aiokafka_records.DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers, timestamp) in enumerate(records):
        builder.append(offset, timestamp, key, value, headers)
    assert check(builder.build()).record_count == len(records)


@given(sample_records(), st.integers(0, 1 << 40), st.integers(0, 1 << 30))
def test_kio_reads_what_we_build(records: list[tuple], base_offset: int, epoch: int) -> None:
    """Goal: agreement with an independent reader, field for field (whole seconds are all that kio can check)."""
    records = [(key, value, headers, timestamp // 1000 * 1000) for key, value, headers, timestamp in records]
    batch = built(records, base_offset=base_offset, leader_epoch=epoch, attributes=batches.TRANSACTIONAL)
    theirs, size = read_batch(bytes(batch), 0)
    ours = read_header(batch)
    assert size == len(batch) == ours.size_bytes
    assert (theirs.base_offset, theirs.partition_leader_epoch) == (base_offset, epoch)
    assert (theirs.crc, theirs.attributes, theirs.max_timestamp) == (ours.crc, ours.attributes, ours.max_timestamp)
    assert [(r.key, r.value, [(h.key, h.value) for h in r.headers]) for r in theirs.records] == [
        (key, value, [(name.encode(), content) for name, content in headers]) for key, value, headers, _ in records
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_of_a_produced_batch_is_found(codec: int) -> None:
    """Goal: damage on the way never passes. The leader epoch is the broker's to set, and so the one exception."""
    batch = small(codec=codec)
    for position in range(len(batch)):
        for bit in range(8):
            batch[position] ^= 1 << bit
            if batches.LEADER_EPOCH_AT <= position < batches.MAGIC_AT:
                check(batch)
            else:
                assert refusal(batch) in (ErrorCode.CORRUPT_MESSAGE, ErrorCode.INVALID_RECORD)
            batch[position] ^= 1 << bit
    check(batch)


def test_every_flipped_bit_of_a_stored_batch_is_found() -> None:
    """Goal: a reader of the store sees damage, but in the two fields that no CRC of Kafka covers."""
    batch = small(base_offset=77, leader_epoch=3)
    for position in (*range(batches.LENGTH_AT, batches.LEADER_EPOCH_AT), *range(batches.MAGIC_AT, len(batch))):
        for bit in range(8):
            batch[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                check_stored(batch)
            batch[position] ^= 1 << bit
    assert check_stored(batch) == 1


@given(st.binary(max_size=200))
@example(b"")
def test_random_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    """Goal: hostile bytes end in a Kafka error, never in a surprise."""
    assert refusal(data) in (ErrorCode.CORRUPT_MESSAGE, ErrorCode.INVALID_RECORD, ErrorCode.MESSAGE_TOO_LARGE)


def test_a_batch_cut_short_at_any_byte_is_damage() -> None:
    """Goal: a truncated batch is retriable damage; none at all is the client's error."""
    batch = small()
    for length in range(1, len(batch)):
        assert refusal(batch[:length]) == ErrorCode.CORRUPT_MESSAGE
    assert refusal(b"") == ErrorCode.INVALID_RECORD


def test_more_than_one_batch_is_the_clients_error_and_a_wrong_length_is_damage() -> None:
    """Goal: exactly one batch a partition (ProduceRequest.validateRecords)."""
    assert refusal(small() + small()) == ErrorCode.INVALID_RECORD
    assert refusal(small() + b"\x00") == ErrorCode.INVALID_RECORD
    for length in (-1, 0, 48, 49, len(small()) - 13, len(small()) - 11, (1 << 31) - 1):
        batch = small()
        struct.pack_into(">i", batch, batches.LENGTH_AT, length)
        assert refusal(batch) == ErrorCode.CORRUPT_MESSAGE, length


REFUSED = [
    ("magic 1", batches.MAGIC_AT, "b", 1, ErrorCode.INVALID_RECORD),
    ("magic 0", batches.MAGIC_AT, "b", 0, ErrorCode.INVALID_RECORD),
    ("magic unknown", batches.MAGIC_AT, "b", 3, ErrorCode.INVALID_RECORD),
    ("base offset", batches.BASE_OFFSET_AT, "q", 1, ErrorCode.INVALID_RECORD),
    ("count too large", batches.RECORD_COUNT_AT, "i", 3, ErrorCode.INVALID_RECORD),
    ("count zero", batches.RECORD_COUNT_AT, "i", 0, ErrorCode.INVALID_RECORD),
    ("count negative", batches.RECORD_COUNT_AT, "i", -1, ErrorCode.INVALID_RECORD),
    ("delta too large", batches.LAST_OFFSET_DELTA_AT, "i", 2, ErrorCode.INVALID_RECORD),
    ("delta negative", batches.LAST_OFFSET_DELTA_AT, "i", -1, ErrorCode.INVALID_RECORD),
    ("control", batches.ATTRIBUTES_AT, "h", batches.CONTROL, ErrorCode.INVALID_RECORD),
    ("transactional without id", batches.ATTRIBUTES_AT, "h", batches.TRANSACTIONAL, ErrorCode.INVALID_RECORD),
    ("delete horizon", batches.ATTRIBUTES_AT, "h", batches.DELETE_HORIZON, ErrorCode.INVALID_RECORD),
    ("log append time", batches.ATTRIBUTES_AT, "h", batches.LOG_APPEND_TIME, ErrorCode.INVALID_TIMESTAMP),
    ("codec 5", batches.ATTRIBUTES_AT, "h", 5, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
    ("codec 7", batches.ATTRIBUTES_AT, "h", 7, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
    ("id without epoch", batches.PRODUCER_ID_AT, "q", 1, ErrorCode.INVALID_RECORD),
    ("id below -1", batches.PRODUCER_ID_AT, "q", -2, ErrorCode.INVALID_RECORD),
    ("base timestamp below -1", batches.BASE_TIMESTAMP_AT, "q", -2, ErrorCode.INVALID_TIMESTAMP),
    ("max timestamp below -1", batches.MAX_TIMESTAMP_AT, "q", -2, ErrorCode.INVALID_TIMESTAMP),
    ("max timestamp in the future", batches.MAX_TIMESTAMP_AT, "q", NOW_MS + 3_600_001, ErrorCode.INVALID_TIMESTAMP),
    ("base timestamp in the future", batches.BASE_TIMESTAMP_AT, "q", NOW_MS + 3_600_001, ErrorCode.INVALID_TIMESTAMP),
]


@pytest.mark.parametrize(
    ("position", "layout", "value", "code"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_header_that_may_not_be_is_refused_though_its_crc_is_right(
    position: int, layout: str, value: int, code: int
) -> None:
    """Goal: each rule of the header has its Kafka error code."""
    batch = small()
    check(batch)
    assert refusal(patched(batch, position, layout, value)) == code


@pytest.mark.parametrize("count", [0, -1, -(1 << 31) + 1])
def test_no_records_are_refused_though_count_and_last_delta_agree(count: int) -> None:
    """Goal: a batch holds a record at least."""
    batch = patched(small(), batches.RECORD_COUNT_AT, "i", count)
    assert refusal(patched(batch, batches.LAST_OFFSET_DELTA_AT, "i", count - 1)) == ErrorCode.INVALID_RECORD


@pytest.mark.parametrize("codec", CODECS)
def test_a_count_that_the_bytes_cannot_hold_is_refused(codec: int) -> None:
    """Goal: a tiny batch can't take up two thousand million offsets."""
    count = (1 << 31) - 1
    batch = patched(small(codec=codec), batches.RECORD_COUNT_AT, "i", count)
    assert refusal(patched(batch, batches.LAST_OFFSET_DELTA_AT, "i", count - 1)) == ErrorCode.INVALID_RECORD


@pytest.mark.parametrize(("epoch", "sequence", "good"), [(0, 0, True), (-1, 0, False), (0, -1, False), (-1, -1, False)])
def test_a_producer_id_comes_with_epoch_and_sequence(epoch: int, sequence: int, good: bool) -> None:
    """Goal: idempotence has all it needs, or the batch is refused."""
    batch = small(producer_id=1, producer_epoch=epoch, base_sequence=sequence, attributes=batches.TRANSACTIONAL)
    if good:
        assert check(batch).is_transactional
    else:
        assert refusal(batch) == ErrorCode.INVALID_RECORD


def test_the_limit_counts_the_whole_batch() -> None:
    """Goal: max.message.bytes is header included, to the byte."""
    batch = small()
    check(batch, max_bytes=len(batch))
    assert refusal(batch, max_bytes=len(batch) - 1) == ErrorCode.MESSAGE_TOO_LARGE


def test_zstd_needs_produce_version_7() -> None:
    """Goal: a client that declared no zstd may not send it (KIP-110); the other codecs it may."""
    assert refusal(small(codec=compression.ZSTD), version=6) == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
    check(small(codec=compression.ZSTD), version=7)
    check(small(codec=compression.LZ4), version=3)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(-3000, 3000), st.integers(0, 3000))
def test_timestamp_limits_hold_to_the_millisecond(before: int, after: int, base: int, spread: int) -> None:
    """Goal: message.timestamp.before.max.ms and after.max.ms, against the plain rule."""
    batch = build_batch([(b"", b"")] * 2, timestamps=[NOW_MS + base, NOW_MS + base + spread])
    good = -before <= base and base + spread <= after
    options = {"timestamp_before_max_ms": before, "timestamp_after_max_ms": after}
    if good:
        check(batch, **options)
    else:
        assert refusal(batch, **options) == ErrorCode.INVALID_TIMESTAMP


def test_no_timestamp_is_within_every_limit_and_a_missing_maximum_is_told() -> None:
    """Goal: clients that send -1, or a base and no maximum as sarama does, are served as Kafka serves them."""
    assert not check(small()).lacks_max_timestamp
    without = build_batch([(b"k", b"v")], timestamp_ms=-1)
    assert not check(without, timestamp_before_max_ms=1).lacks_max_timestamp
    assert check(patched(small(), batches.MAX_TIMESTAMP_AT, "q", -1), timestamp_before_max_ms=1).lacks_max_timestamp


BOMBS = {
    "zstd": (compression.ZSTD, zstd_bomb),
    "zstd of compressed blocks": (compression.ZSTD, lambda: zstd_streamed(512)),
    "gzip": (compression.GZIP, gzip_bomb),
    "gzip that says 0": (compression.GZIP, lambda: gzip_bomb(0)),
    "lz4": (compression.LZ4, lz4_bomb),
    "snappy": (compression.SNAPPY, snappy_bomb),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_a_second(name: str) -> None:
    """Goal: a batch that would grow beyond all bounds is error 10, at little cost to the worker."""
    codec, make = BOMBS[name]
    batch = with_payload(codec, make())
    started = time.process_time()
    assert refusal(batch) == ErrorCode.MESSAGE_TOO_LARGE
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("codec", CODECS)
def test_highly_compressible_batches_pass(codec: int) -> None:
    """Goal: 16 MB of one byte repeated, far more than default clients put into a batch, is no bomb."""
    batch = build_batch([(None, b"x" * 1_000_000)] * 16, timestamp_ms=NOW_MS, codec=codec)
    assert check(batch, max_bytes=1 << 25).record_count == 16


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 31) - 1), st.integers(0, 100))
def test_stamping_changes_offset_and_epoch_and_nothing_else(base_offset: int, epoch: int, position: int) -> None:
    """Goal: the one patch on the hot path leaves records and CRC alone."""
    batch = small()
    buffer = bytearray(position) + batch
    stamp(buffer, base_offset, epoch, position)
    header = read_header(buffer, position)
    assert (header.base_offset, header.leader_epoch) == (base_offset, epoch)
    assert check_stored(memoryview(buffer)[position:]) == 1
    stamp(buffer, 0, 0, position)
    assert buffer[position:] == batch


@pytest.mark.parametrize("codec", CODECS)
def test_log_append_time_is_stamped_with_a_new_crc(codec: int) -> None:
    """Goal: independent readers see the broker's time on every record, and a CRC that fits."""
    batch = small(codec=codec)
    batches.stamp_log_append_time(memoryview(batch), NOW_MS + 5)
    assert check_stored(batch) == 1
    header = read_header(batch)
    assert (header.is_log_append_time, header.max_timestamp, header.codec) == (True, NOW_MS + 5, codec)
    theirs = aiokafka_records.DefaultRecordBatch(bytes(batch))
    assert theirs.validate_crc()
    assert [record.timestamp for record in theirs] == [NOW_MS + 5] * 2


def test_a_missing_maximum_can_be_put_in() -> None:
    """Goal: a mended batch is the batch as a better client had sent it."""
    batch = patched(small(), batches.MAX_TIMESTAMP_AT, "q", -1)
    batches.stamp_max_timestamp(batch, NOW_MS)
    assert batch == small()


@given(st.lists(sample_records(max_size=3), max_size=5))
def test_iterating_visits_every_stored_batch(groups: list[list[tuple]]) -> None:
    """Goal: positions and headers of a run of batches, to its exact end."""
    run = bytearray()
    expected = []
    for number, group in enumerate(groups):
        expected.append((len(run), number * 10, len(group)))
        run += built(group, base_offset=number * 10)
    assert [(position, h.base_offset, h.record_count) for position, h in iterate(run)] == expected
    assert check_stored(run) == len(groups)


def test_a_run_cut_short_at_any_byte_is_corrupt() -> None:
    """Goal: stored batches end where one ends, or it is an error; nothing is the one exception."""
    run = small() + small(base_offset=2)
    for length in range(1, len(run)):
        if length != len(small()):
            with pytest.raises(Corrupt):
                check_stored(run[:length])
    assert check_stored(b"") == 0


def test_a_crafted_length_cannot_send_a_reader_round_in_circles() -> None:
    """Goal: a length that steps back or not at all is corrupt."""
    for length in (-12, -13, -1, 0, 48):
        batch = small()
        struct.pack_into(">i", batch, batches.LENGTH_AT, length)
        with pytest.raises(Corrupt):
            list(iterate(batch))
    short = small()[: batches.HEADER_BYTES - 1] + small()
    struct.pack_into(">i", short, batches.LENGTH_AT, batches.MIN_BATCH_LENGTH - 1)
    with pytest.raises(Corrupt):
        list(iterate(short))


@given(st.lists(st.integers(-(1 << 62), (1 << 62) - 1), min_size=2, max_size=4))
def test_timestamps_far_apart_survive(timestamps: list[int]) -> None:
    """Goal: deltas of 64 bits are written as kafka-python reads them."""
    batch = recrc(build_batch([(None, None)] * len(timestamps), timestamps=timestamps))
    assert [record.timestamp for record in kafka_records.DefaultRecordBatch(bytes(batch))] == timestamps
