"""Goal: offsets are told as by Kafka: by time, at the ends, at an epoch's end; and deleting records moves the start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from kafscale.protocol.messages.describe_log_dirs import DescribableLogDirTopic, DescribeLogDirsRequest
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from kafscale.storage.partition import PartitionLog
from tests.unit.workers.node import NODE_ID, Node, append

EPOCH = 3  # of every slot here


def own_index(node: Node, name: str, is_ours: bool = True) -> int:
    """A partition that this node leads, or one that it does not."""
    topic = node.cluster.state.topics[name]
    for index in range(topic.partitions):
        leader = node.cluster.leader(topic, index)
        assert leader is not None
        if (leader.node_id == NODE_ID) == is_ours:
            return index
    raise AssertionError("the slots are shared")


async def with_records(node: Node) -> PartitionLog:
    """Offsets 0-2 of times 100-102, 3-5 of 300, 200, 250, then 6 of 300 again, 7 of 50."""
    await node.create("t")
    partition = node.ownership.partition("t", own_index(node, "t"))
    assert partition is not None
    append(partition, [100, 101, 102])
    append(partition, [300, 200, 250])
    append(partition, [300, 50])
    return partition


async def list_offsets(node: Node, version: int, *wanted: ListOffsetsPartition, topic: str = "t") -> list[Any]:
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=wanted)])
    response = await node.call(ApiKey.LIST_OFFSETS, version, request)
    return list(response.topics[0].partitions)


async def offset_at(node: Node, partition: PartitionLog, timestamp: int, version: int = 11) -> tuple[int, int, int]:
    (answer,) = await list_offsets(
        node, version, ListOffsetsPartition(partition_index=partition.index, timestamp=timestamp)
    )
    return answer.error_code, answer.offset, answer.timestamp


@pytest.mark.parametrize("version", range(1, 12))
def test_offsets_by_time(version: int) -> None:
    """The first record in offset order at or after a time, with its own timestamp; -1 past the end."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        expected = {0: (0, 100), 100: (0, 100), 101: (1, 101), 103: (3, 300), 300: (3, 300), 301: (-1, -1)}
        for timestamp, found in expected.items():
            assert await offset_at(node, partition, timestamp, version) == (0, *found)
        assert await offset_at(node, partition, -1, version) == (0, 8, -1)
        assert await offset_at(node, partition, -2, version) == (0, 0, -1)
        await node.ownership.delete_records(partition, 4)
        assert await offset_at(node, partition, -2, version) == (0, 4, -1)
        assert (await offset_at(node, partition, 101, version))[1] >= 4

    asyncio.run(scenario())


def test_special_timestamps_and_their_versions() -> None:
    """Largest timestamp from 7 on, local from 8, tiered from 9, pending upload from 11; unknown ones never."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        unsupported = (ErrorCode.UNSUPPORTED_VERSION, -1, -1)
        for version in range(1, 12):
            assert await offset_at(node, partition, -3, version) == ((0, 3, 300) if version >= 7 else unsupported)
            assert await offset_at(node, partition, -4, version) == ((0, 0, -1) if version >= 8 else unsupported)
            assert await offset_at(node, partition, -5, version) == ((0, -1, -1) if version >= 9 else unsupported)
            assert await offset_at(node, partition, -6, version) == ((0, -1, -1) if version >= 11 else unsupported)
            assert await offset_at(node, partition, -7, version) == unsupported

    asyncio.run(scenario())


def test_an_empty_partition_has_no_times() -> None:
    """Nothing found is -1, not an error; both ends are 0."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        partition = node.ownership.partition("t", own_index(node, "t"))
        assert partition is not None
        assert [await offset_at(node, partition, at) for at in (-1, -2, -3, 0)] == [
            (0, 0, -1),
            (0, 0, -1),
            (0, -1, -1),
            (0, -1, -1),
        ]

    asyncio.run(scenario())


def test_why_offsets_are_not_told() -> None:
    """Unknown, led by another, an old or a future epoch, named twice: each by Kafka's code."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        ours, theirs = partition.index, own_index(node, "t", is_ours=False)

        async def code(index: int, epoch: int = -1, topic: str = "t") -> int:
            wanted = ListOffsetsPartition(partition_index=index, current_leader_epoch=epoch, timestamp=-1)
            (answer,) = await list_offsets(node, 7, wanted, topic=topic)
            return int(answer.error_code)

        assert await code(ours, EPOCH) == 0
        assert await code(ours, EPOCH - 1) == ErrorCode.FENCED_LEADER_EPOCH
        assert await code(ours, EPOCH + 1) == ErrorCode.UNKNOWN_LEADER_EPOCH
        assert await code(theirs) == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert await code(99) == await code(-1) == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await code(0, topic="gone") == await code(0, topic="../x") == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        twice = [ListOffsetsPartition(partition_index=ours, timestamp=at) for at in (-1, -2)]
        other = ListOffsetsPartition(partition_index=theirs, timestamp=-1)
        answers = await list_offsets(node, 7, *twice, other)
        assert [a.error_code for a in answers] == [42, 42, ErrorCode.NOT_LEADER_OR_FOLLOWER]

    asyncio.run(scenario())


def test_leader_epochs_of_offsets() -> None:
    """An offset is told with the epoch that its record was written under, the end with the present one."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        partition.lead(EPOCH + 2)
        append(partition, [900])
        answers = []
        for at in (100, 900, -2, -1):
            wanted = ListOffsetsPartition(partition_index=partition.index, timestamp=at)
            answers += await list_offsets(node, 5, wanted)
        assert [a.leader_epoch for a in answers] == [EPOCH, EPOCH + 2, EPOCH, EPOCH + 2]

    asyncio.run(scenario())


def test_many_partitions_by_time_at_once() -> None:
    """Those that need their records looked at and those that don't keep their places."""

    async def scenario() -> None:
        node = Node()
        await node.create("t", 60)
        wanted = []
        for index in range(60):
            partition = node.ownership.partition("t", index)
            if partition is not None:
                append(partition, [index, index + 1000])
            wanted.append(ListOffsetsPartition(partition_index=index, timestamp=500 if index % 3 else -1))
        for answer in await list_offsets(node, 6, *wanted):
            ours = node.ownership.partition("t", answer.partition_index) is not None
            expected = (1, answer.partition_index + 1000) if answer.partition_index % 3 else (2, -1)
            if ours:
                assert (answer.error_code, answer.offset, answer.timestamp) == (0, *expected)
            else:
                assert answer.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [2, 3, 4])
def test_ends_of_epochs(version: int) -> None:
    """Where an epoch ended; unknown ones are -1."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        partition.lead(EPOCH + 2)
        append(partition, [900])

        async def end_of(epoch: int, current: int = -1) -> tuple[int, int, int]:
            wanted = OffsetForLeaderPartition(
                partition=partition.index, current_leader_epoch=current, leader_epoch=epoch
            )
            topics = [OffsetForLeaderTopic(topic="t", partitions=[wanted])]
            request = OffsetForLeaderEpochRequest(replica_id=-1, topics=topics)
            response = await node.call(ApiKey.OFFSET_FOR_LEADER_EPOCH, version, request)
            (answer,) = response.topics[0].partitions
            return answer.error_code, answer.leader_epoch, answer.end_offset

        assert await end_of(EPOCH) == (0, EPOCH, 8)
        assert await end_of(EPOCH + 1) == (0, EPOCH, 8)
        assert await end_of(EPOCH + 2) == (0, EPOCH + 2, 9)
        assert await end_of(EPOCH + 3) == (0, -1, -1)
        assert await end_of(EPOCH, EPOCH + 1) == (ErrorCode.FENCED_LEADER_EPOCH, -1, -1)
        assert await end_of(EPOCH, EPOCH + 9) == (ErrorCode.UNKNOWN_LEADER_EPOCH, -1, -1)

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [0, 1, 2])
def test_deleting_records(version: int) -> None:
    """The new start is told; beyond the end, of an internal topic, or of another's partition nothing is deleted."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        await node.create("__consumer_offsets")
        theirs = own_index(node, "t", is_ours=False)

        async def delete(index: int, *offsets: int, topic: str = "t") -> list[tuple[int, int]]:
            wanted = [DeleteRecordsPartition(partition_index=index, offset=offset) for offset in offsets]
            request = DeleteRecordsRequest(topics=[DeleteRecordsTopic(name=topic, partitions=wanted)], timeout_ms=1000)
            response = await node.call(ApiKey.DELETE_RECORDS, version, request)
            return [(p.error_code, p.low_watermark) for p in response.topics[0].partitions]

        assert await delete(partition.index, 5) == [(0, 5)]
        assert await delete(partition.index, 2) == [(0, 5)]
        assert await delete(partition.index, 9) == [(ErrorCode.OFFSET_OUT_OF_RANGE, -1)]
        assert await delete(partition.index, 6, 7) == [(ErrorCode.INVALID_REQUEST, -1)] * 2
        assert await delete(theirs, 1) == [(ErrorCode.NOT_LEADER_OR_FOLLOWER, -1)]
        assert await delete(0, 0, topic="__consumer_offsets") == [(ErrorCode.INVALID_TOPIC_EXCEPTION, -1)]
        assert await delete(0, 0, topic="gone") == [(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1)]
        assert await delete(partition.index, -1) == [(0, 8)]
        assert partition.log_start_offset == 8

    asyncio.run(scenario())


def test_sizes_of_partitions() -> None:
    """DescribeLogDirs shows what this node leads, all of it or what was asked for."""

    async def scenario() -> None:
        node = Node()
        partition = await with_records(node)
        for version in range(1, 6):
            response = await node.call(ApiKey.DESCRIBE_LOG_DIRS, version, DescribeLogDirsRequest(topics=None))
            (directory,) = response.results
            sizes = {p.partition_index: p.partition_size for p in directory.topics[0].partitions}
            assert sizes[partition.index] == partition.size_bytes > 0
            assert set(sizes) == {p.index for p in node.ownership.partitions()}
            some = [
                DescribableLogDirTopic(topic="t", partitions=[partition.index, 77]),
                DescribableLogDirTopic(topic="x"),
            ]
            response = await node.call(ApiKey.DESCRIBE_LOG_DIRS, version, DescribeLogDirsRequest(topics=some))
            topics = response.results[0].topics
            assert [(t.name, [p.partition_index for p in t.partitions]) for t in topics] == [("t", [partition.index])]

    asyncio.run(scenario())


def test_producer_ids_are_unique() -> None:
    """Every idempotent producer gets an id of its own; transactions are refused for good."""

    async def scenario() -> None:
        node = Node()
        ids = set()
        for version in range(6):
            for _ in range(5):
                request = InitProducerIdRequest(transactional_id=None, producer_id=7, producer_epoch=3)
                response = await node.call(ApiKey.INIT_PRODUCER_ID, version, request)
                assert (response.error_code, response.producer_epoch) == (0, 0)
                ids.add(response.producer_id)
        assert len(ids) == 30
        assert all(0 <= producer_id < 1 << 62 for producer_id in ids)
        for transactional_id, code in (("tx", ErrorCode.UNSUPPORTED_VERSION), ("", ErrorCode.INVALID_REQUEST)):
            request = InitProducerIdRequest(transactional_id=transactional_id)
            response = await node.call(ApiKey.INIT_PRODUCER_ID, 4, request)
            assert (response.error_code, response.producer_id, response.producer_epoch) == (code, -1, -1)

    asyncio.run(scenario())
