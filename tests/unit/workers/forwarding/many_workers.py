"""Several whole workers behind one address, in virtual time: two of one broker and one of another, on wires in memory.

Slots go round the workers; with one it owns everything, and what it answers is what many must answer. Use inside `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kafscale.config import Endpoint, Settings
from kafscale.control import NodeAddress, Nodes
from kafscale.coordination.assignment import broker_of
from kafscale.coordination.cluster import OFFSETS_TOPIC, Assignment, ClusterState, CreateTopic, Topic
from kafscale.protocol.api import ApiKey
from kafscale.protocol.schema import Message
from tests.unit.storage.rig import log_id
from tests.unit.workers.peers.wires import WireTransport, join
from tests.unit.workers.whole_worker import EPOCH, Client, HeldStore, WholeWorker, id_of
from workers.peers.outgoing import OutgoingLink

NODE_IDS = (0, 1, 100)
SLOTS = 6
SECRET = "the secret that these workers share"
FRONT = Endpoint("front", 9092)


def settings_of(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "cluster_namespace": "ns",
        "shared_address": True,
        "advertise": FRONT,
        "cluster_secret": SECRET,
        "group_initial_rebalance_delay_ms": 0,
    }
    return Settings(**(defaults | changes))


def state_of(owners: tuple[int, ...]) -> ClusterState:
    """Slots go round the owners."""
    slots = [
        [Assignment(EPOCH, owners[slot % len(owners)], log_id(NODE_IDS.index(owners[slot % len(owners)]) + 1))]
        for slot in range(SLOTS)
    ]
    return ClusterState(version=1, cluster_id="c1", slot_count=SLOTS, slots=slots)


class Cluster:
    """Workers `owners`, of which clients reach `front`."""

    def __init__(
        self,
        owners: tuple[int, ...] = NODE_IDS,
        settings: Settings | None = None,
        settings_by_node: dict[int, Settings] | None = None,
        piece_bytes: int = 1 << 20,
    ) -> None:
        settings = settings or settings_of()
        addresses = [
            NodeAddress(node, FRONT.host, FRONT.port, peer=f"host{broker_of(node)}:{30000 + node}") for node in owners
        ]
        self.store = HeldStore()
        self.piece_bytes = piece_bytes
        # (from, to) → the transports of the newest link, at its two ends.
        self.wires: dict[tuple[int, int], tuple[WireTransport, WireTransport]] = {}
        self.dials: list[tuple[int, int]] = []
        self.unreachable: set[int] = set()
        self.addresses = addresses
        self.workers: dict[int, WholeWorker] = {}
        for node in owners:
            self.workers[node] = WholeWorker(
                (settings_by_node or {}).get(node, settings),
                self.store,
                log_number=NODE_IDS.index(node) + 1,
                state=state_of(owners),
                node_id=node,
                nodes=addresses,
                dial=self._dialler(node),
            )
        self.front = self.workers[owners[0]]

    def _dialler(self, node: int) -> Callable[[NodeAddress, OutgoingLink], Any]:
        async def dial(to: NodeAddress, link: OutgoingLink) -> None:
            self.dials.append((node, to.node_id))
            await asyncio.sleep(0)
            if to.node_id in self.unreachable or to.node_id not in self.workers:
                raise OSError("nobody is there")
            peers = self.workers[to.node_id].worker.peers
            assert peers is not None
            is_private = broker_of(node) == broker_of(to.node_id)
            self.wires[node, to.node_id] = join(link, peers.accept(is_private=is_private), self.piece_bytes)

        return dial

    async def start(self) -> Cluster:
        for worker in self.workers.values():
            await worker.start()
        return self

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()

    def create(self, name: str, number: int, partitions: int, **configs: str) -> Topic:
        """A topic whose partition p is led by the p-th worker, going round, if `number` is a multiple of SLOTS."""
        topic = Topic(name, id_of(number), partitions, {key.replace("_", "."): value for key, value in configs.items()})
        for worker in self.workers.values():
            worker.decide(CreateTopic(topic))
        return topic

    def create_offsets_topic(self) -> None:
        self.create(OFFSETS_TOPIC, SLOTS * 1000, SLOTS)

    def forget_node(self, node: int) -> None:
        """The node is no longer among the living."""
        for worker in self.workers.values():
            worker.worker.receive(Nodes([address for address in self.addresses if address.node_id != node]))

    def connect(self) -> Client:
        return self.front.connect()

    async def call(self, key: ApiKey, version: int, message: Message, client: Client | None = None) -> Any:
        return await self.front.call(key, version, message, client)

    def send(self, client: Client, key: ApiKey, version: int, message: Message) -> None:
        self.front.send(client, key, version, message)

    def group_of(self, node: int, prefix: str = "group") -> str:
        """A group that the node coordinates."""
        for number in range(10_000):
            name = f"{prefix}-{number}"
            coordinator = self.front.worker.groups.coordinator(name)
            if coordinator is not None and coordinator.node_id == node:
                return name
        raise AssertionError("no such group")
