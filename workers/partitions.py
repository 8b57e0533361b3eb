"""Which partition a request means, and which Kafka error says that it is not to be had here. Knows no API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.partition import PartitionLog
from workers.context import Context

Leader = tuple[int, int]


def why_not_served(context: Context, topic: str | bytes, index: int) -> tuple[int, Leader | None]:
    """The error code for a partition that is not served here, and its leader (node id, epoch) where one is known.

    `topic` is a name or an id. 0 where the partition is served after all.
    """
    cluster = context.cluster
    found = cluster.topic(topic) if isinstance(topic, str) else cluster.topic_by_id(topic)
    if found is None:
        return (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if isinstance(topic, str) else ErrorCode.UNKNOWN_TOPIC_ID), None
    if not 0 <= index < found.partitions:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, None
    if context.ownership.partition(topic, index) is not None:
        return 0, None
    owner = cluster.leader(found, index)
    if owner is None or owner.node_id == cluster.node_id:
        # Ours, and being loaded: the client asks again, here.
        return ErrorCode.NOT_LEADER_OR_FOLLOWER, None
    return ErrorCode.NOT_LEADER_OR_FOLLOWER, (owner.node_id, owner.epoch)


def epoch_error(partition: PartitionLog, leader_epoch: int) -> int:
    """The error code for a client that believes in `leader_epoch` (-1: in none); 0 if it is right (KIP-320)."""
    if leader_epoch < 0 or leader_epoch == partition.leader_epoch:
        return 0
    if leader_epoch < partition.leader_epoch:
        return ErrorCode.FENCED_LEADER_EPOCH
    return ErrorCode.UNKNOWN_LEADER_EPOCH


def served_partition(
    context: Context, topic: str | bytes, index: int, leader_epoch: int = -1
) -> PartitionLog | ErrorCode:
    """The partition, or the error code that says why it can't be had here at that leader epoch."""
    partition = context.ownership.partition(topic, index)
    if partition is None:
        return ErrorCode(why_not_served(context, topic, index)[0])
    code = epoch_error(partition, leader_epoch)
    return ErrorCode(code) if code else partition


def current_leaders(context: Context, results: Iterable[tuple[Any, ...]]) -> list[tuple[int, str, int, str | None]]:
    """The addresses of the leaders that results of Produce or Fetch name (KIP-951), to be sent along."""
    nodes: dict[int, tuple[int, str, int, str | None]] = {}
    for result in results:
        for field in result[6:8]:
            if isinstance(field, tuple) and result[2] == ErrorCode.NOT_LEADER_OR_FOLLOWER:
                node = context.cluster.nodes.get(field[0])
                if node is not None:
                    nodes[node.node_id] = (node.node_id, node.host, node.port, node.rack)
    return list(nodes.values())


def why_not_served(context: Context, name: str | bytes, index: int) -> tuple[int, tuple[int, int] | None]:
    """For Produce and Fetch: the error code for a partition that is not served here, and its leader (node id, epoch)
    where that is another (KIP-951). `name` is the topic's name or id."""
    cluster = context.cluster
    topic = cluster.topic(name) if isinstance(name, str) else cluster.topic_by_id(name)
    if topic is None and isinstance(name, bytes):
        return ErrorCode.UNKNOWN_TOPIC_ID, None
    found = owned_partition(context, topic, index)
    if topic is None or not isinstance(found, ErrorCode):
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, None
    leader = cluster.leader(topic, index) if found is ErrorCode.NOT_LEADER_OR_FOLLOWER else None
    return found, None if leader is None or leader.node_id == cluster.node_id else (leader.node_id, leader.epoch)


def leader_addresses(
    context: Context, results: Iterable[tuple[Any, ...]], leader_at: int
) -> list[tuple[int, str, int, str | None]]:
    """The addresses of the leaders that results of Produce or Fetch name at field `leader_at` (KIP-951)."""
    named = {result[leader_at][0] for result in results if result[leader_at] is not None}
    found = (context.cluster.nodes.get(node_id) for node_id in sorted(named))
    return [(node.node_id, node.host, node.port, node.rack) for node in found if node is not None]
