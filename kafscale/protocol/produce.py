"""Produce by hand: the request parsed into one flat list, the answer packed from another.

The hot path of a broker that writes. It must say the same as the codec compiled from `messages/produce.py` for every
sequence of bytes; a property test holds it to that. Knows the wire format, nothing of logs or offsets.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from kafscale.errors import ProtocolError
from kafscale.protocol.answers import (
    Leader,
    Node,
    Topic,
    compact_string,
    compact_topic,
    legacy_string,
    node_endpoints_tags,
    runs_by_topic,
)
from kafscale.protocol.schema import Buffer
from kafscale.protocol.wire import MAX_ELEMENTS, MAX_STRING_BYTES, read_uvarint_tail, skip_tags, uvarint

FLEXIBLE_FROM: Final = 9
TOPIC_IDS_FROM: Final = 13

ProduceResult: TypeAlias = tuple[Topic, int, int, int, int, int, str | None, Leader | None]
"""(topic, partition, error code, base offset, log append time in ms, log start offset, error message, leader)"""


class ProduceRequestView(msgspec.Struct, gc=False):
    """A Produce request. `partitions` holds (topic, index, records) as sent; records are slices of the frame."""

    transactional_id: str | None
    acks: int
    timeout_ms: int
    partitions: list[tuple[Topic, int, memoryview | None]]


def parse_produce(version: int, buffer: Buffer, position: int, end: int) -> ProduceRequestView:
    """The request whose body is exactly `buffer[position:end]`; ProtocolError where it is none.

    Topics are names, from v13 on 16-byte ids. A topic or partition that is sent twice is there twice.
    """
    if not 3 <= version <= 13:
        raise ProtocolError(f"Produce v{version} is not one of 3 to 13")
    try:
        if version >= FLEXIBLE_FROM:
            return _parse_flexible(buffer, position, end, version >= TOPIC_IDS_FROM)
        return _parse_legacy(buffer, position, end)
    except (struct.error, IndexError):
        raise ProtocolError(f"ProduceRequest v{version}: the message ends early") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"ProduceRequest v{version}: a string is not UTF-8") from None


_acks_timeout_count: Final = struct.Struct(">hiB").unpack_from
_index_length: Final = struct.Struct(">iB").unpack_from
_id_count: Final = struct.Struct(">16sB").unpack_from


def _parse_flexible(buffer: Buffer, at: int, end: int, ids: bool) -> ProduceRequestView:
    view = memoryview(buffer)
    budget = MAX_ELEMENTS
    transactional_id = None
    n = buffer[at]
    at += 1
    if n > 127:
        # May be zero in more bytes than it takes.
        n, at = read_uvarint_tail(buffer, at, n)
    if n:
        n -= 1
        if n > end - at or n > MAX_STRING_BYTES:
            raise _bad_length("transactional_id", n, end - at)
        transactional_id = str(view[at : at + n], "utf-8")
        at += n
    acks, timeout_ms, topics = _acks_timeout_count(buffer, at)
    at += 7
    if topics > 127:
        topics, at = read_uvarint_tail(buffer, at, topics)
    topics -= 1
    if topics < 0 or topics * (18 if ids else 3) > end - at or topics > budget:
        raise _bad_length("topic_data", topics, end - at)
    budget -= topics
    partitions: list[tuple[Topic, int, memoryview | None]] = []
    topic: Topic
    for _ in range(topics):
        if ids:
            topic, count = _id_count(buffer, at)
            at += 17
        else:
            n = buffer[at]
            at += 1
            if n > 127:
                n, at = read_uvarint_tail(buffer, at, n)
            n -= 1
            if n < 0 or n > end - at or n > MAX_STRING_BYTES:
                raise _bad_length("topic_data.name", n, end - at)
            topic = str(view[at : at + n], "utf-8")
            at += n
            count = buffer[at]
            at += 1
        if count > 127:
            count, at = read_uvarint_tail(buffer, at, count)
        count -= 1
        if count < 0 or count * 6 > end - at or count > budget:
            raise _bad_length("topic_data.partition_data", count, end - at)
        budget -= count
        for _ in range(count):
            index, n = _index_length(buffer, at)
            at += 5
            if n > 127:
                n, at = read_uvarint_tail(buffer, at, n)
            n -= 1
            if n > end - at:
                raise _bad_length("topic_data.partition_data.records", n, end - at)
            if n < 0:
                partitions.append((topic, index, None))
            else:
                partitions.append((topic, index, view[at : at + n]))
                at += n
            n = buffer[at]
            at += 1
            if n:
                at = skip_tags(buffer, at, end, n)
        n = buffer[at]
        at += 1
        if n:
            at = skip_tags(buffer, at, end, n)
    n = buffer[at]
    at += 1
    if n:
        at = skip_tags(buffer, at, end, n)
    if at > end:
        raise _bad_end(end - at)
    return ProduceRequestView(transactional_id, acks, timeout_ms, partitions)


_int16: Final = struct.Struct(">h").unpack_from
_int32: Final = struct.Struct(">i").unpack_from
_acks_timeout_count_legacy: Final = struct.Struct(">hii").unpack_from
_two_int32: Final = struct.Struct(">ii").unpack_from


def _parse_legacy(buffer: Buffer, at: int, end: int) -> ProduceRequestView:
    view = memoryview(buffer)
    budget = MAX_ELEMENTS
    transactional_id = None
    (n,) = _int16(buffer, at)
    at += 2
    if n != -1:
        if n < 0 or n > end - at:
            raise _bad_length("transactional_id", n, end - at)
        transactional_id = str(view[at : at + n], "utf-8")
        at += n
    acks, timeout_ms, topics = _acks_timeout_count_legacy(buffer, at)
    at += 10
    if topics < 0 or topics * 6 > end - at or topics > budget:
        raise _bad_length("topic_data", topics, end - at)
    budget -= topics
    partitions: list[tuple[Topic, int, memoryview | None]] = []
    for _ in range(topics):
        (n,) = _int16(buffer, at)
        at += 2
        if n < 0 or n > end - at:
            raise _bad_length("topic_data.name", n, end - at)
        topic = str(view[at : at + n], "utf-8")
        at += n
        (count,) = _int32(buffer, at)
        at += 4
        if count < 0 or count * 8 > end - at or count > budget:
            raise _bad_length("topic_data.partition_data", count, end - at)
        budget -= count
        for _ in range(count):
            index, n = _two_int32(buffer, at)
            at += 8
            if n < -1 or n > end - at:
                raise _bad_length("topic_data.partition_data.records", n, end - at)
            if n < 0:
                partitions.append((topic, index, None))
            else:
                partitions.append((topic, index, view[at : at + n]))
                at += n
    if at > end:
        raise _bad_end(end - at)
    return ProduceRequestView(transactional_id, acks, timeout_ms, partitions)


def _bad_length(path: str, length: int, left: int) -> ProtocolError:
    return ProtocolError(f"ProduceRequest: {path} says length {length} where {left} bytes are left")


def _bad_end(left: int) -> ProtocolError:
    return ProtocolError(f"ProduceRequest: the message ends {-left} bytes early")


def encode_produce_response(
    version: int,
    correlation_id: int,
    results: Sequence[ProduceResult],
    throttle_time_ms: int = 0,
    nodes: Sequence[Node] = (),
) -> bytes:
    """A whole answer, size and header included. Results of one topic that stand together share an entry.

    What the version lacks is left out: log start offset before v5, message before v8, leader and `nodes` (KIP-951)
    before v10.
    """
    if version >= FLEXIBLE_FROM:
        if len(results) == 1 and not nodes:
            topic, index, error, base, appended, start, message, leader = results[0]
            if message is None and leader is None:
                raw = topic.encode() if isinstance(topic, str) else topic
                if len(raw) < 127:
                    return _answer_to_one(version >= TOPIC_IDS_FROM, len(raw))(
                        correlation_id, raw, index, error, base, appended, start, throttle_time_ms
                    )
        body = _encode_flexible(version, results, throttle_time_ms, nodes)
        return b"".join((_size_correlation_tags(len(body) + 5, correlation_id), body))
    body = _encode_legacy(version, results, throttle_time_ms)
    return b"".join((_size_correlation(len(body) + 4, correlation_id), body))


_size_correlation: Final = struct.Struct(">ii").pack
_size_correlation_tags: Final = struct.Struct(">iix").pack
_count_throttle: Final = struct.Struct(">i").pack
_flexible_partition: Final = struct.Struct(">ihqqqB").pack
_flexible_partition_plain: Final = struct.Struct(">ihqqqBxx").pack
_leader_tag: Final = struct.Struct(">BBBiix").pack
_legacy_partitions: Final = {
    version: struct.Struct(">ihqq" if version < 5 else ">ihqqq" if version < 8 else ">ihqqqih").pack
    for version in range(3, FLEXIBLE_FROM)
}


@functools.cache
def _answer_to_one(ids: bool, length: int) -> Callable[..., bytes]:
    """A function that packs the commonest answer, one partition and nothing special, in one go.

    One array entry is 2 on the wire (compact), an empty array 1, a null string 0; `length` is the topic's, below 127.
    """
    topic = f"{length}s" if ids else f"B{length}s"
    pack = struct.Struct(f">iixB{topic}BihqqqBxxxix").pack
    size = struct.calcsize(f">ixB{topic}BihqqqBxxxix")

    if ids:

        def answer(
            correlation: int, raw: bytes, index: int, error: int, base: int, appended: int, start: int, throttle: int
        ) -> bytes:
            return pack(size, correlation, 2, raw, 2, index, error, base, appended, start, 1, throttle)

    else:

        def answer(
            correlation: int, raw: bytes, index: int, error: int, base: int, appended: int, start: int, throttle: int
        ) -> bytes:
            return pack(size, correlation, 2, length + 1, raw, 2, index, error, base, appended, start, 1, throttle)

    return answer


def encoder_of_one_result(version: int, topic: Topic, index: int) -> Callable[[int, int, int], bytes]:
    """A function that makes the answer to a good batch for this one partition, stored with the client's timestamps,
    from correlation id, base offset and log start offset."""
    correlation, base, start = 0x0102_0304, 0x1112_1314_1516_1718, 0x2122_2324_2526_2728
    whole = encode_produce_response(version, correlation, [(topic, index, 0, base, -1, start, None, None)])
    # Correlation id and base offset are in every version, the log start offset is not.
    at_base = whole.rindex(base.to_bytes(8, "big"))
    at_start = whole.rfind(start.to_bytes(8, "big"), at_base)
    if at_start < 0:

        def answer_without_start(correlation_id: int, base_offset: int, _: int) -> bytes:
            return pack(head, correlation_id, middle, base_offset, tail)

        head, middle, tail = whole[:4], whole[8:at_base], whole[at_base + 8 :]
        pack = struct.Struct(f">4si{len(middle)}sq{len(tail)}s").pack
        return answer_without_start

    def answer(correlation_id: int, base_offset: int, log_start_offset: int) -> bytes:
        return pack(head, correlation_id, middle, base_offset, appended, log_start_offset, tail)

    head, middle, appended = whole[:4], whole[8:at_base], whole[at_base + 8 : at_start]
    tail = whole[at_start + 8 :]
    pack = struct.Struct(f">4si{len(middle)}sq{len(appended)}sq{len(tail)}s").pack
    return answer


def _encode_flexible(
    version: int, results: Sequence[ProduceResult], throttle_time_ms: int, nodes: Sequence[Node]
) -> bytes:
    runs = runs_by_topic(results)
    parts = [uvarint(len(runs) + 1)]
    add = parts.append
    for run_topic, first, last in runs:
        add(compact_topic(run_topic))
        add(uvarint(last - first + 1))
        for _, index, error, base, appended, start, message, leader in results[first:last]:
            if message is None and leader is None:
                add(_flexible_partition_plain(index, error, base, appended, start, 1))
                continue
            add(_flexible_partition(index, error, base, appended, start, 1))
            add(compact_string(message))
            # Tag 0 is the current leader; one that is unknown is the default, and left out.
            if version < 10 or leader is None or leader == (-1, -1):
                add(b"\0")
            else:
                add(_leader_tag(1, 0, 9, *leader))
        add(b"\0")
    add(_count_throttle(throttle_time_ms))
    add(node_endpoints_tags(nodes) if version >= 10 else b"\0")
    return b"".join(parts)


def _encode_legacy(version: int, results: Sequence[ProduceResult], throttle_time_ms: int) -> bytes:
    pack = _legacy_partitions[version]
    runs = runs_by_topic(results)
    parts = [_count_throttle(len(runs))]
    add = parts.append
    for run_topic, first, last in runs:
        add(legacy_string(run_topic))
        add(_count_throttle(last - first))
        for _, index, error, base, appended, start, message, _leader in results[first:last]:
            if version < 5:
                add(pack(index, error, base, appended))
            elif version < 8:
                add(pack(index, error, base, appended, start))
            else:
                raw = b"" if message is None else message.encode()
                add(pack(index, error, base, appended, start, 0, -1 if message is None else len(raw)))
                add(raw)
    add(_count_throttle(throttle_time_ms))
    return b"".join(parts)
