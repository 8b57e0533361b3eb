"""A worker as an operating-system process: its control socket, its listening sockets, its loop, its end.

Spawned by the supervisor with descriptors by number. It exits when the control socket closes (its supervisor is gone),
when its incarnation is fenced, and after a drain. Exit status: 0 drained, 1 anything else. It binds nothing itself.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import functools
import gc
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import cast

import uvloop

from kafscale import logs
from kafscale.census import Census
from kafscale.clock import SystemClock
from kafscale.control import (
    AdoptListener,
    Configure,
    Drain,
    DropListener,
    NodeAddress,
    PeerSockets,
    ToSupervisor,
    ToWorker,
    encode_frame,
    worker_side_reader,
)
from kafscale.coordination.assignment import NODES_PER_BROKER, broker_of
from kafscale.errors import KafscaleError
from kafscale.metrics import ACL_SNAPSHOTS_REFUSED, MetricsBlock
from kafscale.quota_use import QuotaUse
from kafscale.security.snapshot import Snapshot
from kafscale.storage.metered import Meter
from kafscale.storage.opening import open_store
from workers.acceptor import BACKLOG, Acceptor, Pace
from workers.peers.outgoing import OutgoingLink
from workers.peers.peers import Peers
from workers.snapshots import SnapshotReceiver
from workers.worker import Worker

log = logging.getLogger(__name__)

# Collections otherwise set the tail latency: few, and never of what was there at the start.
GC_THRESHOLDS = (50_000, 50, 100)
_PR_SET_PDEATHSIG = 1


class Process(asyncio.Protocol):
    """The control socket's protocol, and through it the whole process."""

    def __init__(self, descriptors: socket.socket) -> None:
        self.exit_status = 1
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = worker_side_reader()
        self._clock = SystemClock()
        self._transport: asyncio.Transport | None = None
        self._worker: Worker | None = None
        self._metrics: MetricsBlock | None = None
        self._census = Census.alone()
        self._quota_use: QuotaUse | None = None
        # What came with `Configure` in one read. A version of the cluster log among it is not told twice.
        self._early: list[ToWorker] = []
        self._configure: Configure | None = None
        # For other workers; clients come by the acceptor.
        self._servers: dict[int, asyncio.Server] = {}
        self._acceptor: Acceptor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # The newest snapshot of ACLs, and that there is one.
        self._snapshot: Snapshot | None = None
        self._has_snapshot = asyncio.Event()
        self._snapshots = SnapshotReceiver(descriptors, self._on_snapshot, self._on_refused_snapshot)
        self._snapshots.start()

    # The control socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            match message:
                case Configure():
                    self._run(self._start(message))
                case Drain():
                    self._run(self._drain())
                case AdoptListener(worker_index):
                    self._adopt(worker_index)
                case DropListener(worker_index):
                    self._drop(worker_index)
                case _ if self._worker is None:
                    self._early.append(message)  # type: ignore[arg-type]
                case _:
                    if not self._worker.is_stopped:
                        self._worker.receive(message)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            log.info("the supervisor is gone; the worker ends")
        self._finish(1)

    def send(self, message: ToSupervisor) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    # The socket for descriptors

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._has_snapshot.set()
        if self._worker is not None:
            self._worker.use_acls(snapshot)

    def _on_refused_snapshot(self) -> None:
        if self._metrics is not None:
            self._metrics.cells[ACL_SNAPSHOTS_REFUSED] += 1

    # Life

    async def _start(self, configure: Configure) -> None:
        settings = configure.settings
        logs.configure(settings, "worker", worker=configure.worker_index)
        metrics = self._metrics = MetricsBlock.attach(configure.metrics_fd)
        metrics.begin_incarnation()
        if configure.census_fd is not None:
            self._census = Census.attach(configure.census_fd, configure.worker_index)
            self._census.begin_incarnation()
        if configure.quota_use_fd is not None:
            self._quota_use = QuotaUse.attach(configure.quota_use_fd, configure.worker_index)
            self._quota_use.begin_incarnation()
        self._configure = configure
        # Ids must differ between incarnations: seeded by the operating system.
        source = random.Random(int.from_bytes(os.urandom(16), "big"))  # nosec B311
        store = open_store(settings, self._clock, source, Meter(metrics.cells, self._clock))
        self._worker = Worker(
            configure,
            store,
            self._clock,
            source,
            metrics,
            self.send,
            self._stopped,
            dial=self._dial,
            census=self._census,
            quota_use=self._quota_use,
        )
        for message in self._early:
            self._worker.receive(message)
        self._early.clear()
        if self._snapshot is not None:
            self._worker.use_acls(self._snapshot)
        await self._worker.start(self._listen_to_all)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def _listen_to_all(self) -> None:
        assert self._configure is not None and self._worker is not None
        if self._configure.settings.acl_enabled:
            # Nobody could do anything yet.
            await self._has_snapshot.wait()
        if self._worker.peers is not None and self._configure.peers is not None:
            await self._listen_to_peers(self._worker.peers, self._configure.peers)
        self._listen_to_clients(self._configure, self._worker)

    async def _listen_to_peers(self, peers: Peers, sockets: PeerSockets) -> None:
        loop = asyncio.get_running_loop()
        # A duplicate: closing it here closes it for nobody else.
        siblings = socket.socket(fileno=os.dup(sockets.sibling_fd))
        accept = functools.partial(peers.accept, is_private=True)
        self._servers[sockets.sibling_fd] = await loop.create_unix_server(accept, sock=siblings, backlog=BACKLOG)
        if sockets.peer_fd >= 0:
            others = socket.socket(fileno=os.dup(sockets.peer_fd))
            accept = functools.partial(peers.accept, is_private=False)
            self._servers[sockets.peer_fd] = await loop.create_server(accept, sock=others, backlog=BACKLOG)

    async def _dial(self, node: NodeAddress, link: OutgoingLink) -> None:
        """Connect a link to another worker: to a sibling by the broker's own sockets, to others over TCP."""
        configure = self._configure
        assert configure is not None and configure.peers is not None
        loop = asyncio.get_running_loop()
        if broker_of(node.node_id) != broker_of(configure.node_id):
            host, _, port = node.peer.rpartition(":")
            await loop.create_connection(lambda: link, host.strip("[]"), int(port))
            return
        sibling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sibling.setblocking(False)
            # At once, or not at all: nobody has to be there yet.
            sibling.connect(f"{configure.peers.sibling_name}{node.node_id % NODES_PER_BROKER}")
            await loop.create_unix_connection(lambda: link, sock=sibling)
        except BaseException:
            sibling.close()
            raise

    def _listen_to_clients(self, configure: Configure, worker: Worker) -> None:
        pace = Pace(configure.settings.connections_per_second_max, self._clock, self._census)
        self._acceptor = Acceptor(pace, self._clock)
        for sockets in configure.sockets:
            for fd in (sockets.private_fd, sockets.bootstrap_fds[configure.worker_index]):
                if fd >= 0:
                    self._acceptor.open(fd, worker.entrance(sockets.name).arrive)

    def _adopt(self, worker_index: int) -> None:
        if self._configure is None or self._worker is None or self._acceptor is None or self._worker.is_stopped:
            return
        for sockets in self._configure.sockets:
            self._acceptor.open(sockets.bootstrap_fds[worker_index], self._worker.entrance(sockets.name).arrive)

    def _drop(self, worker_index: int) -> None:
        if self._configure is not None and self._acceptor is not None:
            for sockets in self._configure.sockets:
                self._acceptor.close(sockets.bootstrap_fds[worker_index])

    async def _drain(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        if self._acceptor is not None:
            self._acceptor.close_all()
        if self._worker is not None and not self._worker.is_stopped:
            await self._worker.drain()
        self._finish(0)

    def _stopped(self, reason: str) -> None:
        log.error("the worker stops", extra={"why": reason})
        self._finish(1)

    def _finish(self, status: int) -> None:
        if not self.over.done():
            self.exit_status = status
            self.over.set_result(None)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, KafscaleError):
            log.critical("the worker can't go on", extra={"why": str(error)})
        else:
            log.critical("the worker can't go on", exc_info=error)
        self._finish(1)


def die_with_parent() -> None:
    """Have the kernel kill this process if its supervisor dies, even while it is stopped or hangs (Linux)."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


async def _main(control_fd: int, descriptors_fd: int) -> int:
    control = socket.socket(fileno=control_fd)
    control.setblocking(False)
    descriptors = socket.socket(fileno=descriptors_fd)
    transport, process = await asyncio.get_running_loop().create_connection(lambda: Process(descriptors), sock=control)
    await process.over
    # What was sent last (Drained, WorkerFenced) goes out before the socket closes.
    transport.close()
    return process.exit_status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="workers", description="A Kafscale worker; started by `kafscale serve`.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--descriptors-fd", type=int, required=True)
    given = parser.parse_args(arguments)
    die_with_parent()
    # A person's Ctrl-C goes to the whole group; the supervisor decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = uvloop.run(_main(given.control_fd, given.descriptors_fd))
    # Threads that write may still hang on a dead disk: nothing that matters is left to do.
    sys.stderr.flush()
    os._exit(status)
