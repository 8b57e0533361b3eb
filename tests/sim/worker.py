"""A simulated worker process: a production `Worker`, and the production judgement over it (`Child`), with a process of
the world and a simulated control socket between them. Nothing here decides anything."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from kafscale.control import Configure, Drain, ToSupervisor, ToWorker, encode_frame, worker_side_reader
from kafscale.coordination.cluster import Topic
from kafscale.errors import Fenced
from kafscale.metrics import MetricsBlock
from supervisor.child import Child
from tests.sim.client import BOOTSTRAP_PORT
from tests.sim.network import Listener, Way
from tests.sim.world import Process, SimClock, World
from workers.connection import Connection
from workers.listener import Listener as ClientListener
from workers.worker import Worker

if TYPE_CHECKING:
    from tests.sim.broker import SimBroker

SPAWN_SECONDS = 0.05


class SimSpawner:
    """The supervisor's `Spawner` in the world."""

    def __init__(self, broker: SimBroker, supervisor: Process, clock: SimClock) -> None:
        self._broker = broker
        self._supervisor = supervisor
        self._clock = clock

    async def start(self) -> Child:
        await self._clock.sleep(SPAWN_SECONDS)
        broker = self._broker
        name = f"worker-{broker.broker_id}-{len(broker.workers)}"
        worker = WorkerProcess(broker, broker.world.process(name, broker.machine), self._supervisor)
        broker.workers.append(worker)
        child = worker.child = Child(worker.simulated, None, self._clock)  # type: ignore[arg-type]
        child.connection_made(_ControlTransport(worker.to_worker, worker.control_received))
        return child

    async def take(self) -> Child:
        return await self.start()


class _SimProcess:
    """What `Child` sees of its process: a `subprocess.Popen` of the world."""

    def __init__(self, process: Process, pid: int) -> None:
        self.pid = pid
        self.status = -9
        self._process = process

    def send_signal(self, number: int) -> None:
        self._process.crash()

    def wait(self) -> int:
        return self.status


class _ControlTransport(asyncio.Transport):
    """The supervisor's end of a control socket."""

    def __init__(self, way: Way, deliver: Callable[[bytes], None]) -> None:
        super().__init__()
        self._way = way
        self._deliver = deliver
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._way.send(self._deliver, bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True


class WorkerProcess:
    """A worker process: waits to be told who it is, then runs a production `Worker` until it ends."""

    def __init__(self, broker: SimBroker, process: Process, supervisor: Process) -> None:
        cluster = broker.cluster
        self.process = process
        self.worker: Worker | None = None
        self.configure: Configure | None = None
        self.broker = broker
        self._cluster = cluster
        self._world: World = cluster.world
        self._clock = SimClock(cluster.world, process)
        self._reader = worker_side_reader()
        self._listeners: list[Listener] = []
        self.to_worker = Way(cluster.network, process)
        self._to_supervisor = Way(cluster.network, supervisor)
        self.child: Child | None = None
        self.simulated = _SimProcess(process, cluster.next_pid())
        supervisor.on_crash.append(lambda: self.to_worker.send(self.control_lost))
        process.on_crash.append(self._process_ended)

    @property
    def log_id(self) -> str:
        """The log of the incarnation that the process runs, or ran; empty before it is told."""
        return "" if self.configure is None else self.configure.log_id

    def is_taking_over(self) -> bool:
        """Whether it is to serve slots that it does not serve yet."""
        worker = self.worker
        if worker is None or worker.is_stopped or self.process.is_dead:
            return False
        ownership = worker.ownership
        return bool(ownership.wanted() or ownership._loading)

    # The control socket

    def control_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)  # type: ignore[arg-type]  # the reader is of this direction

    def control_lost(self) -> None:
        """The supervisor is gone: so is this."""
        self._world.trace(f"{self.process.name} loses its supervisor")
        self._exit("its supervisor is gone")

    def _receive(self, message: ToWorker) -> None:
        if isinstance(message, Configure):
            self._boot(message)
        elif isinstance(message, Drain):
            self.process.spawn(self._drain())
        elif self.worker is not None and not self.worker.is_stopped and type(message).__name__[-8:] != "Listener":
            self.worker.receive(message)

    def _send(self, message: ToSupervisor) -> None:
        assert self.child is not None
        self._to_supervisor.send(self.child.data_received, encode_frame(message))

    # Life

    def _boot(self, configure: Configure) -> None:
        cluster = self._cluster
        self.configure = configure
        cluster.note_incarnation(self)
        self._world.trace(f"{self.process.name} is node {configure.node_id} with log {configure.log_id}")
        self.worker = Worker(
            configure,
            cluster.bucket.handle(self.process),
            self._clock,
            self._world.stream(f"{self.process.name} {configure.log_id}"),
            MetricsBlock.in_memory(),
            self._send,
            self._exit,
            cluster.bugs,
        )
        fail = self.worker.ownership._fail

        def failed(slot: int, epoch: int, members: list[tuple[Topic, int]], error: Exception) -> None:
            # Nothing is ever damaged here, but for one that was replaced while it loaded: the sweep has been there.
            owner = cluster.state.owner(slot) if cluster.state is not None else None
            if owner is not None and owner.log_id == configure.log_id:
                self._world.complain(f"{self.process.name} can't load slot {slot}: {error!r}")
            fail(slot, epoch, members, error)

        self.worker.ownership._fail = failed  # type: ignore[method-assign]
        if cluster.compaction is not None:
            self.worker.compactor._policy = cluster.compaction
        self.process.spawn(self._start(self.worker), f"{self.process.name} start")

    async def _start(self, worker: Worker) -> None:
        try:
            await worker.start()
        except Fenced as error:
            self._exit(str(error))
            return
        except Exception as error:  # noqa: BLE001 - a worker that gives up on its own is a defect
            # One that was replaced while it loaded may find nothing: the sweep has been there.
            if self._cluster.owns_slots(worker.log_id):
                self._world.complain(f"{self.process.name} could not start: {error!r}")
            self._exit(repr(error))
            return
        if worker.is_stopped:
            return
        assert self.configure is not None
        connection = functools.partial(Connection, worker.connections, ClientListener("clients"))
        for port in (self.broker.private_ports[self.configure.worker_index], BOOTSTRAP_PORT):
            self._listeners.append(self._cluster.network.listen(port, self.process, connection))

    async def _drain(self) -> None:
        for listener in self._listeners:
            self._cluster.network.unlisten(listener)
        if self.worker is not None and not self.worker.is_stopped:
            await self.worker.drain()
        self.simulated.status = 0
        self._world.loop.call_later(0.01, self.process.crash)

    def _exit(self, reason: str) -> None:
        """End the process, once what it has written has left it."""
        self._world.trace(f"{self.process.name} ends: {reason}")
        if "taken by another writer" in reason:
            self._world.counts["fenced workers"] += 1
        self.simulated.status = 1
        self._world.loop.call_soon(self.process.crash)

    def _process_ended(self) -> None:
        for listener in self._listeners:
            self._cluster.network.unlisten(listener)
        child = self.child
        if child is None:
            return

        def ended() -> None:
            reader = self._world.loop.readers.get(child._pidfd)
            if reader is not None:
                reader[0](*reader[1])

        self._to_supervisor.send(child.connection_lost, None)
        self._to_supervisor.send(ended)
