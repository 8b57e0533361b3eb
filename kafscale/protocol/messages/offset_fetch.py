"""OffsetFetch (key 9): the offsets that a group has stored.

v2 null for all topics, and a top-level error; v5 leader epochs; v6 flexible; v7 stable offsets asked for (KIP-447);
v8 several groups at once (KIP-709); v9 member id and epoch (KIP-848); v10 topic ids instead of names.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import ZERO_UUID, Message, array, boolean, int16, int32, int64, string, uuid


class OffsetFetchRequestTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-7")] = ""
    partition_indexes: Annotated[Sequence[int], array("0-7", of="int32")] = ()


class OffsetFetchRequestTopics(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("8-9")] = ""
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    partition_indexes: Annotated[Sequence[int], array("8+", of="int32")] = ()


class OffsetFetchRequestGroup(Message, frozen=True, kw_only=True):
    group_id: Annotated[str, string("8+")] = ""
    member_id: Annotated[str | None, string("9+", nullable="9+")] = None
    member_epoch: Annotated[int, int32("9+")] = -1
    topics: Annotated[Sequence[OffsetFetchRequestTopics] | None, array("8+", nullable="8+")] = ()


class OffsetFetchRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0-7")] = ""
    topics: Annotated[Sequence[OffsetFetchRequestTopic] | None, array("0-7", nullable="2-7")] = ()
    groups: Annotated[Sequence[OffsetFetchRequestGroup], array("8+")] = ()
    require_stable: Annotated[bool, boolean("7+")] = False


class OffsetFetchResponsePartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0-7")] = 0
    committed_offset: Annotated[int, int64("0-7")] = 0
    committed_leader_epoch: Annotated[int, int32("5-7")] = -1
    metadata: Annotated[str | None, string("0-7", nullable="0-7")] = ""
    error_code: Annotated[int, int16("0-7")] = 0


class OffsetFetchResponseTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-7")] = ""
    partitions: Annotated[Sequence[OffsetFetchResponsePartition], array("0-7")] = ()


class OffsetFetchResponsePartitions(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("8+")] = 0
    committed_offset: Annotated[int, int64("8+")] = 0
    committed_leader_epoch: Annotated[int, int32("8+")] = -1
    metadata: Annotated[str | None, string("8+", nullable="8+")] = ""
    error_code: Annotated[int, int16("8+")] = 0


class OffsetFetchResponseTopics(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("8-9")] = ""
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    partitions: Annotated[Sequence[OffsetFetchResponsePartitions], array("8+")] = ()


class OffsetFetchResponseGroup(Message, frozen=True, kw_only=True):
    group_id: Annotated[str, string("8+")] = ""
    topics: Annotated[Sequence[OffsetFetchResponseTopics], array("8+")] = ()
    error_code: Annotated[int, int16("8+")] = 0


class OffsetFetchResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("3+")] = 0
    topics: Annotated[Sequence[OffsetFetchResponseTopic], array("0-7")] = ()
    error_code: Annotated[int, int16("2-7")] = 0
    groups: Annotated[Sequence[OffsetFetchResponseGroup], array("8+")] = ()
