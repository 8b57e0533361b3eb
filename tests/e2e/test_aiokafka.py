"""aiokafka on its default settings: produce, groups, admin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import UnknownTopicOrPartitionError

PATIENCE_S = 60.0
RECENT_MS = int(time.time() * 1000) - 600_000  # Anything much older would fall to retention.


async def produce(bootstrap: str, topic: str, records: list[dict[str, Any]], **settings: Any) -> list[int]:
    """Send records (arguments of `AIOKafkaProducer.send`) and return their offsets."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, **settings) as producer:
        sent = [await producer.send(topic, **record) for record in records]
        async with asyncio.timeout(PATIENCE_S):
            return [(await future).offset for future in sent]


@asynccontextmanager
async def consumer(bootstrap: str, group: str, topic: str, **settings: Any) -> AsyncIterator[AIOKafkaConsumer]:
    reader = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", **settings
    )
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


@asynccontextmanager
async def administrator(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(bootstrap: str, topic: str, partitions: int) -> None:
    async with administrator(bootstrap) as admin:
        response = await admin.create_topics([NewTopic(topic, partitions, 1)])
        assert [error[1] for error in response.topic_errors] == [0]


async def read(reader: AIOKafkaConsumer, count: int) -> list[Any]:
    """Read until `count` records have come."""
    got: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(got) < count:
            for records in (await reader.getmany(timeout_ms=200, max_records=count - len(got))).values():
                got.extend(records)
    return got


def test_round_trip_keeps_everything_a_record_has(bootstrap: str, topic: str, group: str) -> None:
    """Keys, values, headers, nulls and timestamps come back as sent, to a topic made on first use."""
    headers = [("a", b"1"), ("a", b"2"), ("empty", b"")]
    records: list[dict[str, Any]] = [
        {"key": b"k", "value": b"v", "headers": headers, "timestamp_ms": RECENT_MS},
        {"key": None, "value": b"no key"},
        {"key": b"tombstone", "value": None},
    ]

    async def scenario() -> None:
        assert await produce(bootstrap, topic, [record | {"partition": 0} for record in records]) == [0, 1, 2]
        async with consumer(bootstrap, group, topic) as reader:
            got = await read(reader, 3)
        assert [(r.key, r.value) for r in got] == [(r["key"], r["value"]) for r in records]
        assert list(got[0].headers) == headers
        assert got[0].timestamp == RECENT_MS

    asyncio.run(scenario())


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec(bootstrap: str, topic: str, group: str, codec: str | None) -> None:
    """A batch in each codec is stored and read back."""
    values = [f"{i} ".encode() * 50 for i in range(200)]

    async def scenario() -> None:
        await produce(bootstrap, topic, [{"value": value} for value in values], compression_type=codec)
        async with consumer(bootstrap, group, topic) as reader:
            assert sorted(r.value for r in await read(reader, 200)) == sorted(values)

    asyncio.run(scenario())


@pytest.mark.parametrize("idempotent", [False, True])
def test_order_and_offsets(bootstrap: str, topic: str, group: str, idempotent: bool) -> None:
    """Records of one partition are dense and in order, with and without idempotence."""
    values = [str(i).encode() for i in range(2_000)]

    async def scenario() -> None:
        records = [{"value": value, "partition": 0} for value in values]
        offsets = await produce(bootstrap, topic, records, enable_idempotence=idempotent)
        assert offsets == list(range(2_000))
        async with consumer(bootstrap, group, topic) as reader:
            assert [r.value for r in await read(reader, 2_000)] == values

    asyncio.run(scenario())


def test_large_record(bootstrap: str, topic: str, group: str) -> None:
    """Nearly a megabyte goes through with default settings."""

    async def scenario() -> None:
        await produce(bootstrap, topic, [{"value": b"x" * 1_000_000}])
        async with consumer(bootstrap, group, topic) as reader:
            assert len((await read(reader, 1))[0].value) == 1_000_000

    asyncio.run(scenario())


def test_group_resumes_at_its_commit(bootstrap: str, topic: str, group: str) -> None:
    """A commit made by hand is where the group's next reader goes on."""

    async def scenario() -> None:
        await create(bootstrap, topic, 1)
        await produce(bootstrap, topic, [{"value": str(i).encode()} for i in range(100)])
        async with consumer(bootstrap, group, topic, enable_auto_commit=False) as reader:
            assert len(await read(reader, 40)) == 40
            await reader.commit({TopicPartition(topic, 0): 40})
            assert await reader.committed(TopicPartition(topic, 0)) == 40
        async with consumer(bootstrap, group, topic) as reader:
            assert (await read(reader, 60))[0].offset == 40

    asyncio.run(scenario())


async def settle(readers: list[AIOKafkaConsumer], partitions: int) -> None:
    """Poll all members until every partition is assigned once and every member has a share."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for reader in readers:
            await reader.getmany(timeout_ms=50)
        shares = [reader.assignment() for reader in readers]
        if all(shares) and sum(map(len, shares)) == len(frozenset().union(*shares)) == partitions:
            return
        assert time.monotonic() < deadline, f"no complete assignment: {shares}"


@pytest.mark.parametrize("assignor", [RangePartitionAssignor, RoundRobinPartitionAssignor, StickyPartitionAssignor])
def test_assignors_share_out_a_topic(bootstrap: str, topic: str, group: str, assignor: Any) -> None:
    """Two members share the partitions, and the one that stays gets all, with each assignor."""

    async def scenario() -> None:
        await create(bootstrap, topic, 6)
        settings = {"partition_assignment_strategy": (assignor,)}
        async with consumer(bootstrap, group, topic, **settings) as stays:
            async with consumer(bootstrap, group, topic, **settings) as leaves:
                await settle([stays, leaves], 6)
            await settle([stays], 6)

    asyncio.run(scenario())


def test_static_member_gets_its_partitions_back(bootstrap: str, topic: str, group: str) -> None:
    """A static member that restarts has the partitions it had."""

    async def scenario() -> None:
        await create(bootstrap, topic, 4)
        async with consumer(bootstrap, group, topic, group_instance_id="one") as first:
            async with consumer(bootstrap, group, topic, group_instance_id="two") as second:
                await settle([first, second], 4)
                owned = second.assignment()
            async with consumer(bootstrap, group, topic, group_instance_id="two") as second:
                await settle([first, second], 4)
                assert second.assignment() == owned

    asyncio.run(scenario())


def test_reading_by_time_and_position(bootstrap: str, topic: str, group: str) -> None:
    """Offsets by timestamp, first and last offsets and seeking work."""

    async def scenario() -> None:
        await create(bootstrap, topic, 1)
        for i in range(5):
            await produce(bootstrap, topic, [{"value": str(i).encode(), "timestamp_ms": RECENT_MS + 1_000 * i}])
        at = TopicPartition(topic, 0)
        async with consumer(bootstrap, group, topic) as reader:
            assert (await reader.offsets_for_times({at: RECENT_MS + 1_500}))[at].offset == 2
            assert (await reader.offsets_for_times({at: RECENT_MS + 999_000}))[at] is None
            assert await reader.beginning_offsets([at]) == {at: 0}
            assert await reader.end_offsets([at]) == {at: 5}
            await settle([reader], 1)
            reader.seek(at, 3)
            assert [r.offset for r in await read(reader, 2)] == [3, 4]

    asyncio.run(scenario())


def test_admin(bootstrap: str, topic: str, group: str) -> None:
    """Topics, settings, groups and records through the admin client."""

    async def scenario() -> None:
        await create(bootstrap, topic, 2)
        await produce(bootstrap, topic, [{"value": b"x", "partition": 0}] * 10)
        async with administrator(bootstrap) as admin, consumer(bootstrap, group, topic) as reader:
            await settle([reader], 2)
            await reader.commit({TopicPartition(topic, 0): 10})
            assert topic in await admin.list_topics()
            assert (await admin.describe_cluster())["cluster_id"]
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "7200000"})])
            described = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            assert ("retention.ms", "7200000") in [entry[:2] for entry in described[0].resources[0][4]]
            await admin.create_partitions({topic: NewPartitions(total_count=4)})
            assert len((await admin.describe_topics([topic]))[0]["partitions"]) == 4
            assert (group, "consumer") in [tuple(found)[:2] for found in await admin.list_consumer_groups()]
            offsets = await admin.list_consumer_group_offsets(group)
            assert offsets[TopicPartition(topic, 0)].offset == 10
            deleted = await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=4)})
            assert deleted == {TopicPartition(topic, 0): 4}
        async with administrator(bootstrap) as admin:
            await admin.delete_topics([topic])
            async with asyncio.timeout(PATIENCE_S):  # The node that is asked may hear of it a moment later.
                while topic in await admin.list_topics():
                    pass
            gone = await admin.delete_topics([topic])
            assert [error[1] for error in gone.topic_error_codes] == [UnknownTopicOrPartitionError.errno]

    asyncio.run(scenario())
