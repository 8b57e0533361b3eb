"""From what a client names to the partition that is served here, or to the error code that says why there is none.

The order of the checks is Kafka's (ReplicaManager.getPartitionOrError, Partition.checkCurrentLeaderEpoch). It knows no
API.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from kafscale.coordination.cluster import Topic
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.partition import PartitionLog
from workers.context import Context


def owned_partition(
    context: Context, topic: Topic | None, index: int, current_leader_epoch: int = -1
) -> PartitionLog | ErrorCode:
    """The partition, if this worker serves it now and the client's leader epoch (-1: none given) is the present one.

    UNKNOWN_TOPIC_OR_PARTITION, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH or NOT_LEADER_OR_FOLLOWER. The last is also
    said while a slot that is ours is still being loaded: consumers take it for what it is, a reason to ask for metadata
    and come back, while LEADER_NOT_AVAILABLE in a fetch is an error to the Java client.
    """
    if topic is None or not 0 <= index < topic.partitions:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    partition = context.ownership.partition(topic.topic_id, index)
    if current_leader_epoch >= 0:
        epoch = -1
        if partition is not None:
            epoch = partition.leader_epoch
        elif (leader := context.cluster.leader(topic, index)) is not None:
            epoch = leader.epoch
        if current_leader_epoch < epoch:
            return ErrorCode.FENCED_LEADER_EPOCH
        if current_leader_epoch > epoch:
            return ErrorCode.UNKNOWN_LEADER_EPOCH
    return ErrorCode.NOT_LEADER_OR_FOLLOWER if partition is None else partition


def epoch_at(partition: PartitionLog, offset: int) -> int:
    """The leader epoch under which the record at `offset` was written; -1 if it is not known."""
    position = bisect_right(partition.epochs, offset, key=lambda entry: entry.start_offset)
    return partition.epochs[position - 1].epoch if position else -1


def why_not_served(context: Context, name: str | bytes, index: int) -> tuple[int, tuple[int, int] | None]:
    """For Produce and Fetch: the error code for a partition that is not served here, and its leader (node id, epoch)
    where that is another (KIP-951). `name` is the topic's name or id."""
    cluster = context.cluster
    topic = cluster.topic(name) if isinstance(name, str) else cluster.topic_by_id(name)
    if topic is None:
        code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if isinstance(name, str) else ErrorCode.UNKNOWN_TOPIC_ID
        return code, None
    if not 0 <= index < topic.partitions:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, None
    leader = cluster.leader(topic, index)
    is_elsewhere = leader is not None and leader.node_id != cluster.node_id
    return ErrorCode.NOT_LEADER_OR_FOLLOWER, (leader.node_id, leader.epoch) if leader and is_elsewhere else None


def leader_addresses(
    context: Context, results: Iterable[tuple[Any, ...]], leader_at: int
) -> list[tuple[int, str, int, str | None]]:
    """The addresses of the leaders that results of Produce or Fetch name at field `leader_at` (KIP-951)."""
    named = {result[leader_at][0] for result in results if result[leader_at] is not None}
    found = (context.cluster.nodes.get(node_id) for node_id in sorted(named))
    return [(node.node_id, node.host, node.port, node.rack) for node in found if node is not None]
