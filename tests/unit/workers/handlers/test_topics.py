"""Goal: topics are created, deleted and extended as the controller decides, every topic asked for gets one result, and
a request of any size is answered in bounded time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from kafscale.coordination.commands import MAX_COMMANDS, decode_commands
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_partitions import (
    CreatePartitionsAssignment,
    CreatePartitionsRequest,
    CreatePartitionsTopic,
)
from kafscale.protocol.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from tests.unit.workers.node import Node


def wanted(name: str, partitions: int = 2, replicas: int = 1, **configs: str | None) -> CreatableTopic:
    return CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=replicas,
        configs=[CreatableTopicConfig(name=k.replace("_", "."), value=v) for k, v in configs.items()],
    )


async def create(node: Node, version: int, *topics: CreatableTopic, **options: Any) -> Any:
    request = CreateTopicsRequest(topics=topics, **options)
    return (await node.call(ApiKey.CREATE_TOPICS, version, request)).topics


@pytest.mark.parametrize("version", range(2, 8))
def test_created_topics_are_told(version: int) -> None:
    """The answer says what was created: id, partitions, replicas, and settings as an array, never null."""

    async def scenario() -> None:
        node = Node()
        (result,) = await create(node, version, wanted("t", 5, 3, retention_ms="1000"))
        assert (result.error_code, result.error_message) == (0, None)
        topic = node.cluster.state.topics["t"]
        assert (topic.partitions, topic.configs) == (5, {"retention.ms": "1000"})
        if version >= 5:
            assert (result.num_partitions, result.replication_factor) == (5, 1)
            assert {c.name: c.value for c in result.configs}["retention.ms"] == "1000"
            assert {c.name: c.config_source for c in result.configs}["retention.ms"] == 1
        if version >= 7:
            assert result.topic_id == topic.topic_id

    asyncio.run(scenario())


def test_each_topic_fails_for_itself() -> None:
    """One bad topic does not keep the others from being created; each is told why."""

    async def scenario() -> None:
        node = Node()
        await node.create("old")
        results = await create(
            node,
            5,
            wanted("new"),
            wanted("old"),
            wanted("../up"),
            wanted("none", 0),
            wanted("bad", retention_ms="soon"),
            wanted("null", retention_ms=None),
            wanted("odd", no_such="1"),
            wanted("twice"),
            wanted("twice"),
        )
        assert [(r.name, r.error_code) for r in results] == [
            ("new", 0),
            ("old", ErrorCode.TOPIC_ALREADY_EXISTS),
            ("../up", ErrorCode.INVALID_TOPIC_EXCEPTION),
            ("none", ErrorCode.INVALID_PARTITIONS),
            ("bad", ErrorCode.INVALID_CONFIG),
            ("null", ErrorCode.INVALID_CONFIG),
            ("odd", ErrorCode.INVALID_CONFIG),
            ("twice", ErrorCode.INVALID_REQUEST),
        ]
        assert all(r.error_message for r in results[1:])
        assert all(list(r.configs) == [] for r in results[1:]), "null makes the Java Admin throw"
        assert set(node.cluster.state.topics) == {"old", "new"}

    asyncio.run(scenario())


def test_validate_only_creates_nothing() -> None:
    """It says what would be."""

    async def scenario() -> None:
        node = Node()
        (result,) = await create(node, 6, wanted("t", 3), validate_only=True)
        assert (result.error_code, result.num_partitions) == (0, 3)
        assert not node.cluster.state.topics

    asyncio.run(scenario())


def test_defaults_and_manual_assignments() -> None:
    """-1 asks for the broker's defaults (KIP-464); an assignment gives the number of partitions."""

    async def scenario() -> None:
        node = Node()
        assignments = [CreatableReplicaAssignment(partition_index=index, broker_ids=[0, 1]) for index in range(3)]
        manual = CreatableTopic(name="m", num_partitions=-1, replication_factor=-1, assignments=assignments)
        results = await create(node, 5, wanted("d", -1, -1), manual)
        assert [(r.error_code, r.num_partitions) for r in results] == [(0, 1), (0, 3)]

    asyncio.run(scenario())


def test_no_answer_from_the_controller_is_a_retriable_error() -> None:
    """Within the client's time-out, and no longer than ours; the topic may exist later."""

    async def scenario() -> None:
        node = Node()
        node.is_controller_silent = True
        calling = asyncio.ensure_future(create(node, 5, wanted("t"), timeout_ms=5000))
        await node.until(lambda: bool(node.requests))
        node.clock.advance(4)
        assert not calling.done()
        node.clock.advance(2)
        (result,) = await calling
        assert result.error_code == ErrorCode.REQUEST_TIMED_OUT
        assert node.admin.outstanding_count == 0
        node.answer(node.requests[0])
        assert "t" in node.cluster.state.topics

    asyncio.run(scenario())


def test_a_hundred_thousand_topics_in_one_request() -> None:
    """The controller is asked for no more than it takes at once; the rest is refused."""

    async def scenario() -> None:
        node = Node()
        results = await create(node, 5, *[wanted(f"t{n}", 1) for n in range(100_000)])
        codes = Counter(result.error_code for result in results)
        assert codes == {0: MAX_COMMANDS, ErrorCode.POLICY_VIOLATION: 100_000 - MAX_COMMANDS}
        assert len(node.cluster.state.topics) == MAX_COMMANDS
        assert len(decode_commands(node.requests[0].commands)) == MAX_COMMANDS
        (only,) = await create(node, 5, *[wanted("same")] * 100_000)
        assert only.error_code == ErrorCode.INVALID_REQUEST
        assert len(node.requests) == 1

    asyncio.run(scenario())


# -- deleting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, 6))
def test_deleting_by_name(version: int) -> None:
    """Each name gets a result; a topic that is not there is told so."""

    async def scenario() -> None:
        node = Node()
        await node.create("a")
        await node.create("b")
        request = DeleteTopicsRequest(topic_names=["a", "gone", "b", "b"])
        response = await node.call(ApiKey.DELETE_TOPICS, version, request)
        assert [(r.name, r.error_code) for r in response.responses] == [
            ("a", 0),
            ("gone", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            ("b", ErrorCode.INVALID_REQUEST),
        ]
        assert set(node.cluster.state.topics) == {"b"}

    asyncio.run(scenario())


def test_deleting_by_id() -> None:
    """By id or by name, not both and not neither; the same topic named both ways is named twice."""

    async def scenario() -> None:
        node = Node()
        a, b, _ = await node.create("a"), await node.create("b"), await node.create("c")
        states = [
            DeleteTopicState(topic_id=a.topic_id),
            DeleteTopicState(topic_id=b"?" * 16),
            DeleteTopicState(name="b"),
            DeleteTopicState(topic_id=b.topic_id),
            DeleteTopicState(),
            DeleteTopicState(name="c", topic_id=b.topic_id),
        ]
        response = await node.call(ApiKey.DELETE_TOPICS, 6, DeleteTopicsRequest(topics=states))
        assert [(r.name, r.error_code) for r in response.responses] == [
            ("a", 0),
            (None, ErrorCode.UNKNOWN_TOPIC_ID),
            ("b", ErrorCode.INVALID_REQUEST),
            (None, ErrorCode.INVALID_REQUEST),
            (None, ErrorCode.INVALID_REQUEST),
            ("c", ErrorCode.INVALID_REQUEST),
        ]
        assert response.responses[0].topic_id == a.topic_id
        assert set(node.cluster.state.topics) == {"b", "c"}

    asyncio.run(scenario())


def test_a_topic_created_anew_has_another_id() -> None:
    """Deleting the old one by its id can't hit the new one."""

    async def scenario() -> None:
        node = Node()
        old = await node.create("t")
        delete = DeleteTopicsRequest(topics=[DeleteTopicState(topic_id=old.topic_id)])
        await node.call(ApiKey.DELETE_TOPICS, 6, delete)
        new = await node.create("t")
        assert new.topic_id != old.topic_id
        response = await node.call(ApiKey.DELETE_TOPICS, 6, delete)
        assert response.responses[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
        assert node.cluster.topic("t") == new

    asyncio.run(scenario())


# -- more partitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(4))
def test_partitions_are_added(version: int) -> None:
    """Only ever added, topic by topic; validate_only changes nothing."""

    async def scenario() -> None:
        node = Node()
        for name in ("a", "b", "c", "d"):
            await node.create(name, 2)
        topics = [
            CreatePartitionsTopic(name="a", count=5, assignments=None),
            CreatePartitionsTopic(name="b", count=2, assignments=None),
            CreatePartitionsTopic(name="c", count=3, assignments=[CreatePartitionsAssignment(broker_ids=[0])]),
            CreatePartitionsTopic(name="d", count=9, assignments=[CreatePartitionsAssignment(broker_ids=[0])]),
            CreatePartitionsTopic(name="gone", count=9, assignments=None),
        ]
        for validate_only in (True, False):
            request = CreatePartitionsRequest(topics=topics, timeout_ms=1000, validate_only=validate_only)
            response = await node.call(ApiKey.CREATE_PARTITIONS, version, request)
            assert [(r.name, r.error_code) for r in response.results] == [
                ("a", 0),
                ("b", ErrorCode.INVALID_PARTITIONS),
                ("c", 0),
                ("d", ErrorCode.INVALID_REPLICA_ASSIGNMENT),
                ("gone", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            ]
            assert [r.error_message is None for r in response.results] == [True, False, True, False, False]
            counts = {name: topic.partitions for name, topic in node.cluster.state.topics.items()}
            assert counts == ({"a": 2, "b": 2, "c": 2, "d": 2} if validate_only else {"a": 5, "b": 2, "c": 3, "d": 2})

    asyncio.run(scenario())


def test_a_topic_named_twice_gets_no_partitions() -> None:
    """Which of the counts was meant can't be told."""

    async def scenario() -> None:
        node = Node()
        await node.create("a", 2)
        topics = [CreatePartitionsTopic(name="a", count=count, assignments=None) for count in (3, 4)]
        response = await node.call(ApiKey.CREATE_PARTITIONS, 3, CreatePartitionsRequest(topics=topics))
        assert [(r.name, r.error_code) for r in response.results] == [("a", ErrorCode.INVALID_REQUEST)]

    asyncio.run(scenario())
