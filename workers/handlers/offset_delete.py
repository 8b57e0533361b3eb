"""OffsetDelete (key 47), version 0: forget what a group has committed for some partitions (KIP-496).

A topic must exist, and so must the partition. Nothing is left out.
"""

from __future__ import annotations

from kafscale.coordination.groups import events
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestTopic,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: OffsetDeleteRequest) -> OffsetDeleteResponse:
    known = [_known_partitions(context, topic) for topic in message.topics]
    if not any(known):
        # As in Kafka, the group is not even looked at.
        return OffsetDeleteResponse(topics=[_answer(topic, {}) for topic in message.topics])
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
            _answer(topic, {partition.partition: partition.error for partition in result.partitions})
            for topic, result in zip(message.topics, found.topics, strict=True)
        ]
    )


def _known_partitions(context: Context, wanted: OffsetDeleteRequestTopic) -> tuple[int, ...]:
    topic = context.cluster.topic(wanted.name)
    count = 0 if topic is None else topic.partitions
    return tuple(p.partition_index for p in wanted.partitions if 0 <= p.partition_index < count)


def _answer(wanted: OffsetDeleteRequestTopic, codes: dict[int, ErrorCode]) -> OffsetDeleteResponseTopic:
    """`codes`: of the partitions that exist."""
    unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    return OffsetDeleteResponseTopic(
        name=wanted.name,
        partitions=[
            OffsetDeleteResponsePartition(
                partition_index=partition.partition_index, error_code=codes.get(partition.partition_index, unknown)
            )
            for partition in wanted.partitions
        ],
    )
