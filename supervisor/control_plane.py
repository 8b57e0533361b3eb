"""A broker's part in its cluster: what it owns, who else is there, and what it does about it.

Builds and owns the controller, the posts, the membership and the balancer, and wires them: versions of the cluster log
go to the workers and to coordination, news of coordination to whoever acts on it. It must not know sockets, files or
processes, so that a simulation can run many: what starts processes, and what workers need besides their assignment,
comes in. With an embedded coordination store this broker is the whole cluster, and every slot is its own at every
start. With another it is one of several: it registers, takes back only what it owned, and gives everything away before
it drains (`leave`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.control import AuditBatch, ClusterVersion, Configure, NodeAddress, Nodes, PeerReleased, Released, ToWorker
from kafscale.coordination.assignment import NODES_PER_BROKER, broker_of
from kafscale.coordination.cluster import ClusterState
from kafscale.coordination.store import ClusterIdentity, CoordinationStore, EmbeddedCoordination, Member
from kafscale.errors import KafscaleError, StoreFailed
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import ObjectStore
from kafscale.storage.takeover import LogReader
from supervisor.background import Background
from supervisor.balancer import Balancer
from supervisor.child import Child
from supervisor.controller import Controller
from supervisor.hints import awaited
from supervisor.membership import Membership
from supervisor.post import Duties, Post
from supervisor.requests import CommandRequests
from supervisor.restarts import Restarts
from supervisor.sealing import LogEnder
from supervisor.spawner import Spawner
from supervisor.store_watch import StoreWatch
from supervisor.strays import bring_home
from supervisor.sweeping import sweep_ended_logs

log = logging.getLogger(__name__)

# A node that has been down for so long is no longer shown to clients, who would wait for it.
SHOWN_WHILE_DOWN_SECONDS = 10.0
# How often the bucket is asked for versions that nobody told of: while coordination answers, and while it doesn't.
LOOK_SECONDS = 10.0
LOOK_ALONE_SECONDS = 1.0
# A broker whose registration coordination has lost registers again within so long.
REGISTER_AGAIN_SECONDS = 2.0
LEAVE_POLL_SECONDS = 0.05


class AclFollower(Protocol):
    """Who sees to it that workers go by what the cluster log says of ACLs."""

    async def prepare(self, state: ClusterState) -> None:
        """Called before the first worker is configured."""

    def heard_of(self, state: ClusterState) -> None:
        """Called with every version after that."""

    async def wait_until_in_force(self, version: int) -> None:
        """Return once the workers go by what was said of ACLs at `version`."""

    def came_into_force(self, child: Child, generation: int) -> None:
        """Called when a worker says that it goes by a snapshot."""


class NoAcls:
    """For a broker whose workers allow everything."""

    async def prepare(self, state: ClusterState) -> None:
        return

    def heard_of(self, state: ClusterState) -> None:
        return

    async def wait_until_in_force(self, version: int) -> None:
        return

    def came_into_force(self, child: Child, generation: int) -> None:
        return


@dataclass(frozen=True)
class Surroundings:
    """What the broker's process provides. `node_addresses` says where clients reach its nodes, given their numbers by
    worker index; `configure` who a worker is and what it inherits. `peer` is where other supervisors reach this one
    ("host:port"), and `send_hint` sends to such an address. `on_keys_wanted`: a worker met an unknown signing key;
    `on_audit`: one has something to be put on record."""

    spawner: Spawner
    node_addresses: Callable[[Sequence[int]], list[NodeAddress]]
    peer: str
    configure: Callable[[Post], Configure]
    on_post_change: Callable[[Post], None]
    on_nodes: Callable[[list[NodeAddress]], None]
    send_hint: Callable[[str, PeerReleased], Awaitable[None]]
    fail: Callable[[BaseException], None]
    kill_hung: bool = True
    acls: AclFollower = field(default_factory=NoAcls)
    on_keys_wanted: Callable[[], None] = lambda: None
    on_audit: Callable[[Child, AuditBatch], None] = lambda child, batch: None


class ControlPlane:
    """`start` once; `leave` before the workers are drained; `close` at the end."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        random_source: random.Random,
        store: ObjectStore,
        coordination: CoordinationStore,
        background: Background,
        surroundings: Surroundings,
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random_source
        self._store = store
        self._coordination = coordination
        self._background = background
        self._surroundings = surroundings
        self._bugs = bugs
        self._keys = keys = Keys(settings.cluster_namespace)
        self._in_cluster = not isinstance(coordination, EmbeddedCoordination)
        # The newest version of the cluster log, as published or to be published anew.
        self._newest: tuple[int, bytes] = (0, b"")
        self._look_due = asyncio.Event()
        writer_id = secrets.token_hex(16)
        self._ender = LogEnder(store, keys, clock, random_source, writer_id, bugs)
        self._cluster_log = ClusterLog(store, keys, clock, random_source)
        self.controller = Controller(
            self._cluster_log,
            clock,
            settings,
            writer_id,
            self._on_version,
            lambda: coordination.is_available,
        )
        self.store_watch = StoreWatch(store, keys, clock)
        self._requests = CommandRequests(self.controller, surroundings.fail, surroundings.acls.wait_until_in_force)
        self.posts = self._make_posts()
        ttl_seconds = coordination.ttl_seconds
        self.membership = Membership(coordination, clock, self._member, self._on_nodes, ttl_seconds)
        self._balancer = Balancer(
            coordination,
            self.controller,
            self._ender,
            LogReader(store, keys, clock, random_source),
            clock,
            ttl_seconds + REGISTER_AGAIN_SECONDS,
            self.store_watch,
            settings.broker_id,
        )

    @property
    def in_cluster(self) -> bool:
        """Whether there may be other brokers."""
        return self._in_cluster

    def _make_posts(self) -> list[Post]:
        settings, surroundings = self._settings, self._surroundings
        duties = Duties(
            clock=self._clock,
            spawner=surroundings.spawner,
            controller=self.controller,
            ender=self._ender,
            hang_seconds=settings.worker_hang_timeout_ms / 1000,
            kill_hung=surroundings.kill_hung,
            configure=surroundings.configure,
            on_change=self._on_post_change,
            on_command=self._requests.accept,
            on_store_broken=lambda reason: surroundings.fail(StoreFailed(reason)),
            on_released=self._on_released,
            on_keys_wanted=surroundings.on_keys_wanted,
            on_acls_in_force=surroundings.acls.came_into_force,
            on_audit=surroundings.on_audit,
        )
        return [
            Post(index, settings.broker_id * NODES_PER_BROKER + index, Restarts(self._random), duties)
            for index in range(settings.workers)
        ]

    async def start(self, children: Sequence[Child]) -> None:
        """Take the broker's place in the cluster, with `children` as its workers. Raises StartError, Corrupt,
        StoreError."""
        controller, coordination, background = self.controller, self._coordination, self._background
        background.spawn_loop(self.store_watch.run(), "store watch")
        incarnations = [post.incarnation for post in self.posts]
        state = await controller.load(incarnations)
        coordination.on_change = self._on_coordination_change
        await coordination.open(ClusterIdentity(state.cluster_id, state.slot_count, state.format_version))
        await self.membership.claim()
        await controller.start(
            incarnations,
            lambda log_id: self._ender.end_or_leave(log_id, "the broker was started anew"),
            self._settings.broker_id if self._in_cluster else None,
        )
        if self._newest[0] < controller.version:
            self._newest = (controller.version, await self._cluster_log.read(controller.version) or b"")
        await self._publish()
        await self._surroundings.acls.prepare(controller.state)
        await coordination.campaign()
        for post, child in zip(self.posts, children, strict=True):
            background.spawn_loop(post.run(child), f"post {post.index}")
        background.spawn_loop(self.membership.run(), "membership")
        background.spawn_loop(self._sweep(), "sweep")
        if self._in_cluster:
            background.spawn_loop(self._balancer.run(), "balancer")
            background.spawn_loop(bring_home(self._clock, controller, self._ender, self.posts), "strays")
            background.spawn_loop(self._look_for_versions(), "versions")

    async def leave(self, seconds: float, give_up: Callable[[], bool]) -> None:
        """Have other brokers take everything over, so that clients lose nothing but a moment. Given up when nobody is
        there, when it takes longer than `seconds`, and once `give_up` says so: what is left is found ended by whoever
        takes it."""
        if not self._in_cluster or give_up():
            return
        if not self._coordination.is_available or not self.membership.others_stay:
            return
        log.info("leaving the cluster")
        self.membership.leave()
        began = self._clock.monotonic()
        # Named by no list, no life of ours: what was given away is another's, whose checkpoint was read.
        while self._is_named():
            if give_up() or not self.membership.others_stay:
                return
            if self._clock.monotonic() >= began + seconds:
                log.warning("other brokers did not take over everything in time")
                return
            await self._clock.sleep(LEAVE_POLL_SECONDS)
        log.info("other brokers have taken everything over", extra={"after": round(self._clock.monotonic() - began, 3)})

    async def close(self) -> None:
        """Give up what is not decided yet, and leave coordination."""
        await self._requests.close()
        await self.controller.close()
        self._coordination.on_change = lambda: None
        await self._coordination.close()

    def on_hint(self, hint: PeerReleased) -> None:
        """Another broker's supervisor, or one of our own workers, says that slots were released."""
        if not self.controller.version:
            return
        posts = {post.log_id: post for post in self.posts}
        for log_id, part in awaited(self.controller.state, hint, list(posts)).items():
            child = posts[log_id].child
            if child is not None:
                child.send(part)

    def _is_named(self) -> bool:
        return any(
            broker_of(entry.node_id) == self._settings.broker_id
            for entries in self.controller.state.slots
            for entry in entries
        )

    def _node_addresses(self) -> list[NodeAddress]:
        """This broker's nodes as clients are told of them: not those that have been down for long."""
        now = self._clock.monotonic()
        nodes = self._surroundings.node_addresses([post.node_id for post in self.posts])
        return [
            msgspec.structs.replace(node, rack=self._settings.rack)
            for post, node in zip(self.posts, nodes, strict=True)
            if post.down_since is None or now - post.down_since < SHOWN_WHILE_DOWN_SECONDS
        ]

    def _member(self) -> Member:
        """This broker as the others see it."""
        return Member(
            broker_id=self._settings.broker_id,
            nodes=tuple(self._node_addresses()),
            incarnations=tuple(post.incarnation for post in self.posts if post.serving),
            peer=self._surroundings.peer,
            leaving=self.membership.leaving,
            rack=self._settings.rack,
            store_silent=self.store_watch.is_silent,
        )

    # What the parts report.

    def _on_version(self, version: int, payload: bytes) -> None:
        self._newest = (version, payload)
        self._surroundings.acls.heard_of(self.controller.state)
        self.send_to_all(ClusterVersion(version, payload))
        self._background.spawn_task(self._publish(), "publish")
        self._balancer.wake()

    async def _publish(self) -> None:
        """Bring coordination up to the newest version. What fails is done again when coordination has news."""
        version, payload = self._newest
        if version <= self._coordination.newest_version:
            return
        try:
            await self._coordination.publish(version, payload)
        except KafscaleError as error:
            log.warning("a version could not be published", extra={"version": version, "cause": str(error)})

    def _on_coordination_change(self) -> None:
        if not self._coordination.is_available:
            # Who are not cut off may be giving our slots to others: no long wait that has begun goes on.
            self._look_due.set()
        self.controller.heard_of(self._coordination.newest_version)
        self.membership.changed()
        self._balancer.wake()
        if self._coordination.newest_version < self._newest[0]:
            self._background.spawn_task(self._publish(), "publish")

    def _on_nodes(self, nodes: list[NodeAddress]) -> None:
        self.send_to_all(Nodes(nodes))
        self._surroundings.on_nodes(nodes)

    def _on_released(self, sender: Post, released: Released) -> None:
        """Whoever the slots were given to, here or at another broker, need not look for the release."""
        hint = PeerReleased(released.log_id, released.slots, released.sequence)
        self.on_hint(hint)
        for member in self._coordination.members():
            if member.broker_id != self._settings.broker_id and member.peer:
                log_ids = [worker.log_id for worker in member.incarnations]
                for part in awaited(self.controller.state, hint, log_ids).values():
                    self._background.spawn_task(self._tell(member.peer, part), "hint")

    async def _tell(self, peer: str, hint: PeerReleased) -> None:
        await self._surroundings.send_hint(peer, hint)

    def send_to_all(self, message: ToWorker) -> None:
        """Send to every worker that there is."""
        for post in self.posts:
            if post.child is not None:
                post.child.send(message)

    def _on_post_change(self, post: Post) -> None:
        self.membership.changed()
        self._surroundings.on_post_change(post)

    # Now and then

    async def _look_for_versions(self) -> None:
        """Ask the bucket for versions of which coordination does not tell."""
        while True:
            wait = LOOK_SECONDS if self._coordination.is_available else LOOK_ALONE_SECONDS
            timer = self._clock.call_later(wait, self._look_due.set)
            try:
                await self._look_due.wait()
            finally:
                timer.cancel()
            self._look_due.clear()
            self.controller.look()

    async def _sweep(self) -> None:
        await sweep_ended_logs(
            self._settings,
            self._store,
            self._keys,
            self._clock,
            self._random,
            self.controller,
            self._coordination,
            self.posts,
            self._ender,
            self._bugs,
        )
