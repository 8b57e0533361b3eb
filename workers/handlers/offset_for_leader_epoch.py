"""OffsetForLeaderEpoch (key 23), v2-4: where a leader epoch ended, so that a consumer can tell whether its position
is still on the log it was taken from (KIP-320).

No acknowledged record is ever truncated here, so consumers find what they expect; they ask all the same, whenever an
epoch has changed. Left out: followers.
"""

from __future__ import annotations

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
    OffsetForLeaderTopicResult,
)
from kafscale.security.needs import DESCRIBE_EPOCHS
from kafscale.storage.partition import PartitionLog
from workers.context import Context, Request
from workers.partitions import served_partition


def handle(context: Context, request: Request, message: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse:
    return OffsetForLeaderEpochResponse(
        topics=[
            OffsetForLeaderTopicResult(
                topic=topic.topic, partitions=[_end_of(context, topic.topic, wanted) for wanted in topic.partitions]
            )
            if request.access.allows(DESCRIBE_EPOCHS, topic.topic)
            else _refused(topic, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
            for topic in message.topics
        ]
    )


def failed(message: OffsetForLeaderEpochRequest, code: int, text: str) -> OffsetForLeaderEpochResponse:
    """The error for every partition."""
    return OffsetForLeaderEpochResponse(topics=[_refused(topic, code) for topic in message.topics])


def _refused(topic: OffsetForLeaderTopic, code: int) -> OffsetForLeaderTopicResult:
    return OffsetForLeaderTopicResult(
        topic=topic.topic,
        partitions=[EpochEndOffset(partition=p.partition, error_code=code) for p in topic.partitions],
    )


def _end_of(context: Context, topic: str, wanted: OffsetForLeaderPartition) -> EpochEndOffset:
    partition = served_partition(context, topic, wanted.partition, wanted.current_leader_epoch)
    if not isinstance(partition, PartitionLog):
        return EpochEndOffset(partition=wanted.partition, error_code=partition)
    epoch, end_offset = partition.end_of_epoch(wanted.leader_epoch)
    return EpochEndOffset(partition=wanted.partition, leader_epoch=epoch, end_offset=end_offset)
