"""OffsetDelete (key 47), version 0: forget what a group has committed for some partitions (KIP-496).

A topic must exist, and so must the partition. Nothing is left out.
"""

from __future__ import annotations

from typing import Final

from kafscale.coordination.groups import events
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestTopic,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from kafscale.security.needs import DELETE_GROUP, READ_TOPIC
from workers.context import Context, Request

_DENIED: Final = ErrorCode.TOPIC_AUTHORIZATION_FAILED


async def handle(context: Context, request: Request, message: OffsetDeleteRequest) -> OffsetDeleteResponse:
    if not request.access.allows(DELETE_GROUP, message.group_id):
        return OffsetDeleteResponse(error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED)
    refusals = [_refusal(request, topic) for topic in message.topics]
    known = [
        () if refusal is _DENIED else _known_partitions(context, topic)
        for topic, refusal in zip(message.topics, refusals, strict=True)
    ]
    if not any(known):
        # As in Kafka, the group is not even looked at.
        return OffsetDeleteResponse(
            topics=[_answer(topic, {}, refusal) for topic, refusal in zip(message.topics, refusals, strict=True)]
        )
    wanted = events.OffsetDeleteRequest(
        group_id=message.group_id,
        topics=tuple(
            events.TopicPartitions(name=topic.name, partitions=partitions)
            for topic, partitions in zip(message.topics, known, strict=True)
        ),
    )
    found: events.OffsetDeleteResponse = await context.groups.request(
        message.group_id, lambda shard, *at: shard.offset_delete(wanted, *at)
    )
    if found.error is not ErrorCode.NONE:
        return OffsetDeleteResponse(error_code=found.error)
    return OffsetDeleteResponse(
        topics=[
            _answer(topic, {partition.partition: partition.error for partition in result.partitions}, refusal)
            for topic, result, refusal in zip(message.topics, found.topics, refusals, strict=True)
        ]
    )


def _known_partitions(context: Context, wanted: OffsetDeleteRequestTopic) -> tuple[int, ...]:
    topic = context.cluster.topic(wanted.name)
    count = 0 if topic is None else topic.partitions
    return tuple(p.partition_index for p in wanted.partitions if 0 <= p.partition_index < count)


def _refusal(request: Request, wanted: OffsetDeleteRequestTopic) -> ErrorCode:
    """What is said of partitions for which nothing can be deleted."""
    return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if request.access.allows(READ_TOPIC, wanted.name) else _DENIED


def _answer(
    wanted: OffsetDeleteRequestTopic, codes: dict[int, ErrorCode], refusal: ErrorCode
) -> OffsetDeleteResponseTopic:
    """`codes`: of the partitions that exist and may be asked for; `refusal`: of the others."""
    return OffsetDeleteResponseTopic(
        name=wanted.name,
        partitions=[
            OffsetDeleteResponsePartition(
                partition_index=partition.partition_index, error_code=codes.get(partition.partition_index, refusal)
            )
            for partition in wanted.partitions
        ],
    )
