"""Goal: Fetch by hand says what the compiled codec says, for good bytes and bad, and copies no records."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS, ApiKey, encode_response
from kafscale.protocol.fetch import FetchRequestView, encode_fetch_response, parse_fetch
from kafscale.protocol.messages.fetch import (
    EpochEndOffset,
    FetchableTopicResponse,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchTopic,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionData,
)
from kafscale.protocol.schema import ZERO_UUID
from tests.unit.protocol.declared import messages
from tests.unit.protocol.frames import damaged, decode, encode, few

API = APIS[ApiKey.FETCH]
VERSIONS = range(API.min_version, API.max_version + 1)

int16s = st.integers(-(2**15), 2**15 - 1)
int32s = st.integers(-(2**31), 2**31 - 1)
int64s = st.integers(-(2**63), 2**63 - 1)
strings = st.text(max_size=5) | st.integers(120, 300).map("x".__mul__)
pairs = st.none() | st.just((-1, -1)) | st.tuples(int32s, int32s)


def view_of(version: int, message: FetchRequest) -> FetchRequestView:
    """What the hand-written parser should make of `message`."""
    return FetchRequestView(
        message.replica_id if version < 15 else message.replica_state.replica_id,
        message.max_wait_ms,
        message.min_bytes,
        message.max_bytes,
        message.isolation_level,
        message.session_id,
        message.session_epoch,
        [
            (
                topic.topic_id if version >= 13 else topic.topic,
                partition.partition,
                partition.current_leader_epoch,
                partition.fetch_offset,
                partition.last_fetched_epoch,
                partition.log_start_offset,
                partition.partition_max_bytes,
            )
            for topic in message.topics
            for partition in topic.partitions
        ],
        [
            (topic.topic_id if version >= 13 else topic.topic, index)
            for topic in message.forgotten_topics_data
            for index in topic.partitions
        ],
        message.rack_id,
    )


def without_tags(message: FetchRequest) -> FetchRequest:
    """As consumers send it: the path that is parsed by hand to its end."""
    topics = [
        msgspec.structs.replace(
            topic,
            partitions=[
                msgspec.structs.replace(partition, replica_directory_id=ZERO_UUID, high_watermark=2**63 - 1)
                for partition in topic.partitions
            ],
        )
        for topic in message.topics
    ]
    plain = FetchRequest()
    return msgspec.structs.replace(message, topics=topics, cluster_id=None, replica_state=plain.replica_state)


@pytest.mark.parametrize("version", VERSIONS)
def test_request_is_what_the_compiled_codec_reads(version: int) -> None:
    """Random requests, with tagged fields and without, inside a larger buffer, are parsed to the same values."""
    requests = messages(FetchRequest, version)

    @few(60)
    @given(requests | requests.map(without_tags), st.binary(max_size=3), st.binary(max_size=3))
    def check(message: FetchRequest, before: bytes, after: bytes) -> None:
        raw = encode(API, version, message)
        buffer = memoryview(before + raw + after)
        assert parse_fetch(version, buffer, len(before), len(before) + len(raw)) == view_of(version, message)

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_damage_is_met_alike(version: int) -> None:
    """Damaged requests are refused by both parsers, or read alike by both."""
    requests = messages(FetchRequest, version).map(without_tags)

    @few(100)
    @given(requests.flatmap(lambda m: damaged(encode(API, version, m))), st.binary(max_size=3))
    def check(raw: bytes, after: bytes) -> None:
        try:
            expected: Any = view_of(version, decode(API, version, FetchRequest, raw))
        except ProtocolError:
            expected = ProtocolError
        try:
            assert parse_fetch(version, raw + after, 0, len(raw)) == expected
        except ProtocolError:
            assert expected is ProtocolError

    check()


def test_a_consumers_request_never_takes_the_compiled_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What consumers send has no tagged fields and is parsed by hand to its end, in every version."""
    monkeypatch.setattr("kafscale.protocol.fetch._parse_compiled", None)
    message = FetchRequest(topics=[FetchTopic(topic="t", partitions=[FetchPartition(partition=3, fetch_offset=9)])])
    for version in VERSIONS:
        raw = encode(API, version, message)
        assert parse_fetch(version, raw, 0, len(raw)) == view_of(version, message)


@pytest.mark.parametrize("version", [3, 19])
def test_other_versions_are_refused(version: int) -> None:
    """Versions without a message are a ProtocolError, not a guess."""
    with pytest.raises(ProtocolError, match=f"v{version}"):
        parse_fetch(version, b"\0" * 100, 0, 100)


@st.composite
def results(draw: st.DrawFn, version: int) -> list[Any]:
    ids = st.binary(min_size=16, max_size=16)
    names = draw(st.lists(ids if version >= 13 else strings, min_size=1, max_size=2))
    buffers = st.lists(st.binary(min_size=1, max_size=200), max_size=3)
    divergences = st.none() | st.just((-1, -1)) | st.tuples(int32s, int64s)
    numbers = st.tuples(st.sampled_from(names), int32s, int16s, int64s, int64s, int64s)
    one = st.tuples(numbers, pairs, divergences, int32s, buffers).map(
        lambda t: (*t[0], t[1], t[2], t[3], t[4], sum(map(len, t[4])))
    )
    return draw(st.lists(one, max_size=4))


def message_of(
    given_results: list[Any], version: int, error: int, session: int, throttle: int, nodes: list[Any]
) -> FetchResponse:
    """What the hand-written encoder should write, as a message."""
    entries: list[tuple[Any, list[PartitionData]]] = []
    for topic, index, code, high, stable, start, leader, diverging, replica, records, _ in given_results:
        if not entries or entries[-1][0] != topic:
            entries.append((topic, []))
        node_id, leader_epoch = leader or (-1, -1)
        epoch, end_offset = diverging or (-1, -1)
        entries[-1][1].append(
            PartitionData(
                partition_index=index,
                error_code=code,
                high_watermark=high,
                last_stable_offset=stable,
                log_start_offset=start,
                current_leader=LeaderIdAndEpoch(leader_id=node_id, leader_epoch=leader_epoch),
                diverging_epoch=EpochEndOffset(epoch=epoch, end_offset=end_offset),
                aborted_transactions=None,
                preferred_read_replica=replica,
                records=records,
            )
        )
    return FetchResponse(
        throttle_time_ms=throttle,
        error_code=error,
        session_id=session,
        responses=[
            FetchableTopicResponse(topic_id=topic, partitions=partitions)
            if version >= 13
            else FetchableTopicResponse(topic=topic, partitions=partitions)
            for topic, partitions in entries
        ],
        node_endpoints=[NodeEndpoint(node_id=n, host=h, port=p, rack=r) for n, h, p, r in nodes],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_answer_is_what_the_compiled_codec_writes(version: int) -> None:
    """Random results give the same bytes, size and header included."""
    node = st.tuples(int32s, strings, int32s, st.none() | strings)

    @few(60)
    @given(results(version), int32s, int16s, int32s, int32s, st.just([]) | st.lists(node, max_size=2))
    def check(
        given_results: list[Any], correlation_id: int, error: int, session: int, throttle: int, nodes: list[Any]
    ) -> None:
        message = message_of(given_results, version, error, session, throttle, nodes)
        expected = encode_response(API, version, correlation_id, message)
        written = encode_fetch_response(version, correlation_id, error, session, given_results, nodes, throttle)
        assert b"".join(written) == b"".join(expected)

    check()


@pytest.mark.parametrize("version", [4, 11, 12, 18])
def test_record_buffers_are_passed_through(version: int) -> None:
    """The very objects come out, with one buffer between two partitions' records and one at each end."""
    topic: Any = bytes(16) if version >= 13 else "t"
    chunks = [bytearray(b"a" * 10), memoryview(b"b" * 20), b"c" * 30]
    given_results: list[Any] = [
        (topic, 0, 0, 1, 1, 0, None, None, -1, chunks[:2], 30),
        (topic, 1, 0, 1, 1, 0, None, None, -1, chunks[2:], 30),
        (topic, 2, 0, 1, 1, 0, None, None, -1, [], 0),
    ]
    written = encode_fetch_response(version, 7, 0, 0, given_results)
    passed = [buffer for buffer in written if any(buffer is chunk for chunk in chunks)]
    assert [id(buffer) for buffer in passed] == [id(chunk) for chunk in chunks]
    assert len(written) == len(chunks) + 3
