"""DeleteRecords (key 21), v0-2: raise partitions' log start offsets; answered when that is durable.

Offset -1 stands for the high watermark. Records of internal topics can't be deleted, as in Kafka. The client's
time-out is not used: the work is one flush, whose own limits apply.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from kafscale.coordination.cluster import INTERNAL_TOPICS
from kafscale.errors import Fenced, KafscaleError
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_records import (
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
)
from kafscale.security.needs import DELETE_TOPIC
from kafscale.storage.partition import PartitionLog
from workers.context import Context, Request
from workers.errors import code_of
from workers.partitions import served_partition

UNKNOWN_LOW_WATERMARK: Final = -1
# Partitions that wait for a flush at the same time; they share it.
AT_ONCE_MAX: Final = 1000

Result = DeleteRecordsPartitionResult


async def handle(context: Context, request: Request, message: DeleteRecordsRequest) -> DeleteRecordsResponse:
    wanted = [(topic.name, p.partition_index, p.offset) for topic in message.topics for p in topic.partitions]
    named = Counter((topic, index) for topic, index, _ in wanted)
    results: list[Result] = []
    names = {topic.name for topic in message.topics}
    denied = {name for name in names if not request.access.allows(DELETE_TOPIC, name)}
    for first in range(0, len(wanted), AT_ONCE_MAX):
        some = wanted[first : first + AT_ONCE_MAX]
        results += await asyncio.gather(
            *(_delete(context, *item, named[item[:2]] > 1, item[0] in denied) for item in some)
        )
    of_partitions = iter(results)
    return DeleteRecordsResponse(
        topics=[
            DeleteRecordsTopicResult(name=topic.name, partitions=[next(of_partitions) for _ in topic.partitions])
            for topic in message.topics
        ]
    )


def failed(message: DeleteRecordsRequest, code: int, text: str) -> DeleteRecordsResponse:
    """The error for every partition."""
    return DeleteRecordsResponse(
        topics=[
            DeleteRecordsTopicResult(
                name=topic.name, partitions=[_refused(p.partition_index, code) for p in topic.partitions]
            )
            for topic in message.topics
        ]
    )


async def _delete(context: Context, topic: str, index: int, offset: int, is_duplicate: bool, is_denied: bool) -> Result:
    if is_denied:
        return _refused(index, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
    if is_duplicate:
        return _refused(index, ErrorCode.INVALID_REQUEST)
    if topic in INTERNAL_TOPICS:
        return _refused(index, ErrorCode.INVALID_TOPIC_EXCEPTION)
    partition = served_partition(context, topic, index)
    if not isinstance(partition, PartitionLog):
        return _refused(index, partition)
    try:
        low_watermark = await context.ownership.delete_records(partition, offset)
    except Fenced:
        raise
    except KafscaleError as error:
        return _refused(index, code_of(error)[0])
    return Result(partition_index=index, low_watermark=low_watermark)


def _refused(index: int, code: int) -> Result:
    return Result(partition_index=index, low_watermark=UNKNOWN_LOW_WATERMARK, error_code=code)
