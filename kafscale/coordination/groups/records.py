"""The records of `__consumer_offsets`, as bytes: keys and values of offset commits and group metadata.

The layouts are Kafka's own (OffsetCommitKey, OffsetCommitValue, GroupMetadataKey, GroupMetadataValue in its
group-coordinator module), so that Kafka's tools can read the topic. Big-endian; every key and value opens with an int16
version. Older versions are read, one is written. Knows nothing of groups' behaviour or of record batches.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgspec import Struct

from kafscale.coordination.groups.events import NO_TOPIC_ID
from kafscale.errors import Corrupt
from kafscale.protocol.wire import uvarint

OFFSET_KEY_VERSION = 1
GROUP_KEY_VERSION = 2
OFFSET_VALUE_VERSION = 3
OFFSET_VALUE_VERSION_WITH_TOPIC_ID = 4
GROUP_VALUE_VERSION = 3

MAX_STRING_BYTES = 32_767
_TOPIC_ID_TAG = 0

_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_OFFSET_HEAD = struct.Struct(">hqi")
_OFFSET_TAIL = struct.Struct(">q")
_GROUP_TAIL = struct.Struct(">qi")
_MEMBER_TIMEOUTS = struct.Struct(">ii")


class OffsetKey(NamedTuple):
    group_id: str
    topic: str
    partition: int


class GroupKey(NamedTuple):
    group_id: str


class OffsetRecord(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A committed offset."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""
    commit_timestamp_ms: int
    topic_id: bytes = NO_TOPIC_ID


class MemberRecord(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    member_id: str
    instance_id: str | None = None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    """Metadata for the chosen protocol only."""
    assignment: bytes


class GroupRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A generation of a group, as it is durable."""

    protocol_type: str
    generation: int
    protocol: str | None = None
    leader: str | None = None
    state_timestamp_ms: int = -1
    members: tuple[MemberRecord, ...] = ()


def offset_key(group_id: str, topic: str, partition: int) -> bytes:
    """OffsetCommitKey version 1."""
    return b"".join(
        (_INT16.pack(OFFSET_KEY_VERSION), _string(group_id), _string(topic), _INT32.pack(partition)),
    )


def group_key(group_id: str) -> bytes:
    """GroupMetadataKey version 2."""
    return _INT16.pack(GROUP_KEY_VERSION) + _string(group_id)


def offset_value(record: OffsetRecord) -> bytes:
    """OffsetCommitValue: version 3, or 4 where the topic's id is known (a tagged field there)."""
    if record.topic_id == NO_TOPIC_ID:
        head = _OFFSET_HEAD.pack(OFFSET_VALUE_VERSION, record.offset, record.leader_epoch)
        return head + _string(record.metadata) + _OFFSET_TAIL.pack(record.commit_timestamp_ms)
    metadata = record.metadata.encode()
    return b"".join(
        (
            _OFFSET_HEAD.pack(OFFSET_VALUE_VERSION_WITH_TOPIC_ID, record.offset, record.leader_epoch),
            uvarint(len(metadata) + 1),
            metadata,
            _OFFSET_TAIL.pack(record.commit_timestamp_ms),
            b"\x01",  # one tagged field
            bytes((_TOPIC_ID_TAG, len(record.topic_id))),
            record.topic_id,
        )
    )


def group_value(record: GroupRecord) -> bytes:
    """GroupMetadataValue version 3."""
    parts = [
        _INT16.pack(GROUP_VALUE_VERSION),
        _string(record.protocol_type),
        _INT32.pack(record.generation),
        _nullable_string(record.protocol),
        _nullable_string(record.leader),
        _GROUP_TAIL.pack(record.state_timestamp_ms, len(record.members)),
    ]
    for member in record.members:
        parts += (
            _string(member.member_id),
            _nullable_string(member.instance_id),
            _string(member.client_id),
            _string(member.client_host),
            _MEMBER_TIMEOUTS.pack(member.rebalance_timeout_ms, member.session_timeout_ms),
            _INT32.pack(len(member.subscription)),
            member.subscription,
            _INT32.pack(len(member.assignment)),
            member.assignment,
        )
    return b"".join(parts)


def read_key(data: bytes) -> OffsetKey | GroupKey:
    """Raises Corrupt for bytes that are no key, and for kinds of record that this version does not know."""
    reader = _Reader(data)
    version = reader.int16()
    key: OffsetKey | GroupKey
    if version in (0, OFFSET_KEY_VERSION):
        key = OffsetKey(reader.string(), reader.string(), reader.int32())
    elif version == GROUP_KEY_VERSION:
        key = GroupKey(reader.string())
    else:
        raise Corrupt(f"a __consumer_offsets key of unknown version {version}")
    reader.end()
    return key


def read_offset_value(data: bytes) -> OffsetRecord:
    """Versions 0-4. Version 1's own expiry time is passed over: retention is the group's. Raises Corrupt."""
    reader = _Reader(data)
    version = reader.int16()
    if not 0 <= version <= OFFSET_VALUE_VERSION_WITH_TOPIC_ID:
        raise Corrupt(f"an OffsetCommitValue of unknown version {version}")
    flexible = version >= OFFSET_VALUE_VERSION_WITH_TOPIC_ID
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= 3 else -1
    metadata = reader.compact_string() if flexible else reader.string()
    commit_timestamp_ms = reader.int64()
    if version == 1:
        reader.int64()
    topic_id = reader.tags().get(_TOPIC_ID_TAG, NO_TOPIC_ID) if flexible else NO_TOPIC_ID
    reader.end()
    if len(topic_id) != len(NO_TOPIC_ID):
        raise Corrupt(f"an OffsetCommitValue with a topic id of {len(topic_id)} bytes")
    return OffsetRecord(
        offset=offset,
        leader_epoch=leader_epoch,
        metadata=metadata,
        commit_timestamp_ms=commit_timestamp_ms,
        topic_id=topic_id,
    )


def read_group_value(data: bytes) -> GroupRecord:
    """Versions 0-3. Raises Corrupt."""
    reader = _Reader(data)
    version = reader.int16()
    if not 0 <= version <= GROUP_VALUE_VERSION:
        raise Corrupt(f"a GroupMetadataValue of unknown version {version}")
    protocol_type = reader.string()
    generation = reader.int32()
    protocol = reader.nullable_string()
    leader = reader.nullable_string()
    state_timestamp_ms = reader.int64() if version >= 2 else -1
    members = tuple(_read_member(reader, version) for _ in range(reader.count()))
    reader.end()
    return GroupRecord(
        protocol_type=protocol_type,
        generation=generation,
        protocol=protocol,
        leader=leader,
        state_timestamp_ms=state_timestamp_ms,
        members=members,
    )


def _read_member(reader: _Reader, version: int) -> MemberRecord:
    member_id = reader.string()
    instance_id = reader.nullable_string() if version >= 3 else None
    client_id = reader.string()
    client_host = reader.string()
    rebalance_timeout_ms = reader.int32() if version >= 1 else -1
    session_timeout_ms = reader.int32()
    return MemberRecord(
        member_id=member_id,
        instance_id=instance_id,
        client_id=client_id,
        client_host=client_host,
        # Version 0 knew one timeout for both.
        rebalance_timeout_ms=rebalance_timeout_ms if version >= 1 else session_timeout_ms,
        session_timeout_ms=session_timeout_ms,
        subscription=reader.sized_bytes(),
        assignment=reader.sized_bytes(),
    )


def subscribed_topics(subscription: bytes) -> frozenset[str] | None:
    """Topics of a consumer's subscription (ConsumerProtocolSubscription, KIP-54 and later); None if it is none."""
    reader = _Reader(subscription)
    try:
        if reader.int16() < 0:
            return None
        return frozenset(reader.string() for _ in range(reader.count()))
    except Corrupt:
        return None


def _string(value: str) -> bytes:
    data = value.encode()
    if len(data) > MAX_STRING_BYTES:
        raise ValueError(f"a string of {len(data)} bytes, at most {MAX_STRING_BYTES} fit")
    return _INT16.pack(len(data)) + data


def _nullable_string(value: str | None) -> bytes:
    return b"\xff\xff" if value is None else _string(value)


class _Reader:
    """Reads one key or value; every step checks that the bytes are there."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _take(self, size: int) -> bytes:
        start = self._position
        if size < 0 or size > len(self._data) - start:
            raise Corrupt(f"a __consumer_offsets record wants {size} bytes at {start} of {len(self._data)}")
        self._position = start + size
        return self._data[start : start + size]

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def int64(self) -> int:
        return int.from_bytes(self._take(8), "big", signed=True)

    def unsigned_varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Corrupt("a __consumer_offsets record with a varint of more than 5 bytes")

    def count(self) -> int:
        """An array's length; no element takes less than two bytes."""
        value = self.int32()
        if not 0 <= value <= (len(self._data) - self._position) // 2:
            raise Corrupt(f"a __consumer_offsets record with an array of {value} elements")
        return value

    def text(self, size: int) -> str:
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise Corrupt("a __consumer_offsets record with a string that is not UTF-8") from error

    def string(self) -> str:
        return self.text(self.int16())

    def nullable_string(self) -> str | None:
        size = self.int16()
        return None if size == -1 else self.text(size)

    def compact_string(self) -> str:
        return self.text(self.unsigned_varint() - 1)

    def sized_bytes(self) -> bytes:
        return self._take(self.int32())

    def tags(self) -> dict[int, bytes]:
        return {self.unsigned_varint(): self._take(self.unsigned_varint()) for _ in range(self.unsigned_varint())}

    def end(self) -> None:
        if self._position != len(self._data):
            raise Corrupt(f"a __consumer_offsets record with {len(self._data) - self._position} bytes too many")
