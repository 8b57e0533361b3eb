"""From what a client names to the partition that is served here, or to the error code that says why there is none.

The order of the checks is Kafka's (ReplicaManager.getPartitionOrError, Partition.checkCurrentLeaderEpoch). It knows no
API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafscale.coordination.cluster import Assignment, Topic
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.partition import PartitionLog
from workers.context import Context
from workers.listener import Listener


def served_partition(
    context: Context, name: str | bytes, index: int, leader_epoch: int = -1
) -> PartitionLog | ErrorCode:
    """The partition of the topic of this name or id, if this worker serves it now and the client's leader epoch (-1:
    none given) is the present one.

    Else UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, KAFKA_STORAGE_ERROR where its slot can't be loaded for damage
    (what Kafka says of an offline log directory), FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH or NOT_LEADER_OR_FOLLOWER.
    The last is also said while a slot that is ours is still being loaded: consumers take it for what it is, a reason to
    ask for metadata and come back, while LEADER_NOT_AVAILABLE in a fetch is an error to the Java client.
    """
    partition = context.ownership.partition(name, index)
    if partition is not None and leader_epoch in (-1, partition.leader_epoch):
        return partition
    topic = _topic(context, name)
    if topic is None:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if isinstance(name, str) else ErrorCode.UNKNOWN_TOPIC_ID
    if not 0 <= index < topic.partitions:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    if context.ownership.has_failed(topic.topic_id, index):
        return ErrorCode.KAFKA_STORAGE_ERROR
    if leader_epoch >= 0:
        leader = context.cluster.leader(topic, index)
        epoch = partition.leader_epoch if partition is not None else -1 if leader is None else leader.epoch
        if leader_epoch != epoch:
            return ErrorCode.FENCED_LEADER_EPOCH if leader_epoch < epoch else ErrorCode.UNKNOWN_LEADER_EPOCH
    return ErrorCode.NOT_LEADER_OR_FOLLOWER


def why_not_served(
    context: Context, listener: Listener, name: str | bytes, index: int
) -> tuple[int, tuple[int, int] | None]:
    """For Produce and Fetch: the error code for a partition that is not served here, and its leader (node id, epoch;
    KIP-951) where the client, who came by `listener`, knows it as a node.

    While a slot of ours is being loaded the leader is this node: so the client knows that it came to the right one, and
    comes again after a moment. Told nothing, franz-go would wait for its next metadata, up to five seconds.
    """
    found = served_partition(context, name, index)
    if found is not ErrorCode.NOT_LEADER_OR_FOLLOWER or listener.is_shared:
        return found if isinstance(found, ErrorCode) else ErrorCode.NOT_LEADER_OR_FOLLOWER, None
    leader = _leader(context, name, index)
    return found, None if leader is None else (leader.node_id, leader.epoch)


def is_coming(context: Context, name: str | bytes, index: int) -> bool:
    """Whether a partition that is not served here will be in a moment: its slot is ours and is being loaded."""
    if served_partition(context, name, index) is not ErrorCode.NOT_LEADER_OR_FOLLOWER:
        return False
    leader = _leader(context, name, index)
    return leader is not None and leader.node_id == context.cluster.node_id


def leader_addresses(
    context: Context, listener: Listener, results: Iterable[tuple[Any, ...]], leader_at: int
) -> list[tuple[int, str, int, str | None]]:
    """The addresses, as clients of `listener` know them, of the leaders that results of Produce or Fetch name at field
    `leader_at` (KIP-951)."""
    named = {result[leader_at][0] for result in results if result[leader_at] is not None}
    found = (listener.address(context.cluster, node_id) for node_id in sorted(named))
    return [(node.node_id, node.host, node.port, node.rack) for node in found if node is not None]


def _topic(context: Context, name: str | bytes) -> Topic | None:
    return context.cluster.topic(name) if isinstance(name, str) else context.cluster.topic_by_id(name)


def _leader(context: Context, name: str | bytes, index: int) -> Assignment | None:
    topic = _topic(context, name)
    return None if topic is None else context.cluster.leader(topic, index)
