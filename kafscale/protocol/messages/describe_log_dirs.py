"""DescribeLogDirs (key 35): where partitions lie and how large they are.

v2 flexible; v3 a top-level error; v4 total and usable bytes (KIP-827); v5 cordoned directories (KIP-1066).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int16, int32, int64, string


class DescribableLogDirTopic(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[int], array("0+", of="int32")] = ()


class DescribeLogDirsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[DescribableLogDirTopic] | None, array("0+", nullable="0+")] = ()


class DescribeLogDirsPartition(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    partition_size: Annotated[int, int64("0+")] = 0
    offset_lag: Annotated[int, int64("0+")] = 0
    is_future_key: Annotated[bool, boolean("0+")] = False


class DescribeLogDirsTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    partitions: Annotated[Sequence[DescribeLogDirsPartition], array("0+")] = ()


class DescribeLogDirsResult(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    log_dir: Annotated[str, string("0+")] = ""
    topics: Annotated[Sequence[DescribeLogDirsTopic], array("0+")] = ()
    total_bytes: Annotated[int, int64("4+")] = -1
    usable_bytes: Annotated[int, int64("4+")] = -1
    is_cordoned: Annotated[bool, boolean("5+")] = False


class DescribeLogDirsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("3+")] = 0
    results: Annotated[Sequence[DescribeLogDirsResult], array("0+")] = ()
