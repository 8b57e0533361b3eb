"""A listening address as its clients see the cluster through it: which nodes there are, and who leads what.

Clients of an ordinary listener are told of every worker at an address of its own, and of the leaders by their node ids.
Clients of a *shared* listener reach all workers at one address, so they are told of one node, which leads and
coordinates everything, and whoever receives a request passes it on to its owner. One node and not many at one address,
since there are clients that take nodes of the same host and port for one and the same. Immutable; knows no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kafscale.config import Endpoint
from kafscale.control import NodeAddress

if TYPE_CHECKING:
    from workers.context import ClusterView

# The number of the one node that clients of a shared listener know.
ONE_NODE_ID: Final = 0


class Listener:
    """`shared_at`: the address in front of all workers, or None where every worker is reached at its own."""

    __slots__ = ("_one", "is_shared", "name")

    def __init__(self, name: str, shared_at: Endpoint | None = None) -> None:
        self.name = name
        self.is_shared = shared_at is not None
        self._one = None if shared_at is None else NodeAddress(ONE_NODE_ID, shared_at.host, shared_at.port)

    def nodes(self, cluster: ClusterView) -> list[NodeAddress]:
        """The nodes that clients are told of, by number."""
        if self._one is not None:
            return [self._one]
        told = (node.at(self.name) for _, node in sorted(cluster.nodes.items()))
        return [node for node in told if node is not None]

    def told(self, node_id: int) -> int:
        """The number under which clients know a node."""
        return node_id if self._one is None else ONE_NODE_ID

    def address(self, cluster: ClusterView, node_id: int) -> NodeAddress | None:
        """Where clients reach a node; None while it is not alive, or if it has no such listener."""
        node = cluster.nodes.get(node_id)
        return None if node is None else self._one or node.at(self.name)

    def readers(self, cluster: ClusterView, slot: int, leader: int) -> tuple[int, ...]:
        """Who reads the slot's older data beside its leader, for clients of other zones."""
        if self._one is not None:
            return ()
        readers = cluster.zones().readers(slot, leader)
        return tuple(node for node in readers if self.address(cluster, node) is not None)

    def controller(self, cluster: ClusterView) -> int:
        """The node to send admin requests to: the one that answers, or any that is alive; -1 if none is."""
        if self._one is not None:
            return ONE_NODE_ID
        if self.address(cluster, cluster.node_id) is not None:
            return cluster.node_id
        return min((node.node_id for node in self.nodes(cluster)), default=-1)
