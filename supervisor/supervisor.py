"""The broker's parent process: builds every part of the control plane, starts the workers, and runs until told to stop.

The composition root: owns the lock on the data directory, the sockets, the metrics blocks, the store and the posts. The
order of start makes the first produce possible within a second: lock, ports, processes; the cluster log is read while
they import their code. Signals only ask; `run` acts.

With an embedded coordination store this broker is the whole cluster, and every slot is its own at every start. With
another it is one of several: it registers, takes back only what it owned, and gives everything away before it drains.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kafscale.clock import Clock
from kafscale.config import Endpoint, Settings
from kafscale.control import (
    AdoptListener,
    ClusterVersion,
    Configure,
    Drain,
    DropListener,
    NodeAddress,
    Nodes,
    PeerReleased,
    Released,
    ToWorker,
)
from kafscale.coordination.assignment import NODES_PER_BROKER, broker_of, given_away, named_logs
from kafscale.coordination.cluster import encode_state
from kafscale.coordination.opening import open_coordination
from kafscale.coordination.store import ClusterIdentity, CoordinationStore, EmbeddedCoordination, Member
from kafscale.errors import Corrupt, KafscaleError, StoreError, StoreFailed
from kafscale.metrics import MetricsBlock
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog
from kafscale.storage.directory import check_format
from kafscale.storage.keys import Keys
from kafscale.storage.metered import MeteredStore
from kafscale.storage.opening import open_proven_store
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.sweep import LogsInUse, sweep
from kafscale.storage.takeover import LogReader
from kafscale.storage.threads import Threads
from supervisor import broker_file
from supervisor.adoption import Adoptions
from supervisor.balancer import Balancer
from supervisor.child import Child, exit_text
from supervisor.controller import Controller
from supervisor.data_directory import LOCK_FILE, take_directory
from supervisor.hints import Hints, awaited
from supervisor.http import HttpServer
from supervisor.membership import Membership
from supervisor.post import Duties, Post
from supervisor.requests import CommandRequests
from supervisor.restarts import Restarts
from supervisor.sealing import LogEnder
from supervisor.sockets import Listeners, bind_http
from supervisor.spawner import WORKER_COMMAND, Spawner
from supervisor.status import Status
from supervisor.strays import bring_home

log = logging.getLogger(__name__)

PROBE_SECONDS = 2.0
STORE_SILENT_SECONDS = 10.0
# A node that has been down for so long is no longer shown to clients, who would wait for it.
SHOWN_WHILE_DOWN_SECONDS = 10.0
# How often the bucket is asked for versions that nobody told of: while coordination answers, and while it doesn't.
LOOK_SECONDS = 10.0
LOOK_ALONE_SECONDS = 1.0
# A broker whose registration coordination has lost registers again within so long.
REGISTER_AGAIN_SECONDS = 2.0
LEAVE_POLL_SECONDS = 0.05
# Of the time to drain, how much may be spent on giving slots to other brokers.
LEAVE_SHARE = 0.5
# After a second signal.
HURRIED_DRAIN_SECONDS = 1.0


class Supervisor:
    """One broker. `run` once."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        random_source: random.Random,
        *,
        announce: Callable[[str], None],
        coordination: CoordinationStore | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        kill_hung: bool = True,
        keep_spare: bool = True,
        reload: Callable[[], None] = lambda: None,
    ) -> None:
        """`announce` gets the lines for the user; `reload` is called on SIGHUP. Without `coordination` the settings say
        which."""
        self._settings = settings
        self._clock = clock
        self._random = random_source
        self._announce = announce
        self._worker_command = worker_command
        self._kill_hung = kill_hung
        self._keep_spare = keep_spare
        self._reload = reload
        self._root = Path(settings.data_dir).absolute()
        self._started_at = clock.monotonic()
        self._stops_asked = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._draining = False
        self._announced = False
        self._lock: int | None = None
        self._listeners: Listeners | None = None
        self._blocks: dict[int, MetricsBlock] = {}
        self._store: ObjectStore | None = None
        self._store_answered_at = clock.monotonic()
        self._coordination: CoordinationStore = coordination or open_coordination(settings, clock, random_source)
        self._in_cluster = not isinstance(self._coordination, EmbeddedCoordination)
        self._membership: Membership | None = None
        self._balancer: Balancer | None = None
        self._hints: Hints | None = None
        # The newest version of the cluster log, as published or to be published anew.
        self._newest: tuple[int, bytes] = (0, b"")
        self._controller: Controller | None = None
        self._spawner: Spawner | None = None
        self._http: HttpServer | None = None
        self._status: Status | None = None
        self._requests: CommandRequests | None = None
        self._posts: list[Post] = []
        self._peer = ""
        self._private_ports: list[int] = []
        self._adoptions = Adoptions()
        self._files = Threads("supervisor-files", 1)
        # What goes on until the broker drains, and what ends by itself.
        self._loops: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # What signals ask for.

    def ask_to_stop(self) -> None:
        """Drain and end; asked a second time, in a hurry."""
        self._stops_asked += 1
        self._stop.set()
        if self._stops_asked > 1:
            self._hurry.set()

    def ask_to_reload(self) -> None:
        """Take over what can be changed while running."""
        try:
            self._reload()
        except Exception:
            log.exception("the settings could not be read again; the old ones stay")

    async def run(self) -> int:
        """Start, serve, drain. Returns the exit code. Raises StartError, Corrupt and StoreError."""
        try:
            stop = asyncio.create_task(self._stop.wait())
            start = asyncio.create_task(self._start())
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
                return 0
            start.result()
            waited: set[asyncio.Future[Any]] = {stop, self._failure}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                log.critical("the broker stops", extra={"cause": str(self._failure.result())})
            clean = await self._drain()
            if self._failure.done():
                raise self._failure.result()
            return 0 if clean else 1
        finally:
            stop.cancel()
            await self._close()

    # Start

    async def _bind(self) -> tuple[socket.socket, Spawner]:
        """Take the data directory and the ports; returns the socket for HTTP, and what starts processes that inherit
        the others."""
        settings = self._settings
        # A directory that is not there yet is made only after the ports were found free: a start that fails changes
        # nothing. One that is there may belong to workers that still hold the ports too.
        if (self._root / LOCK_FILE).exists():
            self._lock = await take_directory(self._root, self._clock)
        self._listeners = Listeners(settings.listen, settings.worker_ports, settings.workers)
        http_socket = bind_http(settings.metrics_addr)
        if self._lock is None:
            self._lock = await take_directory(self._root, self._clock)
        check_format(self._root)
        self._settings = self._resolved(settings, self._listeners.endpoint.port)
        self._blocks = {index: MetricsBlock.create() for index in range(settings.workers)}
        metric_fds = [block.fd for block in self._blocks.values() if block.fd is not None]
        self._spawner = Spawner(
            self._worker_command, [*self._listeners.descriptors(), *metric_fds, self._lock], self._clock
        )
        return http_socket, self._spawner

    async def _start(self) -> None:
        http_socket, spawner = await self._bind()
        settings, listeners = self._settings, self._listeners
        assert listeners is not None
        self._private_ports = listeners.private_ports
        children = [await spawner.start() for _ in range(settings.workers)]
        keys = Keys(settings.cluster_namespace)
        ttl_seconds = self._coordination.ttl_seconds
        store = await open_proven_store(settings, keys, self._clock, self._random)
        requests = MetricsBlock.in_memory()
        store = self._store = MeteredStore(store, requests.cells, self._clock)
        writer_id = secrets.token_hex(16)
        ender = LogEnder(store, keys, self._clock, self._random, writer_id)
        cluster_log = ClusterLog(store, keys, self._clock, self._random)
        controller = self._controller = Controller(
            cluster_log,
            self._clock,
            settings,
            writer_id,
            self._on_version,
            lambda: self._coordination.is_available,
        )
        self._requests = CommandRequests(controller, self._fail)
        self._posts = self._make_posts(spawner, controller, ender, self._requests)
        self._peer = str(Endpoint(settings.advertised.host, http_socket.getsockname()[1]))
        membership = self._membership = Membership(
            self._coordination, self._clock, self._member, self._on_nodes, ttl_seconds
        )
        reader = LogReader(store, keys, self._clock, self._random)
        balancer = self._balancer = Balancer(
            self._coordination, controller, ender, reader, self._clock, ttl_seconds + REGISTER_AGAIN_SECONDS
        )
        self._status = Status(
            settings,
            self._clock,
            self._posts,
            self._private_ports,
            http_socket.getsockname()[1],
            self._blocks,
            controller,
            self._coordination,
            self._store_ok,
            lambda: self._draining,
            requests,
        )
        self._http = HttpServer(self._status.pages(), self._clock)
        await self._http.start(http_socket)
        incarnations = [post.incarnation for post in self._posts]
        state = await controller.load(incarnations)
        self._coordination.on_change = self._on_coordination_change
        await self._coordination.open(ClusterIdentity(state.cluster_id, state.slot_count, state.format_version))
        await membership.claim()
        await controller.start(
            incarnations,
            lambda log_id: ender.end_log(log_id, "the broker was started anew"),
            settings.broker_id if self._in_cluster else None,
        )
        if self._newest[0] < controller.version:
            self._newest = (controller.version, await cluster_log.read(controller.version) or b"")
        await self._publish()
        await self._coordination.campaign()
        for post, child in zip(self._posts, children, strict=True):
            self._spawn_loop(post.run(child), f"post {post.index}")
        self._spawn_loop(membership.run(), "membership")
        self._spawn_loop(self._watch(keys), "watch")
        self._spawn_loop(self._sweep_ended_logs(keys), "sweep")
        self._hints = Hints(self._on_hint)
        if self._in_cluster:
            await self._hints.start(settings.metrics_addr.host, http_socket.getsockname()[1])
            self._spawn_loop(balancer.run(), "balancer")
            self._spawn_loop(bring_home(self._clock, controller, ender, self._posts), "strays")
            self._spawn_loop(self._look_for_versions(controller), "versions")

    def _resolved(self, settings: Settings, port: int) -> Settings:
        """The settings as workers get them: with the ports that were bound, and paths that don't depend on a folder."""
        listen = Endpoint(settings.listen.host, port)
        advertised = settings.advertised
        return msgspec.structs.replace(
            settings,
            listen=listen,
            advertise=Endpoint(advertised.host, advertised.port or port),
            data_dir=str(self._root),
        )

    def _make_posts(
        self, spawner: Spawner, controller: Controller, ender: LogEnder, requests: CommandRequests
    ) -> list[Post]:
        duties = Duties(
            clock=self._clock,
            spawner=spawner,
            controller=controller,
            ender=ender,
            hang_seconds=self._settings.worker_hang_timeout_ms / 1000,
            kill_hung=self._kill_hung,
            configure=self._configure,
            on_change=self._on_post_change,
            on_command=requests.accept,
            on_store_broken=lambda reason: self._fail(StoreFailed(reason)),
            on_released=self._on_released,
        )
        return [
            Post(index, self._settings.broker_id * NODES_PER_BROKER + index, Restarts(self._random), duties)
            for index in range(self._settings.workers)
        ]

    def _node_addresses(self) -> list[NodeAddress]:
        """This broker's nodes as clients are told of them: not those that have been down for long."""
        now = self._clock.monotonic()
        host = self._settings.advertised.host
        return [
            NodeAddress(post.node_id, host, port)
            for post, port in zip(self._posts, self._private_ports, strict=True)
            if post.down_since is None or now - post.down_since < SHOWN_WHILE_DOWN_SECONDS
        ]

    def _member(self) -> Member:
        """This broker as the others see it."""
        return Member(
            broker_id=self._settings.broker_id,
            nodes=tuple(self._node_addresses()),
            incarnations=tuple(post.incarnation for post in self._posts if post.serving),
            peer=self._peer,
            leaving=self._membership is not None and self._membership.leaving,
        )

    def _configure(self, post: Post) -> Configure:
        assert self._listeners is not None and self._controller is not None and self._membership is not None
        metrics_fd = self._blocks[post.index].fd
        assert metrics_fd is not None
        return Configure(
            settings=self._settings,
            worker_index=post.index,
            node_id=post.node_id,
            log_id=post.log_id,
            cluster_state=encode_state(self._controller.state),
            nodes=self._membership.nodes(),
            bootstrap_fds=[bound.fileno() for bound in self._listeners.bootstrap],
            private_fd=self._listeners.private[post.index].fileno(),
            metrics_fd=metrics_fd,
        )

    # What posts and the controller report.

    def _on_version(self, version: int, payload: bytes) -> None:
        self._newest = (version, payload)
        self._send_to_all(ClusterVersion(version, payload))
        self._spawn_task(self._publish(), "publish")
        if self._balancer is not None:
            self._balancer.wake()
        self._give_up_logs()

    def _give_up_logs(self) -> None:
        """End the lives of workers that others wait for. Others than a life's own slots are not touched by it, and
        those are back within the time that a replacement takes."""
        assert self._controller is not None
        for post in self._posts:
            if post.child is not None and given_away(self._controller.state, post.log_id):
                post.end_life()

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
        assert self._controller is not None and self._membership is not None and self._balancer is not None
        self._controller.heard_of(self._coordination.newest_version)
        self._membership.changed()
        self._balancer.wake()
        if self._coordination.newest_version < self._newest[0]:
            self._spawn_task(self._publish(), "publish")

    def _on_nodes(self, nodes: list[NodeAddress]) -> None:
        self._send_to_all(Nodes(nodes))
        if self._announced:
            self._spawn_task(self._write_broker_file(), "broker file")

    def _on_released(self, sender: Post, released: Released) -> None:
        """Whoever the slots were given to, here or at another broker, need not look for the release."""
        assert self._controller is not None and self._hints is not None
        hint = PeerReleased(released.log_id, released.slots, released.sequence)
        self._on_hint(hint)
        for member in self._coordination.members():
            if member.broker_id != self._settings.broker_id and member.peer:
                log_ids = [worker.log_id for worker in member.incarnations]
                for part in awaited(self._controller.state, hint, log_ids).values():
                    self._spawn_task(self._hints.send(member.peer, part), "hint")

    def _on_hint(self, hint: PeerReleased) -> None:
        assert self._controller is not None
        posts = {post.log_id: post for post in self._posts}
        for log_id, part in awaited(self._controller.state, hint, list(posts)).items():
            child = posts[log_id].child
            if child is not None:
                child.send(part)

    def _send_to_all(self, message: ToWorker) -> None:
        for post in self._posts:
            if post.child is not None:
                post.child.send(message)

    def _on_post_change(self, post: Post) -> None:
        if self._membership is not None:
            self._membership.changed()
            self._give_up_logs()
        serving = {p.index for p in self._posts if p.serving}
        orphaned = {p.index for p in self._posts if p.ever_served and not p.serving}
        for order in self._adoptions.settle(serving, orphaned):
            adopter = self._posts[order.adopter].child
            if adopter is not None:
                adopter.send(AdoptListener(order.worker) if order.adopt else DropListener(order.worker))
        if len(serving) < len(self._posts) or self._draining:
            return
        self._spawn_task(self._write_broker_file(), "broker file")
        if self._keep_spare and self._spawner is not None:
            self._spawn_loop(self._spawner.prepare_spare(), "spare")
        if not self._announced:
            self._announced = True
            assert self._status is not None
            for line in self._status.lines(self._root, self._clock.monotonic() - self._started_at):
                self._announce(line)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    # Now and then

    async def _watch(self, keys: Keys) -> None:
        """Ask the store whether it answers."""
        assert self._store is not None
        while True:
            try:
                async with asyncio.timeout(STORE_SILENT_SECONDS):
                    await self._store.exists(keys.cluster(FIRST_VERSION), Purpose.CLUSTER)
                self._store_answered_at = self._clock.monotonic()
            except StoreFailed:
                raise
            except (StoreError, TimeoutError) as error:
                log.warning("the object store does not answer", extra={"cause": str(error)})
            await self._clock.sleep(PROBE_SECONDS)

    async def _look_for_versions(self, controller: Controller) -> None:
        """Ask the bucket for versions of which coordination does not tell."""
        while True:
            await self._clock.sleep(LOOK_SECONDS if self._coordination.is_available else LOOK_ALONE_SECONDS)
            controller.look()

    async def _sweep_ended_logs(self, keys: Keys) -> None:
        """Delete what ended logs left and nothing names: rare, in the background, by the leader alone."""
        assert self._store is not None and self._controller is not None
        controller = self._controller
        known_seals: set[str] = set()

        async def logs_in_use() -> LogsInUse:
            state = await controller.newest_state()
            owners = {slot: entries[-1] for slot, entries in enumerate(state.slots) if entries}
            return LogsInUse(
                live={post.log_id for post in self._posts}
                | {worker.log_id for member in self._coordination.members() for worker in member.incarnations},
                listed=named_logs(state),
                owners={slot: (owner.epoch, owner.log_id) for slot, owner in owners.items()},
            )

        while True:
            await self._clock.sleep(self._settings.sweep_interval_ms / 1000)
            if not self._coordination.is_leader or not self._coordination.is_available:
                continue
            grace_ms = self._settings.sweep_grace_ms
            try:
                result = await sweep(self._store, keys, self._clock, self._random, logs_in_use, grace_ms, known_seals)
            except (StoreError, Corrupt) as error:
                log.warning("sweeping was broken off", extra={"cause": str(error)})
                continue
            if result.refused is not None:
                log.warning("nothing was swept", extra={"cause": result.refused})
            elif result.deleted:
                log.info("swept", extra={"objects": result.deleted, "bytes": result.deleted_bytes})

    # What is shown

    def _store_ok(self) -> bool:
        return self._clock.monotonic() - self._store_answered_at < STORE_SILENT_SECONDS

    async def _write_broker_file(self) -> None:
        assert self._status is not None
        content = self._status.broker_file()
        try:
            await self._files.call(lambda: broker_file.write(self._root, content))
        except OSError as error:
            log.warning("broker.json could not be written", extra={"cause": str(error)})

    # End

    async def _drain(self) -> bool:
        """Let the workers finish; True if all of them did in time."""
        until = self._clock.monotonic() + self._settings.drain_timeout_ms / 1000
        self._draining = True
        await self._leave()
        log.info("draining", extra={"timeout_ms": self._settings.drain_timeout_ms})
        assert self._spawner is not None and self._listeners is not None
        await _cancel(self._loops)
        self._spawner.release_spare()
        # New connections are refused once the workers stop listening too.
        self._listeners.close()
        draining: list[Child] = []
        for post in self._posts:
            if post.child is None:
                continue
            post.child.stop_pings()
            if post.serving:
                draining.append(post.child)
                post.child.send(Drain())
            else:
                post.child.kill()  # It has accepted nothing yet; the next start seals its log.
        all_gone = asyncio.gather(*(child.gone for child in draining))
        hurry = asyncio.create_task(self._hurry.wait())
        seconds = max(0.0, until - self._clock.monotonic())
        waited: set[asyncio.Future[Any]] = {all_gone, hurry}
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if hurry.done() and not all_gone.done():
            await asyncio.wait({all_gone}, timeout=min(seconds, HURRIED_DRAIN_SECONDS))
        hurry.cancel()
        late = [child for child in draining if not child.gone.done()]
        for child in late:
            log.error("worker did not finish in time and is killed", extra={"pid": child.pid})
            child.kill()
        statuses = await all_gone
        for child, status in zip(draining, statuses, strict=True):
            if child not in late and (status != 0 or not child.drained):
                log.error("worker ended badly while draining", extra={"pid": child.pid, "ending": exit_text(status)})
        return all(status == 0 and child.drained for child, status in zip(draining, statuses, strict=True))

    async def _leave(self) -> None:
        """Have other brokers take everything over, so that clients lose nothing but a moment. Given up when nobody is
        there, when it takes long, and in a hurry: what is left is found ended by whoever takes it."""
        membership, controller = self._membership, self._controller
        assert membership is not None and controller is not None
        if not self._in_cluster or self._failure.done() or self._hurry.is_set():
            return
        if not self._coordination.is_available or not membership.others_stay:
            return
        log.info("leaving the cluster")
        membership.leave()
        began = self._clock.monotonic()
        until = began + self._settings.drain_timeout_ms / 1000 * LEAVE_SHARE
        # Named by no list, no life of ours: what was given away is another's, whose checkpoint was read.
        while any(
            broker_of(entry.node_id) == self._settings.broker_id
            for entries in controller.state.slots
            for entry in entries
        ):
            if self._hurry.is_set() or self._failure.done() or not membership.others_stay:
                return
            if self._clock.monotonic() >= until:
                log.warning("other brokers did not take over everything in time")
                return
            await self._clock.sleep(LEAVE_POLL_SECONDS)
        seconds = round(self._clock.monotonic() - began, 3)
        log.info("other brokers have taken everything over", extra={"after": seconds})

    async def _close(self) -> None:
        """Leave nothing behind, however far the start came."""
        await _cancel(self._loops)
        await _cancel(self._tasks)
        if self._requests is not None:
            await self._requests.close()
        if self._spawner is not None:
            await self._spawner.close()
        if self._controller is not None:
            await self._controller.close()
        self._coordination.on_change = lambda: None
        await self._coordination.close()
        if self._hints is not None:
            self._hints.close()
        if self._http is not None:
            await self._http.close()
        if self._listeners is not None:
            self._listeners.close()
        if self._store is not None:
            await self._store.close()
        if self._announced:
            await self._files.call(lambda: broker_file.remove(self._root))
        await self._files.close()
        for block in self._blocks.values():
            block.close()
        if self._lock is not None:
            os.close(self._lock)

    def _spawn_task(self, work: Awaitable[None], name: str) -> None:
        """Run in the background what ends by itself; a failure that nobody expected ends the broker."""
        self._spawn(work, name, self._tasks)

    def _spawn_loop(self, work: Awaitable[None], name: str) -> None:
        """Run until the broker drains."""
        self._spawn(work, name, self._loops)

    def _spawn(self, work: Awaitable[None], name: str, among: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(work)
        among.add(task)
        task.add_done_callback(lambda done: self._task_done(done, name, among))

    def _task_done(self, task: asyncio.Task[None], name: str, among: set[asyncio.Task[None]]) -> None:
        among.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("%s failed", name, exc_info=error)
            self._fail(error)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
