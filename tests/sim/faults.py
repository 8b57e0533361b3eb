"""The kinds of trouble: each a method that does it now, to something that it finds by chance, and ends it later.

A method returns whether it hit anything; only what did counts. In peace (`heal`) all of it is over: what was paused or
cut off is not, and every broker runs that is wanted.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tests.sim.broker import SimBroker
from tests.sim.cluster import SimCluster
from tests.sim.etcd import EtcdFaults, SimEtcd
from tests.sim.moods import Mood
from tests.sim.network import Network, NetworkFaults
from tests.sim.store import Bucket, StoreFaults
from tests.sim.worker import WorkerProcess
from tests.sim.world import Machine, World

# Kafka's own bound of how far a record's time may lie from the broker's is an hour; the topics here lift it.
CLOCK_JUMP_MS = 3 * 3_600_000
BACKUP_SECONDS = 4.0
ROLLING_PATIENCE_SECONDS = 40.0
HASTY_PATIENCE_SECONDS = 8.0
HASTY_LOOK_SECONDS = 0.02

# Kind → the method that does it: those that one broker knows, and those that take several and an etcd.
ANYWHERE = {
    "crash": "crash_worker",
    "short life": "crash_twice",
    "pause": "pause_briefly",
    "hang": "hang",
    "outlived hang": "hang_past_two",
    "outage": "outage",
    "cut off": "cut_off",
    "lost answers": "lose_answers",
    "slow store": "slow_down",
    "broken connections": "break_connections",
    "clock jump": "jump_clock",
    "clock strobe": "strobe_clock",
    "supervisor crash": "crash_supervisor",
    "crash of all": "crash_all",
}
IN_CLUSTERS = {
    "broker killed": "kill_broker",
    "broker paused": "pause_broker",
    "supervisor paused": "pause_supervisor",
    "broker leaves": "leave",
    "leaves in a row": "leave_in_a_row",
    "rolling restart": "roll",
    "broker off store": "cut_off_store",
    "broker off etcd": "cut_off_etcd",
    "broker off both": "cut_off_both",
    "etcd outage": "etcd_outage",
    "etcd lost": "lose_etcd",
    "etcd restored": "restore_etcd",
    "etcd compacted": "compact_etcd",
    "etcd answers lost": "lose_etcd_answers",
    "etcd events": "disturb_events",
}
KINDS = ANYWHERE.keys() | IN_CLUSTERS.keys()


class Faults:
    """The trouble of one seed, by its mood."""

    def __init__(
        self, world: World, cluster: SimCluster, bucket: Bucket, network: Network, etcd: SimEtcd | None, mood: Mood
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._world = world
        self._cluster = cluster
        self._bucket = bucket
        self._network = network
        self._etcd = etcd
        self._chance: random.Random = world.stream("faults")
        self._calm_store_faults = bucket.faults
        self._calm_etcd_faults = EtcdFaults()
        self._hang_seconds = cluster.settings.worker_hang_timeout_ms / 1000
        self._lease_seconds = cluster.settings.etcd_lease_ttl_ms / 1000
        self._backups: list[Any] = []
        self._rolling: asyncio.Task[None] | None = None
        kinds = {name: getattr(self, f"_{method}") for name, method in ANYWHERE.items()}
        if etcd is not None:
            kinds |= {name: getattr(self, f"_{method}") for name, method in IN_CLUSTERS.items()}
        weights = {name: mood.weights.get(name, mood.usual_weight) for name in kinds}
        self._kinds = {name: fault for name, fault in kinds.items() if weights[name]}
        self._weights = [weights[name] for name in self._kinds]
        if etcd is not None:
            self._back_up()

    def strike(self) -> None:
        """Do one of the mood's kinds now."""
        (name,) = self._chance.choices(list(self._kinds), self._weights)
        self._world.trace(f"fault {name}")
        if self._kinds[name]():
            self.counts[name] += 1

    async def heal(self) -> None:
        """Peace. Returns once no broker is on its way out any more."""
        self._world.trace("peace")
        for broker in self._cluster.brokers:
            broker.resume()
            self._bucket.mend(broker.machine.name)
        self._bucket.unavailable_until = 0
        self._bucket.cut_off.clear()
        self._bucket.faults = StoreFaults()
        self._network.faults = NetworkFaults()
        self._calm_store_faults = self._bucket.faults
        if self._etcd is not None:
            self._etcd.unavailable_until = self._world.loop.time()
            self._etcd.cut_off.clear()
            self._etcd.faults = self._calm_etcd_faults = EtcdFaults(event_lost=0, event_twice=0, event_late=0)
        if self._rolling is not None:
            self._rolling.cancel()
        for broker in self._cluster.brokers:
            broker.start()

    # Picking

    def _some_worker(self) -> WorkerProcess | None:
        alive = [worker for worker in self._cluster.alive() if not worker.process.is_paused]
        return alive[self._chance.randrange(len(alive))] if alive else None

    def _some_broker(self) -> SimBroker | None:
        up = [broker for broker in self._cluster.brokers if broker.is_up and broker.is_wanted]
        up = [broker for broker in up if not broker.supervisor.process.is_paused]
        return up[self._chance.randrange(len(up))] if up else None

    def _some_machine(self) -> Machine | None:
        broker = self._some_broker()
        return broker.machine if broker is not None else None

    # Workers

    def _crash_worker(self) -> bool:
        worker = self._some_worker()
        if worker is not None:
            worker.process.crash()
        return worker is not None

    def _crash_twice(self) -> bool:
        """A worker, and its replacement as soon as that serves, or has for a moment."""
        worker = self._some_worker()
        if worker is None:
            return False
        worker.process.crash()
        self._later(0.1, self._crash_once_serving, worker, self._chance.uniform(0, 1), 100)
        return True

    def _crash_once_serving(self, worker: WorkerProcess, after: float, tries: int) -> None:
        for other in self._replacements(worker):
            if any(post.serving and post.log_id == other.log_id for post in other.broker.supervisor.posts):
                self._later(after, other.process.crash)
                return
        if tries:
            self._later(0.1, self._crash_once_serving, worker, after, tries - 1)

    def _pause(self, seconds: float) -> bool:
        worker = self._some_worker()
        if worker is not None:
            worker.process.pause()
            self._later(seconds, worker.process.resume)
        return worker is not None

    def _pause_briefly(self) -> bool:
        return self._pause(self._chance.uniform(0.05, 0.9 * self._hang_seconds))

    def _hang(self) -> bool:
        """Long enough to be replaced; if it is not killed then, it comes back as one that doesn't know it."""
        return self._pause(self._hang_seconds + self._chance.uniform(0.2, 12))

    def _hang_past_two(self) -> bool:
        """Long enough to be replaced, and its replacement too: what its log holds nobody needs any more then."""
        worker = self._some_worker()
        if worker is None:
            return False
        worker.process.pause()
        replaced = self._hang_seconds + self._chance.uniform(2.5, 5)
        self._later(replaced, self._crash_replacement, worker)
        resumed = replaced + self._chance.uniform(3, 12)
        self._later(resumed, worker.process.resume)
        # It listens on the port of its successors still: let clients come to it.
        for seconds in (0.3, 1.5, 4.0):
            self._later(resumed + seconds, self._break_connections_beside, worker)
        return True

    def _replacements(self, worker: WorkerProcess) -> list[WorkerProcess]:
        """Whoever runs at its post, itself included."""
        assert worker.configure is not None
        index = worker.configure.worker_index
        return [w for w in worker.broker.alive() if w.configure is not None and w.configure.worker_index == index]

    def _break_connections_beside(self, worker: WorkerProcess) -> None:
        for other in self._replacements(worker):
            for link in self._network.links_of(other.process):
                self._network.cut(link)

    def _crash_replacement(self, worker: WorkerProcess) -> None:
        for other in self._replacements(worker):
            if not other.process.is_paused:
                other.process.crash()

    # Store and network

    def _outage(self) -> bool:
        self._bucket.fail_for(self._chance.uniform(0.2, 5))
        return True

    def _cut_off(self) -> bool:
        worker = self._some_worker()
        if worker is not None:
            self._bucket.cut(worker.process.name)
            self._later(self._chance.uniform(0.5, 8), self._bucket.mend, worker.process.name)
        return worker is not None

    def _lose_answers(self) -> bool:
        self._bucket.faults = msgspec.structs.replace(
            self._calm_store_faults,
            answer_lost_applied=0.2,
            answer_lost_not_applied=0.15,
            answer_lost_applied_later=0.15,
            own_put_refused=0.1,
            unavailable=0.1,
            slow=0.2,
        )
        self._later(self._chance.uniform(0.5, 4), self._calm_store)
        return True

    def _slow_down(self) -> bool:
        """Everything takes long, and much is refused: "503 Slow Down"."""
        self._bucket.faults = msgspec.structs.replace(
            self._calm_store_faults,
            delay_usual=self._chance.uniform(0.2, 0.6),
            unavailable=self._chance.choice((0.0, 0.4)),
        )
        self._later(self._chance.uniform(1, 8), self._calm_store)
        return True

    def _calm_store(self) -> None:
        self._bucket.faults = self._calm_store_faults

    def _break_connections(self) -> bool:
        links = list(self._network.links)
        for link in self._chance.sample(links, k=(len(links) + 1) // 2):
            self._network.cut(link)
        return bool(links)

    # Clocks

    def _jump_clock(self) -> bool:
        machine = self._some_machine()
        if machine is not None:
            self._set_clock(machine, self._chance.randint(-CLOCK_JUMP_MS, CLOCK_JUMP_MS))
        return machine is not None

    def _strobe_clock(self) -> bool:
        """To and fro, many times a second, for a while."""
        machine = self._some_machine()
        if machine is None:
            return False
        offset_ms = self._chance.choice((200, 60_000, CLOCK_JUMP_MS))
        seconds = 0.0
        ends = self._chance.uniform(0.5, 4)
        while seconds < ends:
            self._later(seconds, self._set_clock, machine, offset_ms)
            offset_ms = -offset_ms
            seconds += self._chance.uniform(0.02, 0.3)
        return True

    def _set_clock(self, machine: Machine, offset_ms: int) -> None:
        machine.wall_offset_ms = offset_ms

    # Supervisors and brokers

    def _crash_supervisor(self) -> bool:
        broker = self._some_broker()
        if broker is not None:
            broker.crash_supervisor()
        return broker is not None

    def _crash_all(self) -> bool:
        """Every process of every broker."""
        for broker in self._cluster.brokers:
            if broker.is_up and broker.is_wanted:
                broker.kill()
                self._later(self._chance.uniform(0.2, 1.0), broker.start)
        return True

    def _kill_broker(self) -> bool:
        """Back before its lease is over, or long after."""
        broker = self._some_broker()
        if broker is not None:
            broker.kill()
            self._later(self._chance.choice((0.3, 1.0, 4.0)) * self._lease_seconds, broker.start)
        return broker is not None

    def _pause_broker(self) -> bool:
        """All of its processes at once, for longer than others believe in it."""
        broker = self._some_broker()
        if broker is not None:
            broker.pause()
            self._later(self._lease_seconds + self._chance.uniform(0.1, 8), broker.resume)
        return broker is not None

    def _pause_supervisor(self) -> bool:
        """Its workers go on: what becomes of them is decided by others."""
        broker = self._some_broker()
        if broker is not None:
            process = broker.supervisor.process
            process.pause()
            self._later(self._chance.uniform(0.5, self._lease_seconds + 8), process.resume)
        return broker is not None

    def _leave(self) -> bool:
        """A planned leave, while another stays; it comes back some time later."""
        broker = self._some_broker()
        staying = [b for b in self._cluster.brokers if b.is_up and b.is_wanted and b is not broker]
        if broker is None or not staying:
            return False
        broker.leave()
        self._later(self._chance.uniform(1, 12), broker.start)
        return True

    def _leave_in_a_row(self) -> bool:
        """One leaves, and whoever is taking something over from it as well, so that what was given away is given on
        before it has arrived. Both come again soon."""
        up = [broker for broker in self._cluster.brokers if broker.is_up and broker.is_wanted]
        if len(up) < 2:
            return False
        first = up[self._chance.randrange(len(up))]
        first.leave()
        self._later(self._chance.uniform(0, 4), first.start)
        if len(up) > 2:
            self._leave_once_loading(first, round(HASTY_PATIENCE_SECONDS / HASTY_LOOK_SECONDS))
        return True

    def _leave_once_loading(self, first: SimBroker, tries: int) -> None:
        for broker in self._cluster.brokers:
            if broker is first or not broker.is_up or not broker.is_wanted:
                continue
            if any(worker.is_taking_over() for worker in broker.alive()):
                self._later(self._chance.choice((0.0, 0.1, 0.3)), broker.leave)
                self._later(self._chance.uniform(0.5, 4), broker.start)
                return
        if tries:
            self._later(HASTY_LOOK_SECONDS, self._leave_once_loading, first, tries - 1)

    def _roll(self) -> bool:
        """Restart one broker after the other, each once the one before serves again."""
        if self._rolling is not None and not self._rolling.done():
            return False
        self._rolling = self._world.loop.create_task(self._roll_all(), context=contextvars.Context())
        return True

    async def _roll_all(self) -> None:
        for broker in self._cluster.brokers:
            if not broker.is_up or not broker.is_wanted:
                continue
            broker.leave()
            broker.is_wanted = True
            deadline = self._world.loop.time() + ROLLING_PATIENCE_SECONDS
            left = broker.supervisor
            while self._world.loop.time() < deadline:
                await asyncio.sleep(0.5)
                posts = broker.supervisor.posts
                if broker.supervisor is not left and posts and all(post.serving for post in posts):
                    break

    def _cut_off_store(self) -> bool:
        return self._cut_broker(store=True)

    def _cut_off_etcd(self) -> bool:
        return self._cut_broker(etcd=True)

    def _cut_off_both(self) -> bool:
        return self._cut_broker(store=True, etcd=True)

    def _cut_broker(self, store: bool = False, etcd: bool = False) -> bool:
        broker = self._some_broker()
        if broker is None:
            return False
        name, seconds = broker.machine.name, self._chance.uniform(0.5, 3 * self._lease_seconds)
        if store:
            self._bucket.cut(name)
            self._later(seconds, self._bucket.mend, name)
        if etcd:
            assert self._etcd is not None
            self._etcd.cut_off.add(name)
            self._later(seconds, self._etcd.cut_off.discard, name)
        return True

    # etcd

    def _back_up(self) -> None:
        assert self._etcd is not None
        self._backups.append(self._etcd.backup())
        self._later(BACKUP_SECONDS, self._back_up)

    def _etcd_outage(self) -> bool:
        assert self._etcd is not None
        self._etcd.fail_for(self._chance.uniform(0.2, 4 * self._lease_seconds))
        return True

    def _lose_etcd(self) -> bool:
        assert self._etcd is not None
        self._etcd.restore(None, self._chance.uniform(0.1, 5))
        return True

    def _restore_etcd(self) -> bool:
        """From a backup of any age: what was written since is gone, what was deleted is back."""
        assert self._etcd is not None
        self._etcd.restore(self._chance.choice(self._backups), self._chance.uniform(0.1, 5))
        return True

    def _compact_etcd(self) -> bool:
        assert self._etcd is not None
        self._etcd.compact()
        return True

    def _lose_etcd_answers(self) -> bool:
        assert self._etcd is not None
        self._etcd.faults = EtcdFaults(answer_lost_applied=0.15, answer_lost_not_applied=0.15, slow=0.2)
        self._later(self._chance.uniform(0.5, 5), self._calm_etcd)
        return True

    def _disturb_events(self) -> bool:
        """Events of watches come twice, late, in another order, or not at all."""
        assert self._etcd is not None
        self._etcd.faults = EtcdFaults(event_lost=0.4, event_twice=0.4, event_late=0.6)
        self._later(self._chance.uniform(1, 8), self._calm_etcd)
        return True

    def _calm_etcd(self) -> None:
        assert self._etcd is not None
        self._etcd.faults = self._calm_etcd_faults

    def _later(self, seconds: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self._world.loop.call_later(seconds, callback, *arguments, context=contextvars.Context())
