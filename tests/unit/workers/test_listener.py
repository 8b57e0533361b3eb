"""Goal: clients of a shared listener are told of one node at its address, and never hear of another.

Through the handlers, as clients ask: Metadata, DescribeCluster, FindCoordinator, and the leaders that errors name.
"""

from __future__ import annotations

import asyncio

import pytest

from kafscale.config import Endpoint
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest
from kafscale.protocol.messages.find_coordinator import FindCoordinatorRequest
from kafscale.protocol.messages.metadata import MetadataRequest
from tests.unit.workers.handlers.group_node import GroupNode
from tests.unit.workers.node import NODE_ID, OTHER_NODE_ID, Node
from tests.unit.workers.whole_worker import EPOCH, WholeWorker, batch_of, fetch_request, produce_request, run
from workers.listener import ONE_NODE_ID, Listener

FRONT = Endpoint("front.example.com", 443)
SHARED = Listener("clients", FRONT)


@pytest.mark.parametrize("version", range(14))
def test_metadata_names_one_node_as_leader_of_everything(version: int) -> None:
    """Whatever the version: one broker, at the shared address, that leads, replicates and controls."""

    async def main() -> None:
        node = Node(listener=SHARED)
        await node.create("flights", 8)
        answer = await node.call(ApiKey.METADATA, version, MetadataRequest(topics=None if version else ()))
        assert [(b.node_id, b.host, b.port) for b in answer.brokers] == [(ONE_NODE_ID, FRONT.host, FRONT.port)]
        (topic,) = answer.topics
        assert {(p.error_code, p.leader_id, tuple(p.replica_nodes), tuple(p.isr_nodes)) for p in topic.partitions} == {
            (ErrorCode.NONE, ONE_NODE_ID, (ONE_NODE_ID,), (ONE_NODE_ID,))
        }
        if version >= 1:
            assert answer.controller_id == ONE_NODE_ID

    asyncio.run(main())


def test_a_partition_whose_worker_is_down_has_no_leader() -> None:
    """One node or not: clients are told to come again."""

    async def main() -> None:
        node = Node(listener=SHARED)
        node.set_nodes(NODE_ID)
        await node.create("flights", 2)
        answer = await node.call(ApiKey.METADATA, 9, MetadataRequest(topics=None))
        assert sorted(p.error_code for p in answer.topics[0].partitions) == [0, ErrorCode.LEADER_NOT_AVAILABLE]

    asyncio.run(main())


def test_the_same_worker_tells_each_listener_its_own() -> None:
    """Kept answers of one listener are not given to clients of another."""

    async def main() -> None:
        node = Node()
        await node.create("flights", 2)
        nodes = []
        for listener in (node.bench.listener, SHARED, node.bench.listener, SHARED):
            node.bench.listener = listener
            answer = await node.call(ApiKey.METADATA, 9, MetadataRequest(topics=None))
            nodes.append([broker.node_id for broker in answer.brokers])
        assert nodes == [[NODE_ID, OTHER_NODE_ID], [ONE_NODE_ID]] * 2

    asyncio.run(main())


def test_the_cluster_is_that_one_node() -> None:
    """DescribeCluster."""

    async def main() -> None:
        node = Node(listener=SHARED)
        cluster = await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest(endpoint_type=1))
        assert cluster.controller_id == ONE_NODE_ID
        assert [(b.broker_id, b.host, b.port) for b in cluster.brokers] == [(ONE_NODE_ID, FRONT.host, FRONT.port)]

    asyncio.run(main())


def test_find_coordinator_names_that_node_for_every_group() -> None:
    """Groups of this worker and of the other; none where the coordinator is down."""

    async def main() -> None:
        node = GroupNode()
        node.listener = SHARED
        names = [node.name(NODE_ID), node.name(OTHER_NODE_ID)]
        answer = await node.ask(ApiKey.FIND_COORDINATOR, 4, FindCoordinatorRequest(key_type=0, coordinator_keys=names))
        assert [(c.error_code, c.node_id, c.host, c.port) for c in answer.coordinators] == [
            (0, ONE_NODE_ID, FRONT.host, FRONT.port)
        ] * 2
        del node.cluster.nodes[OTHER_NODE_ID]
        answer = await node.ask(ApiKey.FIND_COORDINATOR, 4, FindCoordinatorRequest(key_type=0, coordinator_keys=names))
        assert [c.error_code for c in answer.coordinators] == [0, ErrorCode.COORDINATOR_NOT_AVAILABLE]

    asyncio.run(main())


@pytest.mark.parametrize("version", [13, 18])
def test_errors_of_produce_and_fetch_name_no_other_node(version: int) -> None:
    """What KIP-951 would tell of leaders is of nodes that the client does not know."""

    async def main() -> None:
        node = WholeWorker()
        node.listener = SHARED
        await node.start()
        topic = node.create("t", 0, partitions=2)
        wanted = fetch_request((topic.topic_id, 1, 0), (topic.topic_id, 0, 0), current_leader_epoch=EPOCH - 1)
        fetched = await node.call(ApiKey.FETCH, version, wanted)
        results = list(fetched.responses[0].partitions)
        assert [r.error_code for r in results] == [
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
            ErrorCode.FENCED_LEADER_EPOCH,
        ]
        produced = await node.call(ApiKey.PRODUCE, 13, produce_request((topic.topic_id, 1, batch_of())))
        results += produced.responses[0].partition_responses
        assert results[2].error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert all(r.current_leader.leader_id == -1 for r in results)
        assert not fetched.node_endpoints and not produced.node_endpoints
        node.stop()

    run(main())
