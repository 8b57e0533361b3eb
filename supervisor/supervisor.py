"""The broker's parent process: everything that the control plane needs, from the lock to the workers' processes.

The composition root: owns the lock on the data directory, the sockets, the metrics blocks, the store and what goes on
in the background. The order of start makes the first produce possible within a second: lock, ports, processes; the
cluster log is read while they import their code. Signals only ask; `run` acts. What the broker decides, alone or as one
of several, is `ControlPlane`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kafscale.census import Census
from kafscale.clock import Clock
from kafscale.config import Endpoint, Settings
from kafscale.config.listeners import ListenerSettings, listeners_of
from kafscale.control import AdoptListener, Configure, DropListener, NodeAddress, PeerReleased, Security
from kafscale.coordination.cluster import encode_state_without_acls
from kafscale.coordination.opening import open_coordination
from kafscale.coordination.store import CoordinationStore
from kafscale.metrics import MetricsBlock
from kafscale.quota_use import QuotaUse
from kafscale.security.cluster_secret import ClusterSecret, read_secret
from kafscale.storage.directory import check_format, complete_names
from kafscale.storage.keys import Keys
from kafscale.storage.metered import Meter
from kafscale.storage.opening import open_proven_store
from kafscale.storage.store import ObjectStore
from kafscale.storage.threads import Threads
from supervisor import broker_file
from supervisor.acls import Acls
from supervisor.adoption import Adoptions
from supervisor.audit import AuditLog
from supervisor.audit_anchors import Anchors
from supervisor.audit_copies import AuditCopies, hand_to_one
from supervisor.background import Background
from supervisor.control_plane import ControlPlane, Surroundings
from supervisor.data_directory import LOCK_FILE, take_directory
from supervisor.draining import drain_workers
from supervisor.hints import Hints
from supervisor.http import HttpServer
from supervisor.post import Post
from supervisor.security import SecurityWatch
from supervisor.sockets import Listeners, bind_http
from supervisor.spawner import WORKER_COMMAND, Spawner
from supervisor.status import Status

log = logging.getLogger(__name__)

# Of the time to drain, how much may be spent on giving slots to other brokers.
LEAVE_SHARE = 0.5


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
        self._census: Census | None = None
        self._quota_use: QuotaUse | None = None
        self._store: ObjectStore | None = None
        self._coordination: CoordinationStore = coordination or open_coordination(settings, clock, random_source)
        self._control_plane: ControlPlane | None = None
        self._secret = read_secret(settings.cluster_secret, settings.cluster_secret_file)
        self._hints = Hints(self._on_hint, clock, None if self._secret is None else ClusterSecret.parse(self._secret))
        self._spawner: Spawner | None = None
        self._http: HttpServer | None = None
        self._status: Status | None = None
        self._adoptions = Adoptions()
        self._files = Threads("supervisor-files", 1)
        self._audit = AuditLog(settings, clock, self._fail)
        self._security = SecurityWatch(settings, clock, self._files, self._on_security, self._audit.reloaded)
        self._acls = Acls(settings, clock, self._audit.reloaded)
        self._background = Background(self._fail)
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
        self._security.reload()
        self._acls.reload()
        try:
            self._reload()
            self._audit.reloaded("settings", "")
        except Exception as error:
            log.exception("the settings could not be read again; the old ones stay")
            self._audit.reloaded("settings", str(error))

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
                self._audit.stopped(str(self._failure.result()))
                raise self._failure.result()
            self._audit.stopped("" if clean else "not everything was finished in time")
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
        # Other brokers, if there may be any, come to this one's workers.
        peer_host = None if settings.etcd_endpoints is None else settings.reached_at
        self._listeners = Listeners(listeners_of(settings), settings.workers, peer_host, settings.peer_ports)
        http_socket = bind_http(settings.metrics_addr)
        if self._lock is None:
            self._lock = await take_directory(self._root, self._clock)
        check_format(self._root)
        self._audit.prepare(self._root)
        if settings.s3_bucket is None:
            complete_names(self._root)
        self._settings = self._resolved(settings, self._listeners.resolved())
        self._blocks = {index: MetricsBlock.create() for index in range(settings.workers)}
        addresses_max = 0 if settings.connections_max_per_address is None else settings.connections_max
        census = self._census = Census.create(settings.workers, addresses_max)
        quota_use = self._quota_use = QuotaUse.create(settings.workers)
        fds = [block.fd for block in self._blocks.values()] + [census.fd, quota_use.fd]
        block_fds = [fd for fd in fds if fd is not None]
        self._spawner = Spawner(
            self._worker_command, [*self._listeners.descriptors(), *block_fds, self._lock], self._clock
        )
        return http_socket, self._spawner

    async def _start(self) -> None:
        # What is broken in it stops the start before anything is bound.
        await self._security.load()
        http_socket, spawner = await self._bind()
        settings, listeners = self._settings, self._listeners
        assert listeners is not None
        children = [await spawner.start() for _ in range(settings.workers)]
        keys = Keys(settings.cluster_namespace)
        requests = MetricsBlock.in_memory()
        meter = Meter(requests.cells, self._clock)
        store = self._store = await open_proven_store(settings, keys, self._clock, self._random, meter)
        metrics_port = http_socket.getsockname()[1]
        control_plane = self._control_plane = ControlPlane(
            settings,
            self._clock,
            self._random,
            store,
            self._coordination,
            self._background,
            Surroundings(
                spawner=spawner,
                node_addresses=listeners.nodes,
                peer=str(Endpoint(settings.reached_at, metrics_port)),
                configure=self._configure,
                on_post_change=self._on_post_change,
                on_nodes=self._on_nodes,
                send_hint=self._hints.send,
                fail=self._fail,
                kill_hung=self._kill_hung,
                on_keys_wanted=self._security.want_keys,
                acls=self._acls,
                on_audit=self._audit.accept,
            ),
        )
        self._acls.posts = control_plane.posts
        self._status = Status(
            settings,
            self._clock,
            control_plane.posts,
            listeners,
            metrics_port,
            self._blocks,
            control_plane.controller,
            self._coordination,
            lambda: not control_plane.store_watch.is_silent,
            lambda: self._draining,
            requests,
            self._security,
            self._acls,
            self._audit,
        )
        self._http = HttpServer(self._status.pages(), self._clock)
        await self._http.start(http_socket)
        anchors = Anchors(store, keys, settings.broker_id, self._clock, self._random)
        await self._begin_audit(control_plane, anchors)
        if control_plane.in_cluster:
            # Not the host of /metrics, which no other broker need reach.
            await self._hints.start(Endpoint(settings.listen.host, metrics_port))
        await control_plane.start(children)
        self._background.spawn_loop(self._security.run(), "security")
        self._background.spawn_loop(self._acls.run(), "acls")

    async def _begin_audit(self, control_plane: ControlPlane, anchors: Anchors) -> None:
        """Before anybody can do anything that would have to be on record."""
        if self._audit.is_on:
            if self._settings.audit_topic:
                self._audit.copies = AuditCopies(lambda copy: hand_to_one(control_plane.posts, copy))
            state = await control_plane.controller.load([post.incarnation for post in control_plane.posts])
            await self._audit.begin(state.cluster_id, anchors)
            self._audit.started(self._settings)

    def _resolved(self, settings: Settings, listeners: tuple[ListenerSettings, ...]) -> Settings:
        """The settings as workers get them: with the ports that were bound, and paths that don't depend on a folder."""
        first = listeners[0]
        return msgspec.structs.replace(
            settings,
            listeners=listeners,
            listen=first.listen,
            advertise=first.advertise,
            data_dir=str(self._root),
            # A broker alone needs one for its workers only, for as long as it runs.
            cluster_secret=self._secret or secrets.token_urlsafe(32),
        )

    def _configure(self, post: Post) -> Configure:
        assert self._listeners is not None and self._control_plane is not None
        metrics_fd = self._blocks[post.index].fd
        assert metrics_fd is not None and post.child is not None
        self._acls.hand_to(post.child)
        return Configure(
            settings=self._settings,
            worker_index=post.index,
            node_id=post.node_id,
            log_id=post.log_id,
            cluster_state=encode_state_without_acls(self._control_plane.controller.state),
            nodes=self._control_plane.membership.nodes(),
            sockets=self._listeners.sockets(post.index),
            metrics_fd=metrics_fd,
            security=self._security.security,
            peers=self._listeners.peer_sockets(post.index),
            census_fd=None if self._census is None else self._census.fd,
            quota_use_fd=None if self._quota_use is None else self._quota_use.fd,
        )

    # What the control plane reports.

    def _on_hint(self, hint: PeerReleased) -> None:
        assert self._control_plane is not None
        self._control_plane.on_hint(hint)

    def _on_security(self, security: Security) -> None:
        if self._control_plane is not None:
            self._control_plane.send_to_all(security)

    def _on_nodes(self, nodes: list[NodeAddress]) -> None:
        if self._announced:
            self._background.spawn_task(self._write_broker_file(), "broker file")

    def _on_post_change(self, post: Post) -> None:
        assert self._control_plane is not None
        posts = self._control_plane.posts
        self._audit.worker_changed(post.index, post.node_id, "" if post.serving else post.trouble)
        serving = {p.index for p in posts if p.serving}
        orphaned = {p.index for p in posts if p.ever_served and not p.serving}
        for order in self._adoptions.settle(serving, orphaned):
            adopter = posts[order.adopter].child
            if adopter is not None:
                adopter.send(AdoptListener(order.worker) if order.adopt else DropListener(order.worker))
        if len(serving) < len(posts) or self._draining:
            return
        self._background.spawn_task(self._write_broker_file(), "broker file")
        if self._keep_spare and self._spawner is not None:
            self._background.spawn_loop(self._spawner.prepare_spare(), "spare")
        if not self._announced:
            self._announced = True
            assert self._status is not None
            for line in self._status.lines(self._root, self._clock.monotonic() - self._started_at):
                self._announce(line)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    # What is shown

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
        assert self._control_plane is not None
        leave_seconds = self._settings.drain_timeout_ms / 1000 * LEAVE_SHARE
        await self._control_plane.leave(leave_seconds, lambda: self._hurry.is_set() or self._failure.done())
        log.info("draining", extra={"timeout_ms": self._settings.drain_timeout_ms})
        assert self._spawner is not None and self._listeners is not None
        await self._background.end_loops()
        self._spawner.release_spare()
        # New connections are refused once the workers stop listening too.
        self._listeners.close()
        return await drain_workers(self._control_plane.posts, self._clock, until, self._hurry)

    async def _close(self) -> None:
        """Leave nothing behind, however far the start came."""
        await self._background.end()
        if self._spawner is not None:
            await self._spawner.close()
        if self._control_plane is not None:
            await self._control_plane.close()
        else:
            await self._coordination.close()
        self._hints.close()
        await self._audit.close()
        if self._http is not None:
            await self._http.close()
        if self._listeners is not None:
            self._listeners.close()
        if self._store is not None:
            await self._store.close()
        if self._announced:
            await self._files.call(lambda: broker_file.remove(self._root))
        await self._files.close()
        await self._acls.close()
        if self._census is not None:
            self._census.close()
        if self._quota_use is not None:
            self._quota_use.close()
        for block in self._blocks.values():
            block.close()
        if self._lock is not None:
            os.close(self._lock)
