"""Where things are: the node that leads a partition or coordinates a group, as far as this worker knows.

Pure reading of the cluster's view. What nobody owns, or what does not exist, is this worker's own: its handlers know
what to say of it. A view that is behind sends a request to a former owner, who says so, as it would to its own client.
"""

from __future__ import annotations

from kafscale.coordination.cluster import OFFSETS_TOPIC
from kafscale.errors import Retry
from workers.context import ClusterView
from workers.groups import Groups


class Places:
    """Asked by node ids, those that the cluster log knows."""

    def __init__(self, cluster: ClusterView, groups: Groups) -> None:
        self._cluster = cluster
        self._groups = groups

    @property
    def own(self) -> int:
        return self._cluster.node_id

    def leader(self, topic: str | bytes, index: int) -> int:
        """The node that leads the partition of the topic of this name or id."""
        cluster = self._cluster
        found = cluster.topic(topic) if isinstance(topic, str) else cluster.topic_by_id(topic)
        if found is None or not 0 <= index < found.partitions:
            return cluster.node_id
        leader = cluster.leader(found, index)
        return cluster.node_id if leader is None else leader.node_id

    def coordinator(self, group_id: str) -> int:
        """The node that coordinates the group."""
        try:
            coordinator = self._groups.coordinator(group_id)
        except Retry:
            return self._cluster.node_id
        return self._cluster.node_id if coordinator is None else coordinator.node_id

    def coordinators(self) -> list[int]:
        """The nodes that coordinate groups."""
        topic = self._cluster.topic(OFFSETS_TOPIC)
        return sorted({self.leader(OFFSETS_TOPIC, index) for index in range(topic.partitions)}) if topic else []

    def owners(self) -> list[int]:
        """The nodes that own anything."""
        return sorted({entries[-1].node_id for entries in self._cluster.state.slots if entries})

    def knows(self, node_id: int) -> bool:
        """Whether there is such a node, alive as far as is known."""
        return node_id in self._cluster.nodes
