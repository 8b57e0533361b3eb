"""Fetch by hand: the request parsed into one flat list, the answer laid out around record buffers that are not copied.

The hot path of a broker that is read. It must say the same as the codec compiled from `messages/fetch.py` for every
sequence of bytes; a property test holds it to that. Requests with tagged fields, which only followers send, are left
to that codec. Knows the wire format, nothing of logs or sessions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from kafscale.errors import ProtocolError
from kafscale.protocol.answers import (
    Leader,
    Node,
    Topic,
    compact_topic,
    legacy_string,
    node_endpoints_tags,
    runs_by_topic,
)
from kafscale.protocol.compiler import decoder
from kafscale.protocol.messages.fetch import FetchRequest
from kafscale.protocol.schema import Buffer
from kafscale.protocol.wire import MAX_ELEMENTS, MAX_STRING_BYTES, read_uvarint_tail, uvarint

FLEXIBLE_FROM: Final = 12
TOPIC_IDS_FROM: Final = 13

FetchPartition: TypeAlias = tuple[Topic, int, int, int, int, int, int]
"""(topic, partition, current leader epoch, fetch offset, last fetched epoch, log start offset, partition max bytes)"""

FetchResult: TypeAlias = tuple[
    Topic, int, int, int, int, int, Leader | None, tuple[int, int] | None, int, Sequence[Buffer], int
]
"""(topic, partition, error code, high watermark, last stable offset, log start offset, leader, diverging (epoch, end
offset), preferred read replica, record buffers, their bytes all together)"""


class FetchRequestView(msgspec.Struct, gc=False):
    """A Fetch request, its partitions flat and in the order sent. -1 stands for what the version lacks.

    `forgotten` holds the (topic, partition)s that leave the session. `session_epoch` is -1 before v7: no session.
    """

    replica_id: int
    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    isolation_level: int
    session_id: int
    session_epoch: int
    partitions: list[FetchPartition]
    forgotten: list[tuple[Topic, int]]
    rack_id: str


class _TagsFound(Exception):
    """The request has tagged fields."""


def parse_fetch(version: int, buffer: Buffer, position: int, end: int) -> FetchRequestView:
    """The request whose body is exactly `buffer[position:end]`; ProtocolError where it is none.

    Topics are names, from v13 on 16-byte ids. A topic or partition that is sent twice is there twice.
    """
    if not 4 <= version <= 18:
        raise ProtocolError(f"Fetch v{version} is not one of 4 to 18")
    try:
        if version >= FLEXIBLE_FROM:
            return _parse_flexible(version, buffer, position, end)
        return _parse_legacy(version, buffer, position, end)
    except _TagsFound:
        return _parse_compiled(version, buffer, position, end)
    except (struct.error, IndexError):
        raise ProtocolError(f"FetchRequest v{version}: the message ends early") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"FetchRequest v{version}: a string is not UTF-8") from None


_head: Final = struct.Struct(">iiibiiB").unpack_from
_id_count: Final = struct.Struct(">16sB").unpack_from
_partition: Final = struct.Struct(">iiqiqiB").unpack_from


def _parse_flexible(version: int, buffer: Buffer, at: int, end: int) -> FetchRequestView:
    budget = MAX_ELEMENTS
    ids = version >= TOPIC_IDS_FROM
    replica_id = -1
    if version < 15:  # KIP-903 made it a tagged field
        (replica_id,) = _int32(buffer, at)
        at += 4
    max_wait_ms, min_bytes, max_bytes, isolation_level, session_id, session_epoch, topics = _head(buffer, at)
    at += 22
    if topics > 127:
        topics, at = read_uvarint_tail(buffer, at, topics)
    topics -= 1
    if topics < 0 or topics * (18 if ids else 3) > end - at or topics > budget:
        raise _bad_length("topics", topics, end - at)
    budget -= topics
    partitions: list[FetchPartition] = []
    for _ in range(topics):
        topic, count, at = _topic_and_count(buffer, at, end, ids)
        if count < 0 or count * 33 > end - at or count > budget:
            raise _bad_length("topics.partitions", count, end - at)
        budget -= count
        for _ in range(count):
            index, leader_epoch, offset, last_epoch, log_start, max_partition_bytes, tags = _partition(buffer, at)
            at += 33
            if tags:
                raise _TagsFound
            partitions.append((topic, index, leader_epoch, offset, last_epoch, log_start, max_partition_bytes))
        if buffer[at]:
            raise _TagsFound
        at += 1
    topics = buffer[at]
    at += 1
    if topics > 127:
        topics, at = read_uvarint_tail(buffer, at, topics)
    topics -= 1
    if topics < 0 or topics * (18 if ids else 3) > end - at or topics > budget:
        raise _bad_length("forgotten_topics_data", topics, end - at)
    budget -= topics
    forgotten: list[tuple[Topic, int]] = []
    for _ in range(topics):
        topic, count, at = _topic_and_count(buffer, at, end, ids)
        if count < 0 or count * 4 > end - at or count > budget:
            raise _bad_length("forgotten_topics_data.partitions", count, end - at)
        budget -= count
        forgotten += [(topic, index) for index in struct.unpack_from(f">{count}i", buffer, at)]
        at += count * 4
        if buffer[at]:
            raise _TagsFound
        at += 1
    rack_id, at = _compact_string(buffer, at, end, "rack_id")
    if buffer[at]:
        raise _TagsFound
    at += 1
    if at > end:
        raise _bad_end(end - at)
    return FetchRequestView(
        replica_id,
        max_wait_ms,
        min_bytes,
        max_bytes,
        isolation_level,
        session_id,
        session_epoch,
        partitions,
        forgotten,
        rack_id,
    )


def _topic_and_count(buffer: Buffer, at: int, end: int, ids: bool) -> tuple[Topic, int, int]:
    """(topic, number of partitions that follow, position), from a flexible version."""
    topic: Topic
    if ids:
        topic, count = _id_count(buffer, at)
        at += 17
    else:
        topic, at = _compact_string(buffer, at, end, "topic")
        count = buffer[at]
        at += 1
    if count > 127:
        count, at = read_uvarint_tail(buffer, at, count)
    return topic, count - 1, at


def _compact_string(buffer: Buffer, at: int, end: int, path: str) -> tuple[str, int]:
    n = buffer[at]
    at += 1
    if n > 127:
        n, at = read_uvarint_tail(buffer, at, n)
    n -= 1
    if n < 0 or n > end - at or n > MAX_STRING_BYTES:
        raise _bad_length(path, n, end - at)
    return str(buffer[at : at + n], "utf-8"), at + n


_int16: Final = struct.Struct(">h").unpack_from
_int32: Final = struct.Struct(">i").unpack_from
_legacy_head: Final = struct.Struct(">iiiib").unpack_from
_session: Final = struct.Struct(">ii").unpack_from
_legacy_partition: Final = {
    version: struct.Struct(">iqi" if version < 5 else ">iqqi" if version < 9 else ">iiqqi")
    for version in range(4, FLEXIBLE_FROM)
}


def _parse_legacy(version: int, buffer: Buffer, at: int, end: int) -> FetchRequestView:
    budget = MAX_ELEMENTS
    replica_id, max_wait_ms, min_bytes, max_bytes, isolation_level = _legacy_head(buffer, at)
    at += 17
    session_id, session_epoch = 0, -1
    if version >= 7:
        session_id, session_epoch = _session(buffer, at)
        at += 8
    partition = _legacy_partition[version]
    unpack, size = partition.unpack_from, partition.size
    (topics,) = _int32(buffer, at)
    at += 4
    if topics < 0 or topics * 6 > end - at or topics > budget:
        raise _bad_length("topics", topics, end - at)
    budget -= topics
    partitions: list[FetchPartition] = []
    for _ in range(topics):
        topic, at = _legacy_string(buffer, at, end, "topics.topic")
        (count,) = _int32(buffer, at)
        at += 4
        if count < 0 or count * size > end - at or count > budget:
            raise _bad_length("topics.partitions", count, end - at)
        budget -= count
        for _ in range(count):
            values = unpack(buffer, at)
            at += size
            if version >= 9:
                index, leader_epoch, offset, log_start, max_partition_bytes = values
                partitions.append((topic, index, leader_epoch, offset, -1, log_start, max_partition_bytes))
            elif version >= 5:
                index, offset, log_start, max_partition_bytes = values
                partitions.append((topic, index, -1, offset, -1, log_start, max_partition_bytes))
            else:
                index, offset, max_partition_bytes = values
                partitions.append((topic, index, -1, offset, -1, -1, max_partition_bytes))
    forgotten: list[tuple[Topic, int]] = []
    if version >= 7:
        (topics,) = _int32(buffer, at)
        at += 4
        if topics < 0 or topics * 6 > end - at or topics > budget:
            raise _bad_length("forgotten_topics_data", topics, end - at)
        budget -= topics
        for _ in range(topics):
            topic, at = _legacy_string(buffer, at, end, "forgotten_topics_data.topic")
            (count,) = _int32(buffer, at)
            at += 4
            if count < 0 or count * 4 > end - at or count > budget:
                raise _bad_length("forgotten_topics_data.partitions", count, end - at)
            budget -= count
            forgotten += [(topic, index) for index in struct.unpack_from(f">{count}i", buffer, at)]
            at += count * 4
    rack_id = ""
    if version >= 11:
        rack_id, at = _legacy_string(buffer, at, end, "rack_id")
    if at > end:
        raise _bad_end(end - at)
    return FetchRequestView(
        replica_id,
        max_wait_ms,
        min_bytes,
        max_bytes,
        isolation_level,
        session_id,
        session_epoch,
        partitions,
        forgotten,
        rack_id,
    )


def _legacy_string(buffer: Buffer, at: int, end: int, path: str) -> tuple[str, int]:
    (n,) = _int16(buffer, at)
    at += 2
    if n < 0 or n > end - at:
        raise _bad_length(path, n, end - at)
    return str(buffer[at : at + n], "utf-8"), at + n


def _parse_compiled(version: int, buffer: Buffer, position: int, end: int) -> FetchRequestView:
    """The same by the compiled codec."""
    message: FetchRequest = decoder(FetchRequest, version, True)(buffer, position, end)
    ids = version >= TOPIC_IDS_FROM
    return FetchRequestView(
        replica_id=message.replica_id if version < 15 else message.replica_state.replica_id,
        max_wait_ms=message.max_wait_ms,
        min_bytes=message.min_bytes,
        max_bytes=message.max_bytes,
        isolation_level=message.isolation_level,
        session_id=message.session_id,
        session_epoch=message.session_epoch,
        partitions=[
            (
                topic.topic_id if ids else topic.topic,
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
        forgotten=[
            (topic.topic_id if ids else topic.topic, index)
            for topic in message.forgotten_topics_data
            for index in topic.partitions
        ],
        rack_id=message.rack_id,
    )


def _bad_length(path: str, length: int, left: int) -> ProtocolError:
    return ProtocolError(f"FetchRequest: {path} says length {length} where {left} bytes are left")


def _bad_end(left: int) -> ProtocolError:
    return ProtocolError(f"FetchRequest: the message ends {-left} bytes early")


def encode_fetch_response(
    version: int,
    correlation_id: int,
    error_code: int,
    session_id: int,
    results: Sequence[FetchResult],
    nodes: Sequence[Node] = (),
    throttle_time_ms: int = 0,
) -> list[Buffer]:
    """A whole answer, size and header included, as buffers to be sent one after the other.

    Record buffers are passed through as they are; what lies between two partitions' records is one small buffer.
    Results of one topic that stand together share an entry. No aborted transactions are named (null). What the version
    lacks is left out: error and session before v7, preferred replica before v11, leader and divergence before v12,
    `nodes` (KIP-951) before v16.
    """
    runs = runs_by_topic(results)
    buffers: list[Buffer] = []
    if version >= FLEXIBLE_FROM:
        parts = [_flexible_top(correlation_id, throttle_time_ms, error_code, session_id), uvarint(len(runs) + 1)]
        _add_flexible(buffers, parts, runs, results)
        parts.append(node_endpoints_tags(nodes) if version >= 16 else b"\0")
    else:
        if version >= 7:
            parts = [_legacy_top(correlation_id, throttle_time_ms, error_code, session_id, len(runs))]
        else:
            parts = [_oldest_top(correlation_id, throttle_time_ms, len(runs))]
        _add_legacy(version, buffers, parts, runs, results)
    if parts:
        buffers.append(b"".join(parts))
    # The first buffer is a few dozen bytes: putting the size before it costs less than a buffer more to send.
    buffers[0] = _pack_int32(sum(map(len, buffers))) + buffers[0]
    return buffers


_pack_int32: Final = struct.Struct(">i").pack
_flexible_top: Final = struct.Struct(">ixihi").pack
_legacy_top: Final = struct.Struct(">iihii").pack
_oldest_top: Final = struct.Struct(">iii").pack
# No aborted transactions: a compact null is 0, an old one -1.
_flexible_result: Final = struct.Struct(">ihqqqxi").pack
_legacy_results: Final = {
    version: struct.Struct(">ihqqii" if version < 5 else ">ihqqqii" if version < 11 else ">ihqqqiii").pack
    for version in range(4, FLEXIBLE_FROM)
}
_diverging_tag: Final = struct.Struct(">BBiqx").pack
_leader_tag: Final = struct.Struct(">BBiix").pack


def _add_flexible(
    buffers: list[Buffer], parts: list[bytes], runs: list[tuple[Topic, int, int]], results: Sequence[FetchResult]
) -> None:
    """Append the topics: full buffers to `buffers`, what is to be joined with what follows to `parts`."""
    for run_topic, first, last in runs:
        parts.append(compact_topic(run_topic))
        parts.append(uvarint(last - first + 1))
        for result in results[first:last]:
            _, index, error, high_watermark, stable, start, leader, diverging, replica, records, length = result
            parts.append(_flexible_result(index, error, high_watermark, stable, start, replica))
            parts.append(uvarint(length + 1))
            if length:
                buffers.append(b"".join(parts))
                buffers += records
                parts.clear()
            if leader is None and diverging is None:
                parts.append(b"\0")
            else:
                parts.append(_result_tags(leader, diverging))
        parts.append(b"\0")


def _result_tags(leader: Leader | None, diverging: tuple[int, int] | None) -> bytes:
    """A partition's tagged fields: 0 where its log diverges, 1 its leader. Defaults, all -1, are left out."""
    tags = []
    if diverging is not None and diverging != (-1, -1):
        tags.append(_diverging_tag(0, 13, *diverging))
    if leader is not None and leader != (-1, -1):
        tags.append(_leader_tag(1, 9, *leader))
    return b"".join((uvarint(len(tags)), *tags))


def _add_legacy(
    version: int,
    buffers: list[Buffer],
    parts: list[bytes],
    runs: list[tuple[Topic, int, int]],
    results: Sequence[FetchResult],
) -> None:
    """The same for versions before the flexible ones."""
    pack = _legacy_results[version]
    for run_topic, first, last in runs:
        parts.append(legacy_string(run_topic))
        parts.append(_pack_int32(last - first))
        for _, index, error, high_watermark, stable, start, _, _, replica, records, length in results[first:last]:
            if version >= 11:
                parts.append(pack(index, error, high_watermark, stable, start, -1, replica, length))
            elif version >= 5:
                parts.append(pack(index, error, high_watermark, stable, start, -1, length))
            else:
                parts.append(pack(index, error, high_watermark, stable, -1, length))
            if length:
                buffers.append(b"".join(parts))
                buffers += records
                parts.clear()
