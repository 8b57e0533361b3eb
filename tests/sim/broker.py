"""A simulated broker: the production control plane in a process of the world, and its workers.

Real are the controller, the posts, membership, balancing, strays, sweeping, leaving and draining; simulated are the
processes, the control sockets, the listening ports and the datagrams between supervisors. A broker has a number and a
machine, and goes through many lives: it is killed, leaves, and comes again.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from kafscale.config import Settings
from kafscale.control import Configure, NodeAddress, PeerReleased
from kafscale.coordination.cluster import encode_state
from kafscale.errors import KafscaleError, StoreFailed, StoreUnavailable, StoreUnclear
from kafscale.storage.retrying import PATIENCE_SECONDS
from supervisor.background import Background
from supervisor.control_plane import ControlPlane, Surroundings
from supervisor.draining import drain_workers
from supervisor.post import Post
from tests.sim.worker import SimSpawner, WorkerProcess
from tests.sim.world import Process, SimClock, World

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster

PRIVATE_PORTS = 19_000
PORTS_PER_BROKER = 100
RESTART_SECONDS = 0.5
LEAVE_SHARE = 0.5


class SimSupervisor:
    """One life of a broker's supervisor: `run` until the process crashes or has drained."""

    def __init__(self, broker: SimBroker, number: int) -> None:
        self._broker = broker
        self.process = broker.world.process(f"supervisor-{broker.broker_id}-{number}", broker.machine)
        self.control_plane: ControlPlane | None = None
        # In some lives its address is the one it had before.
        self.peer = f"sim:{broker.broker_id * 10 + number * broker.moves_address}"
        self._clock = SimClock(broker.world, self.process)
        self._stop = asyncio.Event()
        self._failure: asyncio.Future[BaseException] = broker.world.loop.create_future()

    @property
    def posts(self) -> list[Post]:
        return [] if self.control_plane is None else self.control_plane.posts

    @property
    def is_awake(self) -> bool:
        return not self.process.is_dead and not self.process.is_paused

    def ask_to_stop(self) -> None:
        self.process.deliver(self._stop.set)

    async def run(self) -> bool:
        """True if it drained, False if it failed."""
        broker, cluster = self._broker, self._broker.cluster
        chance = broker.world.stream(self.process.name)
        settings = broker.settings
        spawner = SimSpawner(broker, self.process, self._clock)
        background = Background(self._fail)
        children = [await spawner.start() for _ in range(settings.workers)]
        coordination = cluster.coordination(self.process, self._clock, chance)
        control_plane = self.control_plane = ControlPlane(
            settings,
            self._clock,
            chance,
            cluster.bucket.handle(self.process),
            coordination,
            background,
            Surroundings(
                spawner=spawner,  # type: ignore[arg-type]
                node_addresses=self._node_addresses,
                peer=self.peer,
                configure=self._configure,
                on_post_change=lambda post: None,
                on_nodes=lambda nodes: None,
                send_hint=self._send_hint,
                fail=self._fail,
                kill_hung=cluster.kill_hung,
            ),
            cluster.bugs,
        )
        cluster.watch_leader(self, coordination)
        await control_plane.start(children)
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({stop, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            raise self._failure.result()
        seconds = settings.drain_timeout_ms / 1000
        until = self._clock.monotonic() + seconds
        await control_plane.leave(seconds * LEAVE_SHARE, self._failure.done)
        await background.end_loops()
        drained = await drain_workers(control_plane.posts, self._clock, until, asyncio.Event())
        await background.end()
        await control_plane.close()
        return drained

    def _node_addresses(self, node_ids: Sequence[int]) -> list[NodeAddress]:
        ports = zip(node_ids, self._broker.private_ports, strict=True)
        return [NodeAddress(node_id, "sim", port) for node_id, port in ports]

    def _configure(self, post: Post) -> Configure:
        assert self.control_plane is not None
        return Configure(
            settings=self._broker.settings,
            worker_index=post.index,
            node_id=post.node_id,
            log_id=post.log_id,
            cluster_state=encode_state(self.control_plane.controller.state),
            nodes=self.control_plane.membership.nodes(),
            sockets=[],
            metrics_fd=-1,
        )

    async def _send_hint(self, peer: str, hint: PeerReleased) -> None:
        self._broker.cluster.send_hint(peer, hint)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, StoreFailed) or not isinstance(error, KafscaleError):
            self._broker.world.complain(f"{self.process.name} failed: {error!r}")
        if not self._failure.done():
            self._failure.set_result(error)


class SimBroker:
    """A broker over all its lives: supervisors come and go, the bucket stays."""

    def __init__(self, cluster: SimCluster, broker_id: int, settings: Settings, moves_address: bool) -> None:
        self.cluster = cluster
        self.world: World = cluster.world
        self.broker_id = broker_id
        self.machine = cluster.world.machine(f"machine-{broker_id}")
        self.settings = msgspec.structs.replace(settings, broker_id=broker_id)
        self.moves_address = moves_address
        first = PRIVATE_PORTS + PORTS_PER_BROKER * broker_id
        self.private_ports = [first + index for index in range(settings.workers)]
        self.workers: list[WorkerProcess] = []
        self.lives: list[SimSupervisor] = []
        # Whether it is to run: started again whenever it ends.
        self.is_wanted = False

    @property
    def supervisor(self) -> SimSupervisor:
        return self.lives[-1]

    @property
    def is_up(self) -> bool:
        return bool(self.lives) and not self.supervisor.process.is_dead

    def alive(self) -> list[WorkerProcess]:
        """Worker processes that run a worker now, replaced ones among them."""
        return [worker for worker in self.workers if worker.worker is not None and not worker.process.is_dead]

    def start(self) -> None:
        """Have it run from now on; a life that ends is followed by another."""
        self.is_wanted = True
        if self.is_up:
            return
        supervisor = SimSupervisor(self, len(self.lives))
        self.lives.append(supervisor)
        self.world.trace(f"broker {self.broker_id} begins life {len(self.lives)}")
        supervisor.process.spawn(self._live(supervisor), supervisor.process.name)

    async def _live(self, supervisor: SimSupervisor) -> None:
        name = supervisor.process.name
        began = self.world.loop.time()
        try:
            drained = await supervisor.run()
            self.world.trace(f"{name} has drained" if drained else f"{name} could not drain in time")
        except KafscaleError as error:
            self.world.trace(f"{name} ends: {error!r}")
            lasted = self.world.loop.time() - began
            if isinstance(error, StoreUnavailable | StoreUnclear) and lasted < PATIENCE_SECONDS:
                self.world.complain(f"{name} ended after {lasted:g} s, too soon to give the store up: {error!r}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
            self.world.complain(f"{name} failed: {error!r}")
        self._again_later(supervisor)
        self.world.loop.call_soon(supervisor.process.crash, context=contextvars.Context())

    def crash_supervisor(self) -> None:
        """Kill it; another is started in a moment."""
        self.supervisor.process.crash()
        self._again_later(self.supervisor)

    def kill(self) -> None:
        """The machine loses its power: every process ends at once, and none is started before `start`."""
        self.is_wanted = False
        for worker in self.workers:
            worker.process.crash()
        if self.lives:
            self.supervisor.process.crash()

    def leave(self) -> None:
        """Ask it to leave and drain; it is not started again before `start`."""
        self.is_wanted = False
        if self.is_up:
            self.supervisor.ask_to_stop()

    def pause(self) -> None:
        for process in self._processes():
            process.pause()

    def resume(self) -> None:
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[Process]:
        return [self.supervisor.process, *(worker.process for worker in self.workers)] if self.lives else []

    def _again_later(self, after: SimSupervisor) -> None:
        self.world.loop.call_later(RESTART_SECONDS, self._again, after, context=contextvars.Context())

    def _again(self, after: SimSupervisor) -> None:
        if self.is_wanted and self.supervisor is after:
            self.start()
