"""A simulated cluster: brokers that share a bucket and, where there are several, an etcd; and what the world knows.

What the bucket's cluster log says (`state`) is known here the moment that a version comes to be, before any broker
reads it: so the world can tell owners from those that were replaced without knowing it.
"""

from __future__ import annotations

import contextvars
import os
import random
import secrets
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import msgspec

from kafscale.config import Settings
from kafscale.control import PeerReleased
from kafscale.coordination.cluster import OFFSETS_TOPIC, Assign, ClusterState, apply, decode_version, slot_of
from kafscale.coordination.etcd import EtcdCoordination
from kafscale.coordination.etcd_client import EtcdServers
from kafscale.coordination.store import CoordinationStore, EmbeddedCoordination
from kafscale.errors import Corrupt
from kafscale.storage import compaction_plan, extents, flusher, rewriting
from kafscale.storage.cluster_log import open_envelope
from kafscale.storage.compaction import CompactionPolicy
from kafscale.storage.keys import Keys, sequence_of
from kafscale.storage.planted import PlantedBugs
from tests.sim.broker import SimBroker, SimSupervisor
from tests.sim.etcd import SimEtcd
from tests.sim.history import Partition
from tests.sim.network import Network
from tests.sim.store import Bucket
from tests.sim.worker import WorkerProcess
from tests.sim.world import Process, SimClock, World

_LARGE_EXTENTS_MATTER_TO = (compaction_plan, extents, flusher, rewriting)
_NO_SERVERS = EtcdServers(endpoints=(("sim", 2379),))
HINT_LOST = 0.1
HINT_TWICE = 0.05
LEADERS_SEEN_SECONDS = 0.25
# After etcd has lost what it held, a leader goes on believing in itself for its lease.
LEADERS_AFTER_LOSS_LEASES = 2


@contextmanager
def predictable(source: random.Random) -> Iterator[None]:
    """Draw what production code takes from the machine's randomness by the seed instead; and have compaction give
    partitions segments of their own, and leave large extents in place, at the sizes that a simulation comes to."""

    def pidfd_open(pid: int, flags: int = 0) -> int:
        return os.open(os.devnull, os.O_RDONLY)

    segment_min_bytes = source.choice((2000, 20_000))
    with ExitStack() as stack:
        for target, name, replacement in (
            (uuid, "uuid4", lambda: uuid.UUID(int=source.getrandbits(128), version=4)),
            (secrets, "token_hex", lambda count=16: source.randbytes(count).hex()),
            (os, "pidfd_open", pidfd_open),
            (compaction_plan, "SEGMENT_MIN_BYTES", segment_min_bytes),
            *((module, "LARGE_EXTENT_BYTES", segment_min_bytes // 2) for module in _LARGE_EXTENTS_MATTER_TO),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield


class SimCluster:
    """All brokers, dead ones among them, and what they share."""

    def __init__(
        self,
        world: World,
        network: Network,
        bucket: Bucket,
        etcd: SimEtcd | None,
        settings: Settings,
        bugs: PlantedBugs,
        kill_hung: bool = True,
        compaction: CompactionPolicy | None = None,
    ) -> None:
        """Without an `etcd` there may be one broker."""
        self.world = world
        self.network = network
        self.bucket = bucket
        self.etcd = etcd
        self.settings = settings
        self.bugs = bugs
        self.kill_hung = kill_hung
        self.compaction = compaction
        self.brokers: list[SimBroker] = []
        self.state: ClusterState | None = None
        self._keys = Keys(settings.cluster_namespace)
        self._incarnations: dict[Process, WorkerProcess] = {}
        self._leaders: list[tuple[SimSupervisor, CoordinationStore]] = []
        self._pid = 1000
        bucket.on_put = self._on_put
        if etcd is not None:
            self._look_at_leaders()

    def add_broker(self, workers: int, moves_address: bool = False) -> SimBroker:
        settings = msgspec.structs.replace(self.settings, workers=workers)
        broker = SimBroker(self, len(self.brokers), settings, moves_address)
        self.brokers.append(broker)
        return broker

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def coordination(self, process: Process, clock: SimClock, chance: random.Random) -> CoordinationStore:
        """What a supervisor coordinates by. To be called in its process."""
        etcd = self.etcd
        if etcd is None:
            return EmbeddedCoordination()
        ttl_seconds = self.settings.etcd_lease_ttl_ms / 1000
        namespace = self.settings.cluster_namespace
        return EtcdCoordination(_NO_SERVERS, namespace, ttl_seconds, clock, chance, lambda *_: etcd.client(process))

    def send_hint(self, peer: str, hint: PeerReleased) -> None:
        """A datagram: it may be lost, or come twice."""
        chance = self.network.random
        fate = chance.random()
        for _ in range(0 if fate < HINT_LOST else 2 if fate < HINT_LOST + HINT_TWICE else 1):
            self.world.loop.call_later(self.network.delay(), self._hint, peer, hint, context=contextvars.Context())

    def _hint(self, peer: str, hint: PeerReleased) -> None:
        for broker in self.brokers:
            if broker.is_up and broker.supervisor.peer == peer and broker.supervisor.control_plane is not None:
                broker.supervisor.process.deliver(broker.supervisor.control_plane.on_hint, hint)

    # Workers

    def workers(self) -> list[WorkerProcess]:
        return [worker for broker in self.brokers for worker in broker.workers]

    def alive(self) -> list[WorkerProcess]:
        """Worker processes that run a worker now, replaced ones among them."""
        return [worker for broker in self.brokers for worker in broker.alive()]

    def note_incarnation(self, worker: WorkerProcess) -> None:
        self.world.counts["incarnations"] += 1
        self._incarnations[worker.process] = worker

    def current_logs(self) -> set[str]:
        """The logs of the incarnations that their supervisors know."""
        return {post.log_id for broker in self.brokers if broker.is_up for post in broker.supervisor.posts}

    def log_of(self, process: Process) -> str:
        """The log of the incarnation that the process runs, or ran."""
        return self._incarnations[process].log_id

    def owns_slots(self, log_id: str) -> bool:
        """Whether the newest version gives a slot to this log."""
        return self.state is not None and any(entries[-1].log_id == log_id for entries in self.state.slots if entries)

    def is_unwarned(self, process: Process, what: Partition | str, asked_at: float) -> bool:
        """Whether an answer about a partition, or a group, asked for at loop time `asked_at`, may come from an owner
        that was replaced, asked the store about that, and got no answer: the one case in which it may be outdated."""
        worker = self._incarnations[process].worker
        if worker is None or self.state is None:
            return False
        if worker.lease._checked_until <= asked_at + process.machine.monotonic_zero:
            return False
        topic, index = (OFFSETS_TOPIC, worker.groups.partition_of(what)) if isinstance(what, str) else what
        if topic not in self.state.topics:
            return False
        owner = self.state.owner(slot_of(self.state.topics[topic].topic_id, index, self.state.slot_count))
        return owner is not None and owner.log_id != worker.log_id

    # What the world knows

    def _on_put(self, key: str, body: bytes) -> None:
        if not key.startswith(self._keys.cluster_prefix):
            return
        number = sequence_of(key)
        try:
            version = decode_version(open_envelope(number, body, key))
            if version.snapshot is not None:
                self.state = version.snapshot
            elif self.state is not None and number == self.state.version + 1:
                before, self.state = self.state, apply(self.state, version)
                self._note_moves(before, [change for change in version.changes if isinstance(change, Assign)])
        except Corrupt as error:
            self.world.complain(f"version {number} of the cluster log is damaged: {error}")

    def _note_moves(self, before: ClusterState, changes: list[Assign]) -> None:
        for change in changes:
            for slot, entries in change.slots.items():
                old, new = before.owner(slot), entries[-1]
                kind = "shortens" if old == new else "moves"
                logs = ", ".join(f"{entry.epoch}@{entry.node_id} {entry.log_id[:6]}" for entry in entries)
                self.world.trace(f"cluster log {kind} slot {slot}: {logs}")
                if old is not None and old.node_id != new.node_id:
                    self.world.counts["moves between nodes"] += 1
                    if len(entries) > 1 and self._is_served(entries[-2].log_id):
                        self.world.counts["planned moves"] += 1

    def _is_served(self, log_id: str) -> bool:
        return any(worker.log_id == log_id for worker in self.alive())

    def watch_leader(self, supervisor: SimSupervisor, coordination: CoordinationStore) -> None:
        self._leaders.append((supervisor, coordination))

    def _look_at_leaders(self) -> None:
        """No two at once believe that they lead, but for a while after etcd has lost its memory."""
        assert self.etcd is not None
        self._leaders = [(s, coordination) for s, coordination in self._leaders if not s.process.is_dead]
        leaders = [
            s.process.name for s, coordination in self._leaders if not s.process.is_paused and coordination.is_leader
        ]
        patience = LEADERS_AFTER_LOSS_LEASES * self.settings.etcd_lease_ttl_ms / 1000 + LEADERS_SEEN_SECONDS
        now = self.world.loop.time()
        if len(leaders) > 1:
            self.world.counts["two leaders"] += 1
            if now > self.etcd.lost_at + patience:
                self.world.complain(f"{' and '.join(leaders)} lead at once")
        self.world.loop.call_later(LEADERS_SEEN_SECONDS, self._look_at_leaders, context=contextvars.Context())
