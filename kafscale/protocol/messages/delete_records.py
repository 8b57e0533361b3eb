"""DeleteRecords (key 21): move a partition's log start offset up.

v2 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, int64, string


class DeleteRecordsPartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    offset: Annotated[int, int64("0+")] = 0


class DeleteRecordsTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[DeleteRecordsPartition], array("0+")] = ()


class DeleteRecordsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[DeleteRecordsTopic], array("0+")] = ()
    timeout_ms: Annotated[int, int32("0+")] = 0


class DeleteRecordsPartitionResult(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    low_watermark: Annotated[int, int64("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0


class DeleteRecordsTopicResult(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[DeleteRecordsPartitionResult], array("0+")] = ()


class DeleteRecordsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    topics: Annotated[Sequence[DeleteRecordsTopicResult], array("0+")] = ()
