"""Goal: Metadata and DescribeCluster tell clients how to find every leader, and create topics only as allowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.coordination.cluster import ClusterState
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.schema import ZERO_UUID
from tests.unit.workers.node import NODE_ID, OTHER_NODE_ID, Node

ALL_VERSIONS = range(14)


async def ask(node: Node, version: int, *names: str, **options: Any) -> Any:
    topics = [MetadataRequestTopic(name=name) for name in names]
    return await node.call(ApiKey.METADATA, version, MetadataRequest(topics=topics, **options))


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_leaders_are_those_of_the_slots(version: int) -> None:
    """Each partition's leader, epoch and one replica are its slot's owner, in every version."""

    async def scenario() -> None:
        node = Node()
        topic = await node.create("t", 20)
        response = await ask(node, version, "t")
        (described,) = response.topics
        assert [p.partition_index for p in described.partitions] == list(range(20))
        for partition in described.partitions:
            owner = node.cluster.leader(topic, partition.partition_index)
            assert owner is not None
            assert partition.error_code == 0
            assert partition.leader_id == owner.node_id
            assert list(partition.replica_nodes) == list(partition.isr_nodes) == [owner.node_id]
            assert partition.leader_epoch == (owner.epoch if version >= 7 else -1)
        assert {p.leader_id for p in described.partitions} == {NODE_ID, OTHER_NODE_ID}
        assert [(b.node_id, b.host, b.port) for b in response.brokers] == [(0, "host0", 19092), (1, "host1", 19093)]
        assert described.topic_id == (topic.topic_id if version >= 10 else ZERO_UUID)
        if version >= 1:
            assert response.controller_id in node.cluster.nodes
        if version >= 2:
            assert response.cluster_id == "c1"

    asyncio.run(scenario())


def test_all_topics_and_none() -> None:
    """Version 0 asks for all with an empty list, later ones with null; empty then means none."""

    async def scenario() -> None:
        node = Node()
        for name in ("a", "b"):
            await node.create(name)
        for version in ALL_VERSIONS:
            everything = MetadataRequest(topics=[] if version == 0 else None)
            response = await node.call(ApiKey.METADATA, version, everything)
            assert sorted(topic.name for topic in response.topics) == ["a", "b"]
            if version > 0:
                assert not (await ask(node, version)).topics

    asyncio.run(scenario())


def test_topics_by_id() -> None:
    """From version 12 on by id; an unknown id is said so without a name; before, a missing name is refused."""

    async def scenario() -> None:
        node = Node()
        topic = await node.create("t")
        wanted = [MetadataRequestTopic(name=None, topic_id=topic_id) for topic_id in (topic.topic_id, b"x" * 16)]
        for version in (12, 13):
            response = await node.call(ApiKey.METADATA, version, MetadataRequest(topics=wanted))
            assert [(t.error_code, t.name, t.topic_id) for t in response.topics] == [
                (0, "t", topic.topic_id),
                (ErrorCode.UNKNOWN_TOPIC_ID, None, b"x" * 16),
            ]
        for version in (10, 11):
            request = MetadataRequest(topics=[MetadataRequestTopic(name=None)])
            response = await node.call(ApiKey.METADATA, version, request)
            assert [t.error_code for t in response.topics] == [ErrorCode.INVALID_REQUEST]

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a/b", "../../etc", "a\0b", "tøpic", "a b"])
def test_invalid_names_are_refused_and_never_created(name: str) -> None:
    """As INVALID_TOPIC_EXCEPTION."""

    async def scenario() -> None:
        node = Node()
        response = await ask(node, 12, name)
        assert [t.error_code for t in response.topics] == [ErrorCode.INVALID_TOPIC_EXCEPTION]
        assert not node.requests

    asyncio.run(scenario())


def test_missing_topics_are_created_where_both_sides_allow_it() -> None:
    """The client (from version 4 on) and the settings; the answer has the new topic's partitions at once."""

    async def scenario() -> None:
        node = Node(Settings(auto_create_partitions=3))
        assert (await ask(node, 4, "a", allow_auto_topic_creation=False)).topics[0].error_code == 3
        response = await ask(node, 4, "a", "b")
        assert [(t.error_code, len(t.partitions)) for t in response.topics] == [(0, 3), (0, 3)]
        assert len((await ask(node, 1, "c")).topics[0].partitions) == 3
        assert set(node.cluster.state.topics) == {"a", "b", "c"}
        internal = (await ask(node, 9, "__consumer_offsets")).topics[0]
        assert internal.is_internal
        assert len(internal.partitions) == node.settings.offsets_topic_partitions

        closed = Node(Settings(auto_create_topics=False))
        assert (await ask(closed, 4, "a")).topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert not closed.requests

    asyncio.run(scenario())


def test_two_clients_may_create_the_same_topic() -> None:
    """The one who loses the race is told of the topic all the same."""

    async def scenario() -> None:
        node = Node()
        first, second = await asyncio.gather(ask(node, 9, "t"), ask(node, 9, "t"))
        assert len(node.requests) == 2
        assert first.topics == second.topics
        assert first.topics[0].error_code == 0

    asyncio.run(scenario())


def test_creation_that_takes_too_long_is_to_be_asked_for_again() -> None:
    """The answer does not wait for ever: LEADER_NOT_AVAILABLE makes the client come back, to a topic by then."""

    async def scenario() -> None:
        node = Node()
        node.is_controller_silent = True
        asking = asyncio.ensure_future(ask(node, 9, "t"))
        await node.until(lambda: bool(node.requests))
        node.clock.advance(10)
        assert (await asking).topics[0].error_code == ErrorCode.LEADER_NOT_AVAILABLE
        node.answer(node.requests[0])
        assert (await ask(node, 9, "t")).topics[0].error_code == 0
        assert len(node.requests) == 1

    asyncio.run(scenario())


def test_a_name_that_collides_is_refused() -> None:
    """`a.b` and `a_b` would share their metrics' names; what the controller says reaches the client."""

    async def scenario() -> None:
        node = Node()
        await node.create("a.b")
        assert (await ask(node, 9, "a_b")).topics[0].error_code == ErrorCode.INVALID_TOPIC_EXCEPTION

    asyncio.run(scenario())


def test_a_hundred_thousand_topics_in_one_request() -> None:
    """Bounded work: each is described once, and of missing ones only some are created at a time."""

    async def scenario() -> None:
        node = Node()
        names = [f"t{number}" for number in range(100_000)]
        response = await ask(node, 9, *names)
        codes = [topic.error_code for topic in response.topics]
        assert len(codes) == 100_000
        assert 0 < codes.count(0) <= 1000
        assert set(codes) == {0, ErrorCode.LEADER_NOT_AVAILABLE}
        same = await ask(node, 9, *["t1"] * 100_000)
        assert len(same.topics) == 1

    asyncio.run(scenario())


def test_partitions_without_a_living_leader() -> None:
    """An owner that is gone, or none yet, is LEADER_NOT_AVAILABLE, not a leader nobody can reach."""

    async def scenario() -> None:
        node = Node()
        await node.create("t", 2)
        node.set_nodes(NODE_ID)
        codes = {p.error_code: p for p in (await ask(node, 9, "t")).topics[0].partitions}
        assert set(codes) == {0, ErrorCode.LEADER_NOT_AVAILABLE}
        missing = codes[ErrorCode.LEADER_NOT_AVAILABLE]
        assert (missing.leader_id, list(missing.offline_replicas), list(missing.isr_nodes)) == (-1, [OTHER_NODE_ID], [])
        state = node.cluster.state
        node.cluster.replace_state(
            ClusterState(version=9, cluster_id="c1", slot_count=8, topics=state.topics, slots=[[] for _ in range(8)])
        )
        partitions = (await ask(node, 9, "t")).topics[0].partitions
        assert {(p.error_code, p.leader_id) for p in partitions} == {(ErrorCode.LEADER_NOT_AVAILABLE, -1)}
        node.set_nodes(OTHER_NODE_ID)
        assert (await ask(node, 9, "t")).controller_id == OTHER_NODE_ID
        node.set_nodes()
        assert (await ask(node, 9, "t")).controller_id == -1

    asyncio.run(scenario())


def test_authorized_operations_only_when_asked_for() -> None:
    """KIP-430: a bit field of what may be done, or the least integer where nobody asked."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        plain = await ask(node, 9, "t")
        assert plain.topics[0].topic_authorized_operations == plain.cluster_authorized_operations == -(2**31)
        asked = await ask(
            node, 9, "t", include_topic_authorized_operations=True, include_cluster_authorized_operations=True
        )
        # READ 3, WRITE 4, CREATE 5, DELETE 6, ALTER 7, DESCRIBE 8, DESCRIBE_CONFIGS 10, ALTER_CONFIGS 11
        assert asked.topics[0].topic_authorized_operations == 0b1101_1111_1000
        # CREATE 5, ALTER 7, DESCRIBE 8, CLUSTER_ACTION 9, DESCRIBE_ and ALTER_CONFIGS 10 and 11, IDEMPOTENT_WRITE 12
        assert asked.cluster_authorized_operations == 0b1_1111_1010_0000

    asyncio.run(scenario())


def test_describe_cluster() -> None:
    """The same nodes and id as Metadata; controllers can't be asked for here."""

    async def scenario() -> None:
        node = Node()
        for version in (0, 1, 2):
            response = await node.call(ApiKey.DESCRIBE_CLUSTER, version, DescribeClusterRequest())
            assert (response.error_code, response.cluster_id, response.controller_id) == (0, "c1", NODE_ID)
            assert [(b.broker_id, b.port) for b in response.brokers] == [(0, 19092), (1, 19093)]
            assert response.cluster_authorized_operations == -(2**31)
        for kind, code in ((2, ErrorCode.MISMATCHED_ENDPOINT_TYPE), (7, ErrorCode.UNSUPPORTED_ENDPOINT_TYPE)):
            response = await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest(endpoint_type=kind))
            assert response.error_code == code
            assert response.error_message

    asyncio.run(scenario())
