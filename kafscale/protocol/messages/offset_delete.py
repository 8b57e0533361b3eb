"""OffsetDelete (key 47): forget a group's offsets (KIP-496).

Version 0 only, not flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, string


class OffsetDeleteRequestPartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0


class OffsetDeleteRequestTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[OffsetDeleteRequestPartition], array("0+")] = ()


class OffsetDeleteRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    topics: Annotated[Sequence[OffsetDeleteRequestTopic], array("0+")] = ()


class OffsetDeleteResponsePartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0


class OffsetDeleteResponseTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[OffsetDeleteResponsePartition], array("0+")] = ()


class OffsetDeleteResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    error_code: Annotated[int, int16("0+")] = 0
    throttle_time_ms: Annotated[int, int32("0+")] = 0
    topics: Annotated[Sequence[OffsetDeleteResponseTopic], array("0+")] = ()
