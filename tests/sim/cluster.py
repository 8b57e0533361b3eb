"""A simulated broker: the production supervisor's parts and production workers, each worker a process of the world.

Real are: the controller, the posts (replacement of dead and hung workers), the judgement over a child (`Child`: pings,
hangs, endings), the ending of logs, and everything inside a worker. Simulated are what stands between them: processes,
the control sockets, the listening ports. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from kafscale.config import Settings
from kafscale.control import (
    ClusterVersion,
    Configure,
    Drain,
    NodeAddress,
    Nodes,
    ToSupervisor,
    ToWorker,
    encode_frame,
    worker_side_reader,
)
from kafscale.coordination.assignment import EndedLog, named_logs
from kafscale.coordination.cluster import OFFSETS_TOPIC, encode_state, slot_of
from kafscale.errors import Fenced as FencedError
from kafscale.errors import KafscaleError
from kafscale.metrics import MetricsBlock
from kafscale.storage import compaction_plan, extents, flusher, rewriting
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.compaction import CompactionPolicy
from kafscale.storage.keys import Keys
from kafscale.storage.planted import PlantedBugs
from kafscale.storage.sweep import LogsInUse, sweep
from kafscale.storage.takeover import seal_log
from supervisor.child import Child
from supervisor.controller import Controller
from supervisor.post import Duties, Post
from supervisor.requests import CommandRequests
from supervisor.restarts import Restarts
from supervisor.sealing import LogEnder
from tests.sim.client import BOOTSTRAP_PORT
from tests.sim.history import Partition
from tests.sim.network import Listener, Network, Way
from tests.sim.store import Bucket, StoreHandle
from tests.sim.world import Process, SimClock, World
from workers.worker import Worker

PRIVATE_PORTS = 19_092
SPAWN_SECONDS = 0.05
RESTART_SECONDS = 0.5
_LARGE_EXTENTS_MATTER_TO = (compaction_plan, extents, flusher, rewriting)


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


class _SimProcess:
    """What `Child` sees of its process: a `subprocess.Popen` of the world."""

    def __init__(self, world: World, process: Process, pid: int) -> None:
        self.pid = pid
        self.status = -9
        self._world = world
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
        self.process = process
        self.worker: Worker | None = None
        self.configure: Configure | None = None
        self._broker = broker
        self._clock = SimClock(broker.world, process)
        self.clock = self._clock
        self._reader = worker_side_reader()
        self._listeners: list[Listener] = []
        self.to_worker = Way(broker.network, process)
        self._to_supervisor = Way(broker.network, supervisor)
        self.child: Child | None = None
        self.simulated = _SimProcess(broker.world, process, broker.next_pid())
        supervisor.on_crash.append(lambda: self.to_worker.send(self.control_lost))
        process.on_crash.append(self._process_ended)

    # The control socket

    def control_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)  # type: ignore[arg-type]  # the reader is of this direction

    def control_lost(self) -> None:
        """The supervisor is gone: so is this."""
        self._broker.world.trace(f"{self.process.name} loses its supervisor")
        self._exit("its supervisor is gone")

    def _receive(self, message: ToWorker) -> None:
        if isinstance(message, Configure):
            self._boot(message)
        elif isinstance(message, Drain):
            assert self.worker is not None
            self.process.spawn(self._drain())
        elif self.worker is not None and not self.worker.is_stopped and type(message).__name__[-8:] != "Listener":
            self.worker.receive(message)

    def _send(self, message: ToSupervisor) -> None:
        assert self.child is not None
        self._to_supervisor.send(self.child.data_received, encode_frame(message))

    # Life

    def _boot(self, configure: Configure) -> None:
        broker = self._broker
        self.configure = configure
        broker.world.counts["incarnations"] += 1
        broker.world.trace(f"{self.process.name} is node {configure.node_id} with log {configure.log_id}")
        self.worker = Worker(
            configure,
            broker.bucket.handle(self.process),
            self._clock,
            broker.world.stream(f"{self.process.name} {configure.log_id}"),
            MetricsBlock.in_memory(),
            self._send,
            self._exit,
            broker.bugs,
        )
        if broker.compaction is not None:
            self.worker.compactor._policy = broker.compaction
        self.process.spawn(self._start(self.worker), f"{self.process.name} start")

    async def _start(self, worker: Worker) -> None:
        try:
            await worker.start()
        except FencedError as error:
            self._exit(str(error))
            return
        except Exception as error:  # noqa: BLE001 - a worker that gives up on its own is a defect
            # One that was replaced while it loaded may find nothing: the sweep has been there.
            if any(post.log_id == worker.log_id for post in self._broker.supervisor.posts):
                self._broker.world.complain(f"{self.process.name} could not start: {error!r}")
            self._exit(repr(error))
            return
        if worker.is_stopped:
            return
        assert self.configure is not None
        for port in (PRIVATE_PORTS + self.configure.worker_index, BOOTSTRAP_PORT):
            self._listeners.append(self._broker.network.listen(port, self.process, worker.connections))

    async def _drain(self) -> None:
        assert self.worker is not None
        for listener in self._listeners:
            self._broker.network.unlisten(listener)
        await self.worker.drain()
        self.simulated.status = 0
        self._broker.world.loop.call_later(0.01, self.process.crash)

    def _exit(self, reason: str) -> None:
        """End the process, once what it has written has left it."""
        self._broker.world.trace(f"{self.process.name} ends: {reason}")
        if "taken by another writer" in reason:
            self._broker.world.counts["fenced workers"] += 1
        self.simulated.status = 1
        self._broker.world.loop.call_soon(self.process.crash)

    def _process_ended(self) -> None:
        for listener in self._listeners:
            self._broker.network.unlisten(listener)
        child = self.child
        if child is None:
            return

        def ended() -> None:
            reader = self._broker.world.loop.readers.get(child._pidfd)
            if reader is not None:
                reader[0](*reader[1])

        self._to_supervisor.send(child.connection_lost, None)
        self._to_supervisor.send(ended)


class SimSpawner:
    """The supervisor's `Spawner` in the world."""

    def __init__(self, broker: SimBroker, process: Process, clock: SimClock) -> None:
        self._broker = broker
        self._process = process
        self._clock = clock

    async def start(self) -> Child:
        await self._clock.sleep(SPAWN_SECONDS)
        return self.spawn()

    async def take(self) -> Child:
        return await self.start()

    def spawn(self) -> Child:
        broker = self._broker
        worker = WorkerProcess(broker, broker.world.process(f"worker-{len(broker.workers)}"), self._process)
        broker.workers.append(worker)
        child = worker.child = Child(worker.simulated, None, self._clock)  # type: ignore[arg-type]
        child.connection_made(_ControlTransport(worker.to_worker, worker.control_received))
        return child


class _Ender(LogEnder):
    """Ends logs, with a planted bug if the test wants one."""

    def __init__(self, broker: SimBroker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bugs = broker.bugs

    async def end_log(self, log_id: str, reason: str) -> EndedLog:
        if not self._bugs.gap_is_the_end:
            return await super().end_log(log_id, reason)
        end = await seal_log(
            self._store, self._keys, log_id, self._clock, self._random, self._writer_id, reason, self._bugs
        )
        slots = end.checkpoint.slots if end.checkpoint is not None else {}
        return EndedLog(log_id, end.end == 0, {slot: place.epoch for slot, place in slots.items()})


class SimSupervisor:
    """One life of the supervisor."""

    def __init__(self, broker: SimBroker, number: int) -> None:
        self._broker = broker
        self.process = broker.world.process(f"supervisor-{number}")
        self._clock = SimClock(broker.world, self.process)
        self._nodes: list[NodeAddress] = []
        self.posts: list[Post] = []
        self.controller: Controller | None = None

    async def run(self) -> None:
        """Start, and keep the workers going until this process crashes."""
        broker, clock = self._broker, self._clock
        settings = broker.settings
        chance = broker.world.stream(self.process.name)
        store = broker.bucket.handle(self.process)
        keys = Keys(settings.cluster_namespace)
        writer_id = secrets.token_hex(16)
        spawner = SimSpawner(broker, self.process, clock)
        children = [await spawner.start() for _ in range(settings.workers)]
        ender = _Ender(broker, store, keys, clock, chance, writer_id)
        cluster_log = ClusterLog(store, keys, clock, chance)
        controller = self.controller = Controller(cluster_log, clock, settings, writer_id, self._on_version)
        requests = CommandRequests(controller, lambda error: broker.world.complain(f"the store failed: {error}"))
        duties = Duties(
            clock=clock,
            spawner=spawner,  # type: ignore[arg-type]
            controller=controller,
            ender=ender,
            hang_seconds=settings.worker_hang_timeout_ms / 1000,
            kill_hung=broker.kill_hung,
            configure=self._configure,
            on_change=lambda post: None,
            on_command=requests.accept,
            on_store_broken=lambda reason: broker.world.complain(f"the store broke: {reason}"),
        )
        self.posts = [Post(index, index, Restarts(chance), duties) for index in range(settings.workers)]
        self._nodes = self._alive()
        await controller.start(
            [post.incarnation for post in self.posts],
            lambda log_id: ender.end_log(log_id, "the broker was started anew"),
        )
        for post, child in zip(self.posts, children, strict=True):
            self.process.spawn(self._keep(post, child), f"post {post.index}")
        if broker.sweep_seconds is not None:
            self.process.spawn(self._sweep(store, keys, chance, controller), "sweep")
        while True:
            await clock.sleep(2.0)
            if (nodes := self._alive()) != self._nodes:
                self._nodes = nodes
                self._send_to_all(Nodes(nodes))

    async def _keep(self, post: Post, child: Child) -> None:
        try:
            await post.run(child)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
            self._broker.world.complain(f"post {post.index} of {self.process.name} failed: {error!r}")

    async def _sweep(
        self,
        store: StoreHandle,
        keys: Keys,
        chance: random.Random,
        controller: Controller,
    ) -> None:
        """Sweep often, and without a grace period: what is deleted may never be missed."""
        seconds = self._broker.sweep_seconds
        assert seconds is not None
        known_seals: set[str] = set()

        async def in_use() -> LogsInUse:
            state = await controller.newest_state()
            return LogsInUse(
                live={post.log_id for post in self.posts},
                listed=named_logs(state),
                owners={slot: (e[-1].epoch, e[-1].log_id) for slot, e in enumerate(state.slots) if e},
            )

        while True:
            await self._clock.sleep(seconds)
            try:
                result = await sweep(store, keys, self._clock, chance, in_use, 0, known_seals, self._broker.bugs)
            except KafscaleError as error:
                self._broker.world.trace(f"{self.process.name} breaks a sweep off: {error!r}")
            else:
                self._broker.world.trace(f"{self.process.name} swept: {result}")
                self._broker.world.counts["swept objects"] += result.deleted

    def _alive(self) -> list[NodeAddress]:
        now = self._clock.monotonic()
        return [
            NodeAddress(post.node_id, "sim", PRIVATE_PORTS + post.index)
            for post in self.posts
            if post.down_since is None or now - post.down_since < 10.0
        ]

    def _configure(self, post: Post) -> Configure:
        assert self.controller is not None
        return Configure(
            settings=self._broker.settings,
            worker_index=post.index,
            node_id=post.node_id,
            log_id=post.log_id,
            cluster_state=encode_state(self.controller.state),
            nodes=self._nodes,
            sockets=[],
            metrics_fd=-1,
        )

    def _on_version(self, version: int, payload: bytes) -> None:
        self._broker.world.trace(f"{self.process.name} publishes version {version}")
        self._send_to_all(ClusterVersion(version, payload))

    def _send_to_all(self, message: ToWorker) -> None:
        for post in self.posts:
            if post.child is not None:
                post.child.send(message)


class SimBroker:
    """A broker over all its lives: supervisors come and go, the bucket stays."""

    def __init__(
        self,
        world: World,
        network: Network,
        bucket: Bucket,
        settings: Settings,
        bugs: PlantedBugs,
        kill_hung: bool = True,
        sweep_seconds: float | None = None,
        compaction: CompactionPolicy | None = None,
    ) -> None:
        self.world = world
        self.network = network
        self.bucket = bucket
        self.settings = settings
        self.bugs = bugs
        self.kill_hung = kill_hung
        self.sweep_seconds = sweep_seconds
        self.compaction = compaction
        self.workers: list[WorkerProcess] = []
        self.supervisors: list[SimSupervisor] = []
        self._pid = 1000

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    @property
    def supervisor(self) -> SimSupervisor:
        return self.supervisors[-1]

    def alive(self) -> list[WorkerProcess]:
        """Worker processes that run a worker now, replaced ones among them."""
        return [worker for worker in self.workers if worker.worker is not None and not worker.process.is_dead]

    def log_of(self, process: Process) -> str:
        """The log of the incarnation that the process runs, or ran."""
        configure = self._worker_of(process).configure
        return "" if configure is None else configure.log_id

    def is_unwarned(self, process: Process, what: Partition | str, asked_at: float) -> bool:
        """Whether an answer about a partition, or a group, asked for at loop time `asked_at`, may come from an owner
        that was replaced, asked the store about that, and got no answer: the one case in which it may be outdated."""
        worker = self._worker_of(process).worker
        controllers = [life.controller for life in self.supervisors if life.controller is not None]
        if worker is None or not controllers:
            return False
        if worker.lease._checked_until <= asked_at + self.world.monotonic_zero:
            return False
        topic, index = (OFFSETS_TOPIC, worker.groups.partition_of(what)) if isinstance(what, str) else what
        state = max((controller.state for controller in controllers if controller.version), key=lambda s: s.version)
        owner = state.owner(slot_of(state.topics[topic].topic_id, index, state.slot_count))
        return owner is not None and owner.log_id != worker.log_id

    def _worker_of(self, process: Process) -> WorkerProcess:
        return next(worker for worker in self.workers if worker.process is process)

    def start(self) -> None:
        """Start a supervisor; one whose start fails is started again."""
        supervisor = SimSupervisor(self, len(self.supervisors))
        self.supervisors.append(supervisor)

        async def life() -> None:
            try:
                await supervisor.run()
            except KafscaleError as error:
                self.world.trace(f"{supervisor.process.name} ends: {error!r}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
                self.world.complain(f"{supervisor.process.name} failed: {error!r}")
            self._start_later(supervisor)
            supervisor.process.crash()

        supervisor.process.spawn(life(), supervisor.process.name)

    def crash_supervisor(self) -> None:
        """Kill it; another is started in a moment."""
        supervisor = self.supervisor
        supervisor.process.crash()
        self._start_later(supervisor)

    def _start_later(self, after: SimSupervisor) -> None:
        self.world.loop.call_later(RESTART_SECONDS, self._start_again, after, context=contextvars.Context())

    def _start_again(self, after: SimSupervisor) -> None:
        if self.supervisor is after:
            self.start()
