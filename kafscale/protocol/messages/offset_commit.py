"""OffsetCommit (key 8): store offsets for a group.

v5 no retention time; v6 leader epochs; v7 static members (KIP-345); v8 flexible; v10 topic ids instead of names
(KIP-848).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import ZERO_UUID, Message, array, int16, int32, int64, string, uuid


class OffsetCommitRequestPartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    committed_offset: Annotated[int, int64("0+")] = 0
    committed_leader_epoch: Annotated[int, int32("6+")] = -1
    committed_metadata: Annotated[str | None, string("0+", nullable="0+")] = ""


class OffsetCommitRequestTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-9")] = ""
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    partitions: Annotated[Sequence[OffsetCommitRequestPartition], array("0+")] = ()


class OffsetCommitRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    generation_id_or_member_epoch: Annotated[int, int32("0+")] = -1
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("7+", nullable="7+")] = None
    retention_time_ms: Annotated[int, int64("0-4")] = -1
    topics: Annotated[Sequence[OffsetCommitRequestTopic], array("0+")] = ()


class OffsetCommitResponsePartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0


class OffsetCommitResponseTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-9")] = ""
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    partitions: Annotated[Sequence[OffsetCommitResponsePartition], array("0+")] = ()


class OffsetCommitResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("3+")] = 0
    topics: Annotated[Sequence[OffsetCommitResponseTopic], array("0+")] = ()
