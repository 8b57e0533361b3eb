"""Goal: Produce by hand says what the compiled codec says, for good bytes and bad, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS, ApiKey, encode_response
from kafscale.protocol.messages.produce import (
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
    TopicProduceResponse,
)
from kafscale.protocol.produce import (
    ProduceRequestView,
    encode_produce_response,
    encoder_of_one_result,
    parse_produce,
)
from tests.unit.protocol.declared import messages
from tests.unit.protocol.frames import damaged, decode, encode, few

API = APIS[ApiKey.PRODUCE]
VERSIONS = range(API.min_version, API.max_version + 1)

int16s = st.integers(-(2**15), 2**15 - 1)
int32s = st.integers(-(2**31), 2**31 - 1)
int64s = st.integers(-(2**63), 2**63 - 1)
strings = st.text(max_size=5) | st.integers(120, 300).map("x".__mul__)


def view_of(version: int, message: ProduceRequest) -> ProduceRequestView:
    """What the hand-written parser should make of `message`."""
    return ProduceRequestView(
        message.transactional_id,
        message.acks,
        message.timeout_ms,
        [
            (topic.topic_id if version >= 13 else topic.name, partition.index, partition.records)  # type: ignore[misc]
            for topic in message.topic_data
            for partition in topic.partition_data
        ],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_request_is_what_the_compiled_codec_reads(version: int) -> None:
    """Random requests, in the midst of a larger buffer, are parsed to the same values."""

    @few(60)
    @given(messages(ProduceRequest, version), st.binary(max_size=3), st.binary(max_size=3))
    def check(message: ProduceRequest, before: bytes, after: bytes) -> None:
        raw = encode(API, version, message)
        buffer = memoryview(before + raw + after)
        assert parse_produce(version, buffer, len(before), len(before) + len(raw)) == view_of(version, message)

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_damage_is_met_alike(version: int) -> None:
    """Damaged requests are refused by both parsers, or read alike by both."""

    @few(150)
    @given(messages(ProduceRequest, version).flatmap(lambda m: damaged(encode(API, version, m))), st.binary(max_size=3))
    def check(raw: bytes, after: bytes) -> None:
        try:
            expected: Any = view_of(version, decode(API, version, ProduceRequest, raw))
        except ProtocolError:
            expected = ProtocolError
        try:
            assert parse_produce(version, raw + after, 0, len(raw)) == expected
        except ProtocolError:
            assert expected is ProtocolError

    check()


def test_a_null_written_in_two_bytes() -> None:
    """A length of zero in more bytes than it takes means null too, and moves nothing."""
    raw = b"\x80\x00" + b"\xff\xff" + bytes(4) + b"\x01" + b"\x00"
    expected = view_of(13, decode(API, 13, ProduceRequest, raw))
    assert parse_produce(13, raw, 0, len(raw)) == expected
    assert expected.transactional_id is None


def test_records_are_slices_of_the_frame() -> None:
    """Nothing is copied: records change with the buffer that they are a part of."""
    for version in (3, 9, 13):
        request = decode(API, version, ProduceRequest, encode(API, version, _one_partition(b"abc")))
        raw = bytearray(encode(API, version, request))
        view = parse_produce(version, raw, 0, len(raw))
        records = view.partitions[0][2]
        assert records == b"abc"
        raw[raw.index(b"abc")] = ord("x")
        assert records == b"xbc"


def _one_partition(records: bytes) -> ProduceRequest:
    partition = PartitionProduceData(index=1, records=records)
    return ProduceRequest(acks=-1, topic_data=(TopicProduceData(name="t", partition_data=(partition,)),))


@pytest.mark.parametrize("version", [2, 14])
def test_other_versions_are_refused(version: int) -> None:
    """Versions without a message are a ProtocolError, not a guess."""
    with pytest.raises(ProtocolError, match=f"v{version}"):
        parse_produce(version, b"\0" * 100, 0, 100)


def topics(version: int) -> st.SearchStrategy[Any]:
    return st.binary(min_size=16, max_size=16) if version >= 13 else strings


@st.composite
def results(draw: st.DrawFn, version: int) -> list[Any]:
    leaders = st.none() | st.just((-1, -1)) | st.tuples(int32s, int32s)
    names = draw(st.lists(topics(version), min_size=1, max_size=2))
    one = st.tuples(st.sampled_from(names), int32s, int16s, int64s, int64s, int64s, st.none() | strings, leaders)
    plain = st.tuples(st.sampled_from(names), int32s, int16s, int64s, int64s, int64s, st.none(), st.none())
    return draw(st.lists(one | plain, max_size=4))


def message_of(version: int, given_results: list[Any], throttle: int, nodes: list[Any]) -> ProduceResponse:
    """What the hand-written encoder should write, as a message."""
    entries: list[tuple[Any, list[PartitionProduceResponse]]] = []
    for topic, index, error, base, appended, start, text, leader in given_results:
        if not entries or entries[-1][0] != topic:
            entries.append((topic, []))
        node_id, epoch = leader or (-1, -1)
        entries[-1][1].append(
            PartitionProduceResponse(
                index=index,
                error_code=error,
                base_offset=base,
                log_append_time_ms=appended,
                log_start_offset=start,
                error_message=text,
                current_leader=LeaderIdAndEpoch(leader_id=node_id, leader_epoch=epoch),
            )
        )
    return ProduceResponse(
        responses=[
            TopicProduceResponse(topic_id=topic, partition_responses=partitions)
            if version >= 13
            else TopicProduceResponse(name=topic, partition_responses=partitions)
            for topic, partitions in entries
        ],
        throttle_time_ms=throttle,
        node_endpoints=[NodeEndpoint(node_id=n, host=h, port=p, rack=r) for n, h, p, r in nodes],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_answer_is_what_the_compiled_codec_writes(version: int) -> None:
    """Random results give the same bytes, size and header included."""
    node = st.tuples(int32s, strings, int32s, st.none() | strings)

    @few(80)
    @given(results(version), int32s, int32s, st.just([]) | st.lists(node, max_size=2))
    def check(given_results: list[Any], correlation_id: int, throttle: int, nodes: list[Any]) -> None:
        expected = encode_response(API, version, correlation_id, message_of(version, given_results, throttle, nodes))
        assert encode_produce_response(version, correlation_id, given_results, throttle, nodes) == b"".join(expected)

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_encoder_of_one_result_says_the_same(version: int) -> None:
    """Whatever the topic and the numbers, the answer to one good batch is that of the general function."""
    topic = st.binary(min_size=16, max_size=16) if version >= 13 else st.text("abc._-", min_size=1, max_size=249)

    @few(40)
    @given(topic, st.integers(0, 2**31 - 1), int32s, int64s, int64s)
    def check(name: str | bytes, index: int, correlation_id: int, base: int, start: int) -> None:
        expected = encode_produce_response(version, correlation_id, [(name, index, 0, base, -1, start, None, None)])
        assert encoder_of_one_result(version, name, index)(correlation_id, base, start) == expected

    check()
