"""OffsetForLeaderEpoch (key 23): where a leader epoch ended (KIP-320).

v3 replica id; v4 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, int64, string


class OffsetForLeaderPartition(Message, frozen=True, kw_only=True):
    partition: Annotated[int, int32("0+")] = 0
    current_leader_epoch: Annotated[int, int32("0+")] = -1
    leader_epoch: Annotated[int, int32("0+")] = 0


class OffsetForLeaderTopic(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[OffsetForLeaderPartition], array("0+")] = ()


class OffsetForLeaderEpochRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    replica_id: Annotated[int, int32("3+")] = -2
    topics: Annotated[Sequence[OffsetForLeaderTopic], array("0+")] = ()


class EpochEndOffset(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    partition: Annotated[int, int32("0+")] = 0
    leader_epoch: Annotated[int, int32("0+")] = -1
    end_offset: Annotated[int, int64("0+")] = -1


class OffsetForLeaderTopicResult(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[EpochEndOffset], array("0+")] = ()


class OffsetForLeaderEpochResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    topics: Annotated[Sequence[OffsetForLeaderTopicResult], array("0+")] = ()
