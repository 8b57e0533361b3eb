"""What handlers may use: the worker's owners, built once in `workers/worker.py`, and views of the cluster.

A handler gets a `Context` and a `Request`; it owns no state. Everything mutable here has its own owner class elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import msgspec

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.control import NodeAddress
from kafscale.coordination.cluster import Assignment, ClusterState, Topic, slot_of
from kafscale.protocol.headers import RequestHeader
from kafscale.security.access import Access
from workers.zones import Zones

if TYPE_CHECKING:
    from kafscale.metrics import MetricsBlock
    from kafscale.storage.flusher import Flusher
    from kafscale.storage.planted import PlantedBugs
    from kafscale.storage.reads import ColdReader
    from kafscale.storage.worker_log import WorkerLog
    from workers.admin import Admin
    from workers.audit import Recorder
    from workers.authentication import Authenticator
    from workers.authorization import Authority
    from workers.groups import Groups
    from workers.lease import Lease
    from workers.listener import Listener
    from workers.ownership import Ownership
    from workers.producer_ids import ProducerIds
    from workers.quotas import Quotas
    from workers.read_replicas import ReadReplicas


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request as a handler sees it: its header, who sent it, the listener that decides what the sender is told of
    nodes, and what the sender may do. (A Struct: made for every request, ten times as fast as a frozen dataclass.)"""

    header: RequestHeader
    client_host: str
    principal: str
    listener: Listener
    access: Access


@dataclass(slots=True)
class ClusterView:
    """The cluster as this worker knows it now. Replaced fields, never mutated ones: `state` is immutable."""

    node_id: int
    state: ClusterState
    nodes: Mapping[int, NodeAddress] = field(default_factory=dict)
    _names: dict[bytes, str] = field(default_factory=dict)
    _zones: Zones | None = None
    _zones_of: Mapping[int, NodeAddress] | None = None

    @classmethod
    def of(cls, node_id: int, state: ClusterState) -> Self:
        view = cls(node_id, state)
        view.replace_state(state)
        return view

    def replace_state(self, state: ClusterState) -> None:
        self.state = state
        self._names = {topic.topic_id: name for name, topic in state.topics.items()}

    def topic(self, name: str) -> Topic | None:
        return self.state.topics.get(name)

    def topic_by_id(self, topic_id: bytes) -> Topic | None:
        name = self._names.get(topic_id)
        return None if name is None else self.state.topics.get(name)

    def zones(self) -> Zones:
        """The nodes by zone."""
        if self._zones is None or self._zones_of is not self.nodes:
            self._zones = Zones(self.nodes.values())
            self._zones_of = self.nodes
        return self._zones

    def leader(self, topic: Topic, partition: int) -> Assignment | None:
        """Who leads the partition, with its leader epoch; None before the slot's first assignment."""
        return self.state.owner(slot_of(topic.topic_id, partition, self.state.slot_count))


@dataclass(frozen=True, slots=True)
class Context:
    """The owners a handler may call."""

    settings: Settings
    clock: Clock
    cluster: ClusterView
    log: WorkerLog
    flusher: Flusher
    cold_reader: ColdReader
    read_replicas: ReadReplicas
    lease: Lease
    ownership: Ownership
    groups: Groups
    admin: Admin
    authenticator: Authenticator
    producer_ids: ProducerIds
    authority: Authority
    quotas: Quotas
    # None where nothing is put on record.
    audit: Recorder | None
    metrics: MetricsBlock
    bugs: PlantedBugs
    # Work begun by handlers that goes on after they return; called off when the worker stops.
    tasks: set[asyncio.Task[None]]
    # Begin no more Produce requests until some of what was appended is durable.
    hold_produce: Callable[[], None]
