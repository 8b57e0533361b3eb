"""OffsetFetch (key 9), versions 1 to 10: what groups have committed; -1 where nothing is.

Below v8 a request is for one group, and its error stands at each partition (v1) or at the top (v2 and above); from v8
on it is for several (KIP-709), each with its own error, as each may have its own coordinator. A topic need not exist,
but one that is named by its id (v10) must. Left out: waiting for transactions (require_stable), as there are none;
member id and epoch of the newer group protocol (v9), which classic groups don't look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from kafscale.coordination.groups import events
from kafscale.errors import Invalid, Retry
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from kafscale.security.access import Access
from kafscale.security.needs import DESCRIBE_GROUP, DESCRIBE_TOPIC
from workers.context import Context, Request

FIRST_WITH_TOP_LEVEL_ERROR: Final = 2
FIRST_WITH_GROUPS: Final = 8
FIRST_WITH_TOPIC_IDS: Final = 10
# Of a request for many groups so many are asked for at the same time.
GROUPS_AT_ONCE: Final = 100


async def handle(context: Context, request: Request, message: OffsetFetchRequest) -> OffsetFetchResponse:
    version = request.header.api_version
    if version < FIRST_WITH_GROUPS:
        return await _fetch_one(context, request.access, message, version)
    # All that a group has committed is much to answer a few bytes with: once in a request is enough.
    if len({group.group_id for group in message.groups}) < len(message.groups):
        raise Invalid(ErrorCode.INVALID_REQUEST, "a group is named twice in one OffsetFetch")
    groups: list[OffsetFetchResponseGroup] = []
    for first in range(0, len(message.groups), GROUPS_AT_ONCE):
        some = message.groups[first : first + GROUPS_AT_ONCE]
        groups += await asyncio.gather(*(_fetch_group(context, request.access, group, version) for group in some))
    return OffsetFetchResponse(groups=groups)


def failed(message: OffsetFetchRequest, code: int, text: str) -> OffsetFetchResponse:
    """The error wherever some version has a place for it: at every partition, at the top, at every group."""
    return OffsetFetchResponse(
        error_code=code,
        topics=_topics_of_error(message.topics or (), code),
        groups=[OffsetFetchResponseGroup(group_id=group.group_id, error_code=code) for group in message.groups],
    )


async def _ask(
    context: Context, group_id: str, topics: tuple[events.TopicPartitions, ...] | None, require_stable: bool
) -> events.OffsetFetchResponse:
    wanted = events.OffsetFetchRequest(group_id=group_id, topics=topics, require_stable=require_stable)
    try:
        found: events.OffsetFetchResponse = await context.groups.request(
            group_id, lambda shard, *at: shard.offset_fetch(wanted, *at)
        )
    except Retry as error:
        return events.OffsetFetchResponse(group_id=group_id, error=ErrorCode(error.code))
    return found


# One group


async def _fetch_one(
    context: Context, access: Access, message: OffsetFetchRequest, version: int
) -> OffsetFetchResponse:
    if not access.allows(DESCRIBE_GROUP, message.group_id):
        return _group_error(message, version, ErrorCode.GROUP_AUTHORIZATION_FAILED)
    topics = None
    denied = []
    if message.topics is not None:
        denied = [topic for topic in message.topics if not access.allows(DESCRIBE_TOPIC, topic.name)]
        topics = tuple(
            events.TopicPartitions(name=topic.name, partitions=tuple(topic.partition_indexes))
            for topic in message.topics
            if topic not in denied
        )
    found = await _ask(context, message.group_id, topics, message.require_stable)
    if found.error is not ErrorCode.NONE:
        return _group_error(message, version, found.error)
    return OffsetFetchResponse(
        topics=[
            OffsetFetchResponseTopic(
                name=topic.name,
                partitions=[
                    OffsetFetchResponsePartition(
                        partition_index=partition.partition,
                        committed_offset=partition.offset,
                        committed_leader_epoch=partition.leader_epoch,
                        metadata=partition.metadata,
                        error_code=partition.error,
                    )
                    for partition in topic.partitions
                ],
            )
            for topic in found.topics
            if topics is not None or access.shows(DESCRIBE_TOPIC, topic.name)
        ]
        + _topics_of_error(denied, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
    )


def _group_error(message: OffsetFetchRequest, version: int, code: int) -> OffsetFetchResponse:
    """An error of the group, where the version has a place for it."""
    if version >= FIRST_WITH_TOP_LEVEL_ERROR:
        return OffsetFetchResponse(error_code=code)
    return OffsetFetchResponse(topics=_topics_of_error(message.topics or (), code))


def _topics_of_error(topics: Sequence[OffsetFetchRequestTopic], code: int) -> list[OffsetFetchResponseTopic]:
    return [
        OffsetFetchResponseTopic(
            name=topic.name,
            partitions=[
                OffsetFetchResponsePartition(partition_index=index, committed_offset=-1, error_code=code)
                for index in topic.partition_indexes
            ],
        )
        for topic in topics
    ]


# Several groups


async def _fetch_group(
    context: Context, access: Access, wanted: OffsetFetchRequestGroup, version: int
) -> OffsetFetchResponseGroup:
    if not access.allows(DESCRIBE_GROUP, wanted.group_id):
        return OffsetFetchResponseGroup(group_id=wanted.group_id, error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED)
    by_id = version >= FIRST_WITH_TOPIC_IDS
    topics = None
    refused: list[OffsetFetchResponseTopics] = []
    if wanted.topics is not None:
        allowed, refused = _sorted_out(context, access, wanted.topics, by_id)
        topics = tuple(_known_topics(context, allowed, by_id))
    found = await _ask(context, wanted.group_id, topics, require_stable=False)
    if found.error is not ErrorCode.NONE:
        return OffsetFetchResponseGroup(group_id=wanted.group_id, error_code=found.error)
    # A commit for a topic that is gone has no id to be told by.
    answers = [
        _group_topic(topic)
        for topic in found.topics
        if (not by_id or topic.topic_id != events.NO_TOPIC_ID)
        and (topics is not None or access.shows(DESCRIBE_TOPIC, topic.name))
    ]
    return OffsetFetchResponseGroup(group_id=wanted.group_id, topics=answers + refused)


def _sorted_out(
    context: Context, access: Access, wanted: Sequence[OffsetFetchRequestTopics], by_id: bool
) -> tuple[list[OffsetFetchRequestTopics], list[OffsetFetchResponseTopics]]:
    """The topics that are to be asked for, and the answers for the others."""
    allowed, refused = [], []
    for topic in wanted:
        known = context.cluster.topic_by_id(topic.topic_id) if by_id else None
        if by_id and known is None:
            refused.append(_refused(topic, ErrorCode.UNKNOWN_TOPIC_ID))
        elif not access.allows(DESCRIBE_TOPIC, topic.name if known is None else known.name):
            refused.append(_refused(topic, ErrorCode.TOPIC_AUTHORIZATION_FAILED))
        else:
            allowed.append(topic)
    return allowed, refused


def _known_topics(
    context: Context, wanted: Sequence[OffsetFetchRequestTopics], by_id: bool
) -> Iterable[events.TopicPartitions]:
    for topic in wanted:
        partitions = tuple(topic.partition_indexes)
        if not by_id:
            yield events.TopicPartitions(name=topic.name, partitions=partitions)
        elif (known := context.cluster.topic_by_id(topic.topic_id)) is not None:
            yield events.TopicPartitions(name=known.name, topic_id=known.topic_id, partitions=partitions)


def _group_topic(topic: events.TopicOffsets) -> OffsetFetchResponseTopics:
    return OffsetFetchResponseTopics(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=[
            OffsetFetchResponsePartitions(
                partition_index=partition.partition,
                committed_offset=partition.offset,
                committed_leader_epoch=partition.leader_epoch,
                metadata=partition.metadata,
                error_code=partition.error,
            )
            for partition in topic.partitions
        ],
    )


def _refused(topic: OffsetFetchRequestTopics, code: int) -> OffsetFetchResponseTopics:
    return OffsetFetchResponseTopics(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=[
            OffsetFetchResponsePartitions(partition_index=index, committed_offset=-1, error_code=code)
            for index in topic.partition_indexes
        ],
    )
