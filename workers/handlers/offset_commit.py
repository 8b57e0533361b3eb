"""OffsetCommit (key 8), versions 2 to 10: store offsets for a group, or for a client that only keeps offsets in one.

A topic must exist, and so must the partition. An error of the group stands at every partition, since the answer has no
other place for it. Left out: the retention time of v2 to v4 (offsets are kept by the rule of KIP-211, as for clients
of later versions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from kafscale.coordination.cluster import Topic
from kafscale.coordination.groups import events
from kafscale.errors import Retry
from kafscale.metrics import OFFSET_COMMITS
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from kafscale.security.access import Access
from kafscale.security.needs import READ_GROUP, READ_TOPIC
from workers.context import Context, Request

FIRST_WITH_GROUP_ID_NOT_FOUND: Final = 9
FIRST_WITH_TOPIC_IDS: Final = 10


async def handle(context: Context, request: Request, message: OffsetCommitRequest) -> OffsetCommitResponse:
    version = request.header.api_version
    if not request.access.allows(READ_GROUP, message.group_id):
        return failed(message, ErrorCode.GROUP_AUTHORIZATION_FAILED, "")
    found = [_find(context, request.access, topic, version) for topic in message.topics]
    known = tuple(
        _commit(topic, wanted) for topic, wanted in zip(found, message.topics, strict=True) if isinstance(topic, Topic)
    )
    codes: Iterable[ErrorCode] = ()
    if any(topic.partitions for topic in known):
        codes = await _store(context, message, known, version)
    left = iter(codes)
    return OffsetCommitResponse(
        topics=[
            _answer(wanted, [_code(topic, partition) or next(left) for partition in wanted.partitions])
            for topic, wanted in zip(found, message.topics, strict=True)
        ]
    )


def failed(message: OffsetCommitRequest, code: int, text: str) -> OffsetCommitResponse:
    """The error at every partition."""
    return OffsetCommitResponse(topics=[_answer(topic, [code] * len(topic.partitions)) for topic in message.topics])


async def _store(
    context: Context, message: OffsetCommitRequest, topics: tuple[events.TopicCommit, ...], version: int
) -> Iterable[ErrorCode]:
    """Commit; one error code for each partition of `topics`, in order."""
    wanted = events.OffsetCommitRequest(
        group_id=message.group_id,
        generation=message.generation_id_or_member_epoch,
        member_id=message.member_id,
        instance_id=message.group_instance_id,
        knows_missing_groups=version >= FIRST_WITH_GROUP_ID_NOT_FOUND,
        topics=topics,
    )
    try:
        found: events.OffsetCommitResponse = await context.groups.request(
            message.group_id, lambda shard, *at: shard.offset_commit(wanted, *at)
        )
    except Retry as error:
        return [ErrorCode(error.code) for topic in topics for _ in topic.partitions]
    codes = [partition.error for topic in found.topics for partition in topic.partitions]
    context.metrics.cells[OFFSET_COMMITS] += codes.count(ErrorCode.NONE)
    return codes


def _find(context: Context, access: Access, wanted: OffsetCommitRequestTopic, version: int) -> Topic | ErrorCode:
    """The topic, or why nothing can be committed for it. Whether a topic exists is told only to who may read it."""
    if version >= FIRST_WITH_TOPIC_IDS:
        topic = context.cluster.topic_by_id(wanted.topic_id)
        if topic is None:
            return ErrorCode.UNKNOWN_TOPIC_ID
        return topic if access.allows(READ_TOPIC, topic.name) else ErrorCode.TOPIC_AUTHORIZATION_FAILED
    if not access.allows(READ_TOPIC, wanted.name):
        return ErrorCode.TOPIC_AUTHORIZATION_FAILED
    return context.cluster.topic(wanted.name) or ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def _code(topic: Topic | ErrorCode, wanted: OffsetCommitRequestPartition) -> ErrorCode:
    """Why nothing can be committed for this partition; NONE if it exists."""
    if isinstance(topic, ErrorCode):
        return topic
    exists = 0 <= wanted.partition_index < topic.partitions
    return ErrorCode.NONE if exists else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def _commit(topic: Topic, wanted: OffsetCommitRequestTopic) -> events.TopicCommit:
    return events.TopicCommit(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=tuple(
            events.PartitionCommit(
                partition=partition.partition_index,
                offset=partition.committed_offset,
                leader_epoch=partition.committed_leader_epoch,
                metadata=partition.committed_metadata,
            )
            for partition in wanted.partitions
            if _code(topic, partition) is ErrorCode.NONE
        ),
    )


def _answer(wanted: OffsetCommitRequestTopic, codes: Sequence[int]) -> OffsetCommitResponseTopic:
    return OffsetCommitResponseTopic(
        name=wanted.name,
        topic_id=wanted.topic_id,
        partitions=[
            OffsetCommitResponsePartition(partition_index=partition.partition_index, error_code=code)
            for partition, code in zip(wanted.partitions, codes, strict=True)
        ],
    )
