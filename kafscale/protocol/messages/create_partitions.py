"""CreatePartitions (key 37): give topics more partitions.

v2 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int16, int32, string


class CreatePartitionsAssignment(Message, frozen=True, kw_only=True):
    broker_ids: Annotated[Sequence[int], array("0+", of="int32")] = ()


class CreatePartitionsTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    count: Annotated[int, int32("0+")] = 0
    assignments: Annotated[Sequence[CreatePartitionsAssignment] | None, array("0+", nullable="0+")] = ()


class CreatePartitionsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[CreatePartitionsTopic], array("0+")] = ()
    timeout_ms: Annotated[int, int32("0+")] = 0
    validate_only: Annotated[bool, boolean("0+")] = False


class CreatePartitionsTopicResult(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = None


class CreatePartitionsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    results: Annotated[Sequence[CreatePartitionsTopicResult], array("0+")] = ()
