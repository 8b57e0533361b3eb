"""Goal: bytes from a stranger give a message or a ProtocolError: nothing else raised, little allocated, no wait."""

from __future__ import annotations

import itertools
import struct
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS, Api, ApiKey, decode_request
from kafscale.protocol.compiler import decoder
from kafscale.protocol.fetch import parse_fetch
from kafscale.protocol.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.produce import parse_produce
from kafscale.protocol.schema import Message, fields
from kafscale.protocol.wire import MAX_ELEMENTS, uvarint
from tests.unit.protocol.declared import every_message, title
from tests.unit.protocol.frames import damaged, decode, encode, few

EVERY = list(every_message())
LARGEST_INT32 = b"\x7f\xff\xff\xff"
LARGEST_VARINT = b"\xff\xff\xff\xff\x07"
ENDLESS_VARINT = b"\xff\xff\xff\xff\xff\xff"
MINUS_TWO = b"\xff\xff\xff\xfe"


def filled(message: type[Message], version: int, counter: Any = None) -> Any:
    """A message with every field of the version set, arrays with one element."""
    counter = counter or itertools.count(1)
    values: dict[str, Any] = {}
    for field in fields(message):
        if version not in field.wire.versions:
            continue
        n = next(counter)
        primitives = {
            "bool": True,
            "string": f"text{n}",
            "bytes": b"bytes",
            "records": b"records",
            "uuid": bytes([n]) * 16,
        }
        if field.wire.kind == "array":
            inner = filled(field.message, version, counter) if field.message else primitives.get(field.wire.of or "", n)
            values[field.name] = (inner,)
        elif field.message is not None:
            values[field.name] = filled(field.message, version, counter)
        else:
            values[field.name] = primitives.get(field.wire.kind, n)
    return message(**values)


@pytest.mark.parametrize("parameters", EVERY, ids=title)
def test_truncation_and_excess(parameters: tuple[Api, int, type[Message]]) -> None:
    """Cut at any byte, with the rest still lying behind it or not: a ProtocolError. So is a byte too many in a
    response, while behind a request it is ignored, as by Kafka."""
    api, version, kind = parameters
    raw = encode(api, version, filled(kind, version))
    read = decoder(kind, version, api.is_flexible(version))
    for end in range(len(raw)):
        with pytest.raises(ProtocolError):
            read(raw, 0, end)
        with pytest.raises(ProtocolError):
            read(raw[:end], 0, end)
    for excess in (b"\0", b"\1", b"\0" * 100):
        if kind is api.request:
            assert decode(api, version, kind, raw + excess) == decode(api, version, kind, raw)
            continue
        with pytest.raises(ProtocolError, match="left over"):
            decode(api, version, kind, raw + excess)


@pytest.mark.parametrize("parameters", EVERY, ids=title)
def test_absurd_lengths(parameters: tuple[Api, int, type[Message]]) -> None:
    """2^31-1, -2 or an endless varint written over any place of a message: a message or a ProtocolError."""
    api, version, kind = parameters
    raw = encode(api, version, filled(kind, version))
    for absurd in (LARGEST_VARINT, ENDLESS_VARINT) if api.is_flexible(version) else (LARGEST_INT32, MINUS_TWO):
        for at in range(len(raw)):
            try:
                decode(api, version, kind, raw[:at] + absurd + raw[at + len(absurd) :])
                decode(api, version, kind, raw[:at] + absurd + raw[at:])
            except ProtocolError:
                continue


@pytest.mark.parametrize("parameters", [p for p in EVERY if p[2] is p[0].request], ids=title)
def test_damaged_and_random_requests(parameters: tuple[Api, int, type[Message]]) -> None:
    """Bytes changed at random, and bytes that are random altogether: a message or a ProtocolError."""
    api, version, kind = parameters
    raw = encode(api, version, filled(kind, version))

    @few(25)
    @given(damaged(raw) | st.binary(max_size=60))
    def check(hostile: bytes) -> None:
        try:
            decode_request(api, version, hostile, 0, len(hostile))
        except ProtocolError:
            pass

    check()


def test_a_huge_count_allocates_nothing() -> None:
    """A tiny frame that speaks of 2^31-1 elements is refused before memory is taken for one of them."""
    frames = [
        (APIS[ApiKey.METADATA], 8, LARGEST_INT32),
        (APIS[ApiKey.METADATA], 12, LARGEST_VARINT),
        (APIS[ApiKey.DESCRIBE_GROUPS], 5, LARGEST_VARINT),
    ]
    for api, version, raw in frames:
        decoder(api.request, version, api.is_flexible(version))
        tracemalloc.start()
        with pytest.raises(ProtocolError, match="says length"):
            decode_request(api, version, raw, 0, len(raw))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000


def test_a_count_is_checked_against_the_frame_not_the_buffer() -> None:
    """A count that the allowance would let pass is refused where the frame can't hold it, whatever lies behind it."""
    count, legacy = uvarint(500_001), struct.pack(">i", 500_000)
    behind = bytes(20_000_000)
    cases = [
        (APIS[ApiKey.METADATA], 12, count, "topics says length 500000 where 0"),
        (APIS[ApiKey.PRODUCE], 9, b"\0" + bytes(6) + count, "topic_data says length 500000 where 0"),
        (APIS[ApiKey.PRODUCE], 9, b"\0" + bytes(6) + b"\x02\x01" + count, "partition_data says length 500000 where 0"),
        (APIS[ApiKey.PRODUCE], 8, b"\xff\xff" + bytes(6) + legacy, "topic_data says length 500000 where 0"),
        (APIS[ApiKey.FETCH], 12, bytes(25) + count, "topics says length 500000 where 0"),
        (APIS[ApiKey.FETCH], 12, bytes(25) + b"\x02\x01" + count, "partitions says length 500000 where 0"),
        (APIS[ApiKey.FETCH], 11, bytes(25) + legacy, "topics says length 500000 where 0"),
    ]
    by_hand = {ApiKey.PRODUCE: parse_produce, ApiKey.FETCH: parse_fetch}
    for api, version, raw, reason in cases:
        with pytest.raises(ProtocolError, match=reason):
            decode_request(api, version, raw + behind, 0, len(raw))
        if api.key in by_hand:
            with pytest.raises(ProtocolError, match=reason):
                by_hand[api.key](version, raw + behind, 0, len(raw))


def test_more_elements_than_allowed() -> None:
    """Elements of a byte or two may not fill memory: a message has so many and no more, nested ones included."""
    api = APIS[ApiKey.DESCRIBE_GROUPS]
    most = uvarint(MAX_ELEMENTS + 1) + b"\x01" * MAX_ELEMENTS + b"\0\0"
    assert len(decode_request(api, 5, most, 0, len(most)).groups) == MAX_ELEMENTS
    more = uvarint(MAX_ELEMENTS + 2) + b"\x01" * (MAX_ELEMENTS + 1) + b"\0\0"
    with pytest.raises(ProtocolError, match="groups"):
        decode_request(api, 5, more, 0, len(more))

    # 600,000 topics with one partition each are 1,200,000 elements.
    topics = 600_000
    api = APIS[ApiKey.PRODUCE]
    nested = b"\0" + struct.pack(">hi", 1, 0) + uvarint(topics + 1)
    nested += (b"\x01\x02" + struct.pack(">iB", 0, 0) + b"\0\0") * topics + b"\0"
    with pytest.raises(ProtocolError, match="partition_data"):
        decode_request(api, 9, nested, 0, len(nested))
    with pytest.raises(ProtocolError, match="partition_data"):
        parse_produce(9, nested, 0, len(nested))


def test_time_grows_with_size_alone() -> None:
    """Ten times the elements take about ten times as long, flat and nested: no quadratic path."""

    def flat(count: int) -> Message:
        partitions = [ListOffsetsPartition(partition_index=i) for i in range(count)]
        return ListOffsetsRequest(topics=[ListOffsetsTopic(name="t", partitions=partitions)])

    def nested(count: int) -> Message:
        partition = DeleteRecordsPartition(partition_index=0)
        return DeleteRecordsRequest(topics=[DeleteRecordsTopic(name="t", partitions=[partition]) for _ in range(count)])

    cases = [(APIS[ApiKey.LIST_OFFSETS], 6, flat), (APIS[ApiKey.DELETE_RECORDS], 2, nested)]
    for api, version, make in cases:
        seconds = {}
        for count in (10_000, 100_000):
            raw = encode(api, version, make(count))
            tries = []
            for _ in range(3):
                begin = time.process_time()
                decode_request(api, version, raw, 0, len(raw))
                tries.append(time.process_time() - begin)
            seconds[count] = min(tries)
        assert seconds[100_000] < 40 * seconds[10_000]  # a quadratic path would take a hundred times as long


def test_strings_must_be_utf8() -> None:
    """A name that is no UTF-8 is refused, not guessed at."""
    api = APIS[ApiKey.METADATA]
    raw = struct.pack(">ih", 1, 2) + b"\xff\xfe"
    with pytest.raises(ProtocolError, match="UTF-8"):
        decode_request(api, 0, raw, 0, len(raw))


def test_null_where_none_is_allowed() -> None:
    """Null topics mean all topics from v1 on and are an error in v0; so for a null string in either encoding."""
    metadata = APIS[ApiKey.METADATA]
    null = struct.pack(">i", -1)
    assert decode_request(metadata, 1, null, 0, 4).topics is None
    with pytest.raises(ProtocolError, match="topics says length -1"):
        decode_request(metadata, 0, null, 0, 4)
    heartbeat = APIS[ApiKey.HEARTBEAT]
    with pytest.raises(ProtocolError, match="group_id says length -1"):
        decode_request(heartbeat, 4, b"\0" * 9, 0, 9)


def test_a_string_longer_than_kafka_allows() -> None:
    """A compact string may say more than 32,767 bytes; Kafka refuses it, and so do we."""
    api = APIS[ApiKey.SASL_HANDSHAKE]
    assert not api.is_flexible(1)
    group = APIS[ApiKey.DELETE_GROUPS]
    for size, good in ((32_767, True), (32_768, False)):
        raw = b"\x02" + uvarint(size + 1) + b"g" * size + b"\0"
        if good:
            assert decode_request(group, 2, raw, 0, len(raw)).groups_names == ("g" * size,)
        else:
            with pytest.raises(ProtocolError, match="says length 32768"):
                decode_request(group, 2, raw, 0, len(raw))
    too_long = uvarint(32_769) + b"t" * 32_768
    with pytest.raises(ProtocolError, match="says length 32768"):
        parse_produce(9, too_long + bytes(10), 0, len(too_long) + 10)
    with pytest.raises(ProtocolError, match="says length 32768"):
        parse_produce(9, bytes(7) + b"\x02" + too_long + bytes(10), 0, len(too_long) + 18)
    with pytest.raises(ProtocolError, match="says length 32768"):
        parse_fetch(12, bytes(25) + b"\x02" + too_long + bytes(10), 0, len(too_long) + 36)
