"""ListOffsets (key 2), v1-11: the offset of the earliest, the latest, or the first record at or after a time.

Special timestamps: -1 latest (the high watermark; there are no transactions, so for both isolation levels), -2
earliest, -3 largest timestamp (v7), -4 earliest local (v8), -5 latest tiered (v9), -6 earliest pending upload (v11).
Kafscale has no tiers: as in a Kafka without tiered storage -4 is the earliest, and -5 and -6 are unknown (-1). Where
there is no such record offset and timestamp are -1. Left out: followers (replica ids are ignored).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable
from typing import Final

from kafscale.errors import KafscaleError
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopic,
    ListOffsetsTopicResponse,
)
from kafscale.security.needs import DESCRIBE_OFFSETS
from kafscale.storage.lookups import newest_record, offset_for_timestamp
from kafscale.storage.partition import PartitionLog
from workers.context import Context, Request
from workers.errors import code_of
from workers.partitions import served_partition

LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3
EARLIEST_LOCAL: Final = -4
LATEST_TIERED: Final = -5
EARLIEST_PENDING_UPLOAD: Final = -6
# The version that brought each special timestamp.
FIRST_VERSION: Final = {
    LATEST: 0,
    EARLIEST: 0,
    MAX_TIMESTAMP: 7,
    EARLIEST_LOCAL: 8,
    LATEST_TIERED: 9,
    EARLIEST_PENDING_UPLOAD: 11,
}
# Partitions of one request whose records are looked at side by side.
LOOKUPS_AT_ONCE: Final = 8

Answer = ListOffsetsPartitionResponse


def handle(
    context: Context, request: Request, message: ListOffsetsRequest
) -> ListOffsetsResponse | Awaitable[ListOffsetsResponse]:
    """Answer at once where no record has to be looked at."""
    version = request.header.api_version
    named = Counter(
        (topic.name, partition.partition_index) for topic in message.topics for partition in topic.partitions
    )
    answers: list[tuple[str, list[Answer]]] = []
    lookups: list[tuple[list[Answer], int, PartitionLog, int]] = []
    for topic in message.topics:
        results: list[Answer] = []
        answers.append((topic.name, results))
        if not request.access.allows(DESCRIBE_OFFSETS, topic.name):
            results += _refused(topic, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
            continue
        for wanted in topic.partitions:
            is_duplicate = named[topic.name, wanted.partition_index] > 1
            found = _without_records(context, version, topic.name, wanted, is_duplicate)
            if isinstance(found, PartitionLog):
                lookups.append((results, len(results), found, wanted.timestamp))
                found = Answer(partition_index=wanted.partition_index)
            results.append(found)
    if lookups:
        return _look_up(context, answers, lookups)
    return _response(answers)


def failed(message: ListOffsetsRequest, code: int, text: str) -> ListOffsetsResponse:
    """The error for every partition."""
    return _response([(topic.name, _refused(topic, code)) for topic in message.topics])


def _refused(topic: ListOffsetsTopic, code: int) -> list[Answer]:
    return [Answer(partition_index=partition.partition_index, error_code=code) for partition in topic.partitions]


def _without_records(
    context: Context, version: int, topic: str, wanted: ListOffsetsPartition, is_duplicate: bool
) -> Answer | PartitionLog:
    """The answer, or the partition whose records must be looked at for it."""
    index, timestamp = wanted.partition_index, wanted.timestamp
    if is_duplicate:
        return Answer(partition_index=index, error_code=ErrorCode.INVALID_REQUEST)
    if timestamp < 0 and version < FIRST_VERSION.get(timestamp, version + 1):
        return Answer(partition_index=index, error_code=ErrorCode.UNSUPPORTED_VERSION)
    partition = served_partition(context, topic, index, wanted.current_leader_epoch)
    if not isinstance(partition, PartitionLog):
        return Answer(partition_index=index, error_code=partition)
    if timestamp == LATEST:
        return Answer(partition_index=index, offset=partition.high_watermark, leader_epoch=partition.leader_epoch)
    if timestamp in (EARLIEST, EARLIEST_LOCAL):
        offset = partition.log_start_offset
        return Answer(partition_index=index, offset=offset, leader_epoch=_epoch_at(partition, offset))
    if timestamp in (LATEST_TIERED, EARLIEST_PENDING_UPLOAD):
        return Answer(partition_index=index)
    return partition


async def _look_up(
    context: Context,
    answers: list[tuple[str, list[Answer]]],
    lookups: list[tuple[list[Answer], int, PartitionLog, int]],
) -> ListOffsetsResponse:
    for first in range(0, len(lookups), LOOKUPS_AT_ONCE):
        some = lookups[first : first + LOOKUPS_AT_ONCE]
        found = await asyncio.gather(*(_find(context, partition, timestamp) for _, _, partition, timestamp in some))
        for (results, place, _, _), answer in zip(some, found, strict=True):
            results[place] = answer
    return _response(answers)


async def _find(context: Context, partition: PartitionLog, timestamp: int) -> Answer:
    try:
        if timestamp == MAX_TIMESTAMP:
            found = await newest_record(partition, context.cold_reader)
        else:
            found = await offset_for_timestamp(partition, context.cold_reader, timestamp)
    except KafscaleError as error:
        return Answer(partition_index=partition.index, error_code=code_of(error)[0])
    if found is None:
        return Answer(partition_index=partition.index)
    offset, found_ms = found
    return Answer(
        partition_index=partition.index, offset=offset, timestamp=found_ms, leader_epoch=_epoch_at(partition, offset)
    )


def _epoch_at(partition: PartitionLog, offset: int) -> int:
    """The leader epoch under which the record at `offset` was, or will be, written; -1 if it is not known."""
    position = bisect_right(partition.epochs, offset, key=lambda entry: entry.start_offset)
    return partition.epochs[position - 1].epoch if position else -1


def _response(answers: list[tuple[str, list[Answer]]]) -> ListOffsetsResponse:
    return ListOffsetsResponse(
        topics=[ListOffsetsTopicResponse(name=name, partitions=partitions) for name, partitions in answers]
    )
