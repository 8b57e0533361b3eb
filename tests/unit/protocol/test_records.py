"""Goal: records come out of a batch as independent libraries put them in, and damage ends in a Kafka error."""

from __future__ import annotations

import struct
import tracemalloc

import aiokafka.record.default_records as aiokafka_records
import kafka.record.default_records as kafka_records
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import Invalid
from kafscale.protocol import batches, compression
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.records import check_records, first_record_at_or_after, iterate_records, max_timestamp_record
from tests.unit.protocol.batch_samples import NOW_MS, built, patched, recrc, sample_records, small, with_payload

CODECS = range(5)


def plain(batch: bytes | bytearray) -> list[tuple]:
    """Records as `sample_records` gives them."""
    return [
        (record.key, record.value, [(name.decode(), content) for name, content in record.headers], record.timestamp_ms)
        for record in iterate_records(batch)
    ]


@given(sample_records(), st.sampled_from(CODECS), st.integers(0, 1 << 50))
def test_records_come_out_as_they_went_in(records: list[tuple], codec: int, base_offset: int) -> None:
    """Goal: a round trip through every codec, offsets dense from the base."""
    batch = built(records, codec=codec, base_offset=base_offset)
    assert plain(memoryview(batch)) == records
    assert [r.offset for r in iterate_records(batch)] == list(range(base_offset, base_offset + len(records)))


@given(sample_records(), st.sampled_from(CODECS))
def test_what_aiokafka_builds_reads_the_same(records: list[tuple], codec: int) -> None:
    """Goal: agreement with an independent builder, every codec."""
    builder = aiokafka_records.DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers, timestamp) in enumerate(records):
        builder.append(offset, timestamp, key, value, headers)
    assert plain(builder.build()) == records


@given(sample_records(), st.sampled_from([0, 1, 3, 4]))
def test_what_kafka_python_builds_reads_the_same(records: list[tuple], codec: int) -> None:
    """Goal: agreement with a second independent builder."""
    builder = kafka_records.DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers, timestamp) in enumerate(records):
        builder.append(offset, timestamp, key, value, headers)
    assert plain(builder.build()) == records


@given(sample_records(), st.sampled_from(CODECS))
def test_aiokafka_and_kafka_python_read_what_we_build(records: list[tuple], codec: int) -> None:
    """Goal: agreement with two independent readers."""
    batch = bytes(built(records, codec=codec, base_offset=40))
    readers = [aiokafka_records.DefaultRecordBatch(batch)]
    if codec != compression.SNAPPY:  # kafka-python wants python-snappy for it
        readers.append(kafka_records.DefaultRecordBatch(batch))
    for reader in readers:
        assert reader.validate_crc()
        assert [(r.offset, r.key, r.value, list(r.headers), r.timestamp) for r in reader] == [
            (40 + index, *record) for index, record in enumerate(records)
        ]


@given(sample_records(), st.sampled_from(CODECS), st.integers(-6000, 6000), st.booleans())
def test_searching_by_timestamp_agrees_with_looking_at_every_record(
    records: list[tuple], codec: int, delta: int, log_append: bool
) -> None:
    """Goal: ListOffsets by timestamp and by max timestamp, against the plain definition."""
    batch = built(records, codec=codec, base_offset=5)
    if log_append:
        batches.stamp_log_append_time(batch, NOW_MS)
    found = [(record.offset, record.timestamp_ms) for record in iterate_records(batch)]
    if log_append:
        assert {timestamp for _, timestamp in found} == {NOW_MS}
    sought = NOW_MS + delta
    assert first_record_at_or_after(batch, sought) == next((each for each in found if each[1] >= sought), None)
    assert max_timestamp_record(batch) == max(found, key=lambda each: each[1])


def test_records_without_timestamps_have_no_largest() -> None:
    """Goal: -1 is no timestamp."""
    assert max_timestamp_record(batches.build_batch([(b"", b"")], timestamp_ms=-1)) is None


@given(sample_records())
def test_checking_opened_records_gives_the_largest_timestamp(records: list[tuple]) -> None:
    """Goal: what a header left out is found, whatever the order of timestamps."""
    batch = patched(built(records), batches.MAX_TIMESTAMP_AT, "q", -1)
    assert check_records(batch) == max(timestamp for *_, timestamp in records)


@given(sample_records(), st.sampled_from(CODECS))
def test_a_compacted_topic_takes_no_record_without_a_key(records: list[tuple], codec: int) -> None:
    """Goal: INVALID_RECORD if and only if a key is missing."""
    batch = built(records, codec=codec)
    if all(key is not None for key, *_ in records):
        check_records(batch, keys_required=True)
    else:
        with pytest.raises(Invalid) as caught:
            check_records(batch, keys_required=True)
        assert caught.value.code == ErrorCode.INVALID_RECORD


def test_deltas_with_gaps_are_read_from_the_store_and_refused_from_a_client() -> None:
    """Goal: a compacted batch keeps its offsets; a produced one has every delta in its place."""
    record = b"\x0c\x00\x00\x04\x01\x01\x00"  # offset delta 2
    batch = with_payload(0, record, count=1)
    struct.pack_into(">i", batch, batches.LAST_OFFSET_DELTA_AT, 3)
    recrc(batch)
    assert [r.offset for r in iterate_records(batch)] == [2]
    with pytest.raises(Invalid):
        check_records(batch)


@pytest.mark.parametrize(
    "payload",
    [
        b"",  # no record at all
        b"\x0c\x00\x00\x00\x01\x01",  # one byte short
        b"\x0c\x00\x00\x00\x01\x01\x00\x00",  # one byte over
        b"\x0e\x00\x00\x00\x01\x01\x00\x00",  # the same, inside the record
        b"\x00",  # empty
        b"\x01\x00\x00\x00\x01\x01\x00",  # of negative length
        b"\xff\xff\xff\xff\x0f\x00\x00\x00\x01\x01\x00",  # of length -2^31
        b"\xfe\xff\xff\xff\x0f\x00\x00\x00\x01\x01\x00",  # of length 2^31 - 1
        b"\xff\xff\xff\xff\xff\x0f\x00\x00\x01\x01\x00",  # of a length without end
        b"\x0c\x00\x00\x01\x01\x01\x00",  # offset delta -1
        b"\x0c\x00\x00\x02\x01\x01\x00",  # offset delta above the last
        b"\x0c\x00\x00\x00\x03\x01\x00",  # key of length -2
        b"\x0c\x00\x00\x00\x04\x01\x00",  # key longer than the record
        b"\x0c\x00\x00\x00\x01\x01\x01",  # -1 headers
        b"\x0c\x00\x00\x00\x01\x01\x02",  # a header that is not there
        b"\x14\x00\x00\x00\x01\x01\xfe\xff\xff\xff\x0f",  # 2^31 - 1 headers
        b"\x10\x00\x00\x00\x01\x01\x02\x01\x01",  # a header without a name
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_a_record_that_may_not_be_is_refused(codec: int, payload: bytes) -> None:
    """Goal: hostile lengths and counts end in an error; a good record beside them does not."""
    assert (
        len(list(iterate_records(with_payload(codec, compression.compress(codec, b"\x0c\x00\x00\x00\x01\x01\x00")))))
        == 1
    )
    with pytest.raises(Invalid) as caught:
        list(iterate_records(with_payload(codec, compression.compress(codec, payload))))
    assert caught.value.code == ErrorCode.INVALID_RECORD


def test_a_timestamp_beyond_64_bits_is_refused() -> None:
    """Goal: nothing that could not be written into a response comes out."""
    batch = with_payload(0, b"\x1e\x00" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\x00\x01\x01\x00")
    with pytest.raises(Invalid):
        first_record_at_or_after(batch, 0)


@given(sample_records(max_size=4), st.sampled_from(CODECS), st.data())
def test_damaged_payloads_end_in_an_error_or_in_other_records(
    records: list[tuple], codec: int, data: st.DataObject
) -> None:
    """Goal: whatever lies behind a good CRC, opening it raises `Invalid` or ends; cut short, it always raises."""
    payload = bytearray(built(records, codec=codec)[batches.HEADER_BYTES :])
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(Invalid):
        list(iterate_records(with_payload(codec, bytes(payload[:cut]), len(records))))
    payload[cut] = data.draw(st.integers(0, 255))
    try:
        list(iterate_records(with_payload(codec, bytes(payload), len(records))))
    except Invalid:
        pass


@given(st.sampled_from(CODECS), st.binary(max_size=100), st.integers(1, 3))
def test_random_payloads_never_surprise(codec: int, payload: bytes, count: int) -> None:
    """Goal: as above, from nothing."""
    try:
        list(iterate_records(with_payload(codec, payload, count)))
    except Invalid:
        pass


@pytest.mark.parametrize("codec", CODECS[1:])
def test_opening_is_bounded(codec: int) -> None:
    """Goal: a bound below the records' size is kept, in error and in memory."""
    batch = batches.build_batch([(None, bytes(20_000_000))], codec=codec)
    tracemalloc.start()
    with pytest.raises(Invalid) as caught:
        first_record_at_or_after(batch, 0, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == ErrorCode.MESSAGE_TOO_LARGE
    assert peak < 4_000_000


def test_a_batch_and_a_half_is_not_opened() -> None:
    """Goal: exactly one batch goes in."""
    with pytest.raises(Invalid):
        list(iterate_records(small() + b"\x00"))
    with pytest.raises(Invalid):
        list(iterate_records(small()[:-1]))
