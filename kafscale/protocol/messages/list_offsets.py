"""ListOffsets (key 2): offsets by timestamp, and by the special timestamps -1 (latest), -2 (earliest), -3 (largest
timestamp).

v1 one offset a partition; v2 isolation level and throttling; v4 leader epochs; v6 flexible; v7 and up more special
timestamps; v10 a timeout (KIP-1075).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, int64, string


class ListOffsetsPartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    current_leader_epoch: Annotated[int, int32("4+")] = -1
    timestamp: Annotated[int, int64("0+")] = 0


class ListOffsetsTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[ListOffsetsPartition], array("0+")] = ()


class ListOffsetsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    replica_id: Annotated[int, int32("0+")] = 0
    isolation_level: Annotated[int, int8("2+")] = 0
    topics: Annotated[Sequence[ListOffsetsTopic], array("0+")] = ()
    timeout_ms: Annotated[int, int32("10+")] = 0


class ListOffsetsPartitionResponse(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    timestamp: Annotated[int, int64("0+")] = -1
    offset: Annotated[int, int64("0+")] = -1
    leader_epoch: Annotated[int, int32("4+")] = -1


class ListOffsetsTopicResponse(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[ListOffsetsPartitionResponse], array("0+")] = ()


class ListOffsetsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("2+")] = 0
    topics: Annotated[Sequence[ListOffsetsTopicResponse], array("0+")] = ()
