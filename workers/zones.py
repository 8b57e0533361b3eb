"""Zones (Kafka's racks): which node serves a slot's older data to clients of a zone, and who is sent there (KIP-392).

Pure choice: the same nodes give the same answer at every worker, so that what leaders say and what Metadata lists
agree, and so that a zone reads a slot through one worker's cache. Whoever is sent away and comes back for the same
record has found nobody there, or one who knows less: the leader serves him for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from kafscale.control import NodeAddress

if TYPE_CHECKING:
    from kafscale.storage.partition import PartitionLog
    from workers.context import Context
    from workers.listener import Listener

# How long a client that came back is not sent away again, as to the partition that it came back for.
KEPT_SECONDS: Final = 60.0
# Of one client, how many partitions are remembered; the oldest are forgotten.
REMEMBERED_MAX: Final = 10_000


class Zones:
    """The nodes by zone; those of no zone read for nobody."""

    def __init__(self, nodes: Iterable[NodeAddress]) -> None:
        self._nodes: dict[str, list[int]] = {}
        self._zone_of: dict[int, str] = {}
        for node in sorted(nodes, key=lambda node: node.node_id):
            if node.rack is not None:
                self._nodes.setdefault(node.rack, []).append(node.node_id)
                self._zone_of[node.node_id] = node.rack

    def reader(self, slot: int, zone: str) -> int | None:
        """Who reads the slot for clients of the zone; None if the zone has no node."""
        nodes = self._nodes.get(zone)
        return None if nodes is None else nodes[slot % len(nodes)]

    def readers(self, slot: int, leader: int) -> list[int]:
        """Who reads the slot beside its leader: a node for each other zone."""
        leaders = self._zone_of.get(leader)
        return [nodes[slot % len(nodes)] for zone, nodes in self._nodes.items() if zone != leaders]


class SentAway:
    """What one client was sent away for: partition → from which offset on, when, and whether it came back since."""

    __slots__ = ("_partitions",)

    def __init__(self) -> None:
        self._partitions: dict[tuple[bytes, int], tuple[int, float, bool]] = {}

    def may_go(self, partition: tuple[bytes, int], offset: int, now: float) -> bool:
        """Whether the client is sent away at this offset, which is noted; else it is served here."""
        before = self._partitions.get(partition)
        if before is not None and now - before[1] < KEPT_SECONDS:
            at, _, is_kept = before
            if is_kept:
                return False
            if at == offset:
                self._partitions[partition] = (offset, now, True)
                return False
        elif len(self._partitions) >= REMEMBERED_MAX:
            del self._partitions[next(iter(self._partitions))]
        self._partitions[partition] = (offset, now, False)
        return True


def reader_for(context: Context, listener: Listener, zone: str, partition: PartitionLog, offset: int) -> int | None:
    """The node that serves the record at `offset`, which is not in memory here, to clients of the zone; None if that is
    this one's to do: it is the client's zone, nobody is there, or nothing published describes the record."""
    cluster = context.cluster
    if listener.is_shared or zone == context.settings.rack or offset >= partition.published_offset:
        return None
    reader = cluster.zones().reader(partition.slot, zone)
    if reader is None or reader == cluster.node_id or listener.address(cluster, reader) is None:
        return None
    return reader
