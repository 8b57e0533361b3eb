"""One seed: a broker, clients at work, faults while they work, then peace, a last reading of all, and the verdict.

The seed decides all: how many workers, which settings and client versions, which faults and when. The same seed takes
the same steps, so that a failing one can be replayed alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from kafscale.config import Settings
from kafscale.errors import KafscaleError
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.storage.compaction import CompactionPolicy
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from tests.sim.checker import Violation, check
from tests.sim.client import MOVED, Client, Recorder
from tests.sim.cluster import SimBroker, WorkerProcess, predictable
from tests.sim.consumer import Consumer, Member
from tests.sim.history import History
from tests.sim.janitor import Janitor
from tests.sim.loop import Deadlock, OutOfTime, SimLoop, run
from tests.sim.network import Network, NetworkFaults
from tests.sim.producer import Producer
from tests.sim.store import Bucket, StoreFaults
from tests.sim.world import World

FAULTS_LEAST = 6
KINDS_LEAST = 3
OPERATIONS_LEAST = 500
TROUBLE_SECONDS = 60.0
PEACE_SECONDS = 180.0
# By then a replaced worker has asked the store, or has been told.
NOTICE_SECONDS = 15.0
END_OF_TIME = 1500.0


class Mood(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of trouble a seed has: how often, of which kinds (weights, 1 where not named), how replaced workers and
    their logs are dealt with, and how long producers wait between batches."""

    pace_seconds: float
    weights: dict[str, int]
    kills_hung: float
    sweep_seconds: tuple[float | None, ...]
    producer_pace_seconds: tuple[float, ...] = (0.1, 0.5, 1.0)
    # The share of producers that are.
    idempotent: float = 0.8


MOODS = (
    # A bit of everything, with time in between to recover.
    Mood(
        pace_seconds=2.5,
        weights={"crash": 4, "pause": 3, "hang": 3, "lost answers": 3, "outage": 2, "cut off": 2},
        kills_hung=0.5,
        sweep_seconds=(None, 0.5, 3.0),
    ),
    # All at once.
    Mood(
        pace_seconds=0.7,
        weights={"crash": 3, "lost answers": 3, "outage": 2, "broken connections": 2},
        kills_hung=0.5,
        sweep_seconds=(None, 3.0),
    ),
    # Workers that come back after they were replaced, to logs that may have been swept.
    Mood(
        pace_seconds=3.5,
        weights={"hang": 2, "outlived hang": 8, "broken connections": 4, "crash of all": 0, "supervisor crash": 0},
        kills_hung=0.0,
        sweep_seconds=(0.5, 0.5, None),
        producer_pace_seconds=(3.0, 6.0),
        idempotent=0.4,
    ),
)


class Result(msgspec.Struct):
    """What became of a seed."""

    seed: int
    violations: list[Violation]
    complaints: list[str]
    operations: int
    faults: Counter[str]
    counts: Counter[str]
    seconds: float
    trace: list[str]
    history: History

    @property
    def failed(self) -> bool:
        return bool(self.violations or self.complaints)

    def report(self) -> str:
        """Everything that was found, and how to see it again."""
        lines = [f"seed {self.seed} failed after {self.operations} operations and {self.faults.total()} faults:"]
        lines += [f"  {violation}" for violation in self.violations[:20]]
        lines += [f"  complaint {complaint}" for complaint in self.complaints[:20]]
        lines.append(f"replay it with: python -m tests.sim.run --seed {self.seed}")
        return "\n".join(lines)


def run_seed(seed: int, bugs: PlantedBugs = NO_BUGS, keep_trace: bool = False) -> Result:
    """Run one seed and judge it."""
    loop = SimLoop(END_OF_TIME)
    world = World(loop, seed, keep_trace)
    with predictable(random.Random(f"{seed}/predictable")), _surprises_complained_about(world):
        scenario = Scenario(world, bugs)
        try:
            run(scenario.run(), loop)
        except (Deadlock, OutOfTime) as error:
            world.complain(f"no progress: {error}")
        except Exception:  # noqa: BLE001 - a seed that fails in any way must be named
            world.complain(f"the simulation failed: {traceback.format_exc()}")
        # What nobody awaited is reported when it is collected.
        gc.collect()
    history = scenario.recorder.history
    # Without a last reading there is nothing to hold the history against; why there is none is a complaint.
    violations = check(history) if history.final else []
    for violation in violations:
        world.trace(f"VIOLATION {violation}")
    return Result(
        seed,
        violations,
        world.complaints,
        scenario.recorder.operations,
        scenario.faults,
        world.counts,
        loop.time(),
        world.trace_lines,
        history,
    )


class _Surprises(logging.Handler):
    """Hears of exceptions that production code survives and logs: in a simulation they are defects."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, KafscaleError):
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._world.complain(
                f"{record.name} logs {record.getMessage()!r}: {error!r} in {where.name}"
                f" ({where.filename.rpartition('/')[2]}:{where.lineno})"
            )


@contextmanager
def _surprises_complained_about(world: World) -> Iterator[None]:
    root = logging.getLogger()
    handler, level = _Surprises(world), root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.ERROR))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class Scenario:
    """A run."""

    def __init__(self, world: World, bugs: PlantedBugs) -> None:
        self.world = world
        self.recorder = Recorder()
        self.faults: Counter[str] = Counter()
        chance = self._chance = world.stream("scenario")
        self._network = Network(world, NetworkFaults(broken=chance.choice((0, 0.0005, 0.003))))
        self._bucket = Bucket(world, _store_faults(chance), plain_create=bugs.plain_create)
        self._calm = (self._network.faults, self._bucket.faults)
        self._settings = _settings(chance)
        mood = self._mood = chance.choice(MOODS)
        self._broker = SimBroker(
            world,
            self._network,
            self._bucket,
            self._settings,
            bugs,
            kill_hung=chance.random() < mood.kills_hung,
            sweep_seconds=chance.choice(mood.sweep_seconds),
            compaction=CompactionPolicy(objects=chance.choice((4, 12)), idle_s=1.0) if chance.random() < 0.6 else None,
        )
        self.recorder.log_of = self._broker.log_of
        self.recorder.is_unwarned = self._broker.is_unwarned
        self._topics = {"orders": chance.randint(2, 4), "events": chance.randint(1, 3)}
        self._partitions = [(topic, index) for topic, count in self._topics.items() for index in range(count)]
        self._working = True

    async def run(self) -> None:
        self._broker.start()
        admin = Client(self.world, self._network, self.recorder, "admin")
        await self._until(self._create_topics(admin), "topics to be created", 60)
        producers = self._producers()
        readers = [
            Consumer(self.world, self._network, self.recorder, f"reader-{n}") for n in range(self._chance.randint(1, 2))
        ]
        members = self._members()
        working = [self._spawn(producer.process.spawn, producer.run()) for producer in producers]
        reading = [self._spawn(reader.process.spawn, self._read(reader)) for reader in readers]
        reading += [self._spawn(member.process.spawn, member.run()) for member in members]
        # What is deleted is no longer checked: not in every seed.
        if self._chance.random() < 0.3:
            janitor = Janitor(self.world, self._network, self.recorder, "janitor")
            self._spawn(janitor.process.spawn, janitor.run(self._partitions))
            await self._trouble(working)
            janitor.process.crash()
        else:
            await self._trouble(working)
        await self._heal()
        await self._bury_replaced()
        await self._until(asyncio.gather(*working), "producers to be done", PEACE_SECONDS)
        await self._until(self._members_caught_up(members), "the group to catch up", PEACE_SECONDS)
        self._working = False
        for member in members:
            member.is_stopping = True
        await self._until(asyncio.gather(*reading), "readers to stop", PEACE_SECONDS)
        await self._last_reading(members)

    async def _create_topics(self, admin: Client) -> None:
        topics = [
            CreatableTopic(name=name, num_partitions=count, replication_factor=-1)
            for name, count in self._topics.items()
        ]

        async def attempt() -> bool | None:
            answer = await admin.ask_any(ApiKey.CREATE_TOPICS, 5, CreateTopicsRequest(topics=topics, timeout_ms=5000))
            codes = {topic.error_code for topic in answer.topics}
            if codes <= {ErrorCode.NONE, ErrorCode.TOPIC_ALREADY_EXISTS}:
                return True
            for code in codes - MOVED - {ErrorCode.NONE, ErrorCode.TOPIC_ALREADY_EXISTS}:
                admin.unexpected("CreateTopics", code)
            return None

        await admin.until(attempt)

    def _producers(self) -> list[Producer]:
        chance = self._chance
        producers = []
        for number in range(chance.randint(2, 4)):
            partitions = chance.sample(self._partitions, k=min(len(self._partitions), chance.randint(2, 4)))
            batches = chance.randint(25, 45)
            producers.append(
                Producer(
                    self.world,
                    self._network,
                    self.recorder,
                    f"producer-{number}",
                    partitions,
                    batches,
                    pace_seconds=chance.choice(self._mood.producer_pace_seconds),
                    # Where sequences don't match an owner refuses; without them nothing but the fence is in the way.
                    idempotent=chance.random() < self._mood.idempotent,
                )
            )
        return producers

    def _members(self) -> list[Member]:
        return [
            Member(self.world, self._network, self.recorder, f"member-{number}", "group", list(self._topics))
            for number in range(self._chance.randint(1, 3))
        ]

    async def _read(self, reader: Consumer) -> None:
        for partition in self._partitions:
            reader.seek(partition, 0)
        while self._working:
            await reader.poll(reader.random.choice((20, 100, 500)))
            if reader.random.random() < 0.05:
                await asyncio.sleep(reader.random.expovariate(1.0))

    async def _members_caught_up(self, members: list[Member]) -> None:
        """A group that still works: between them its members read everything to its end."""
        ends: dict[tuple[str, int], int] = {}
        probe = Consumer(self.world, self._network, self.recorder, "probe")
        for partition in self._partitions:
            ends[partition] = (await probe.until(lambda partition=partition: probe.bounds(partition)))[1]
        while True:
            reached: dict[tuple[str, int], int] = {}
            for member in members:
                for partition, position in member.positions.items():
                    reached[partition] = max(position, reached.get(partition, 0))
            if all(reached.get(partition, -1) >= end for partition, end in ends.items()):
                return
            await asyncio.sleep(0.5)

    async def _last_reading(self, members: list[Member]) -> None:
        last = Consumer(self.world, self._network, self.recorder, "last-reader")
        reading = self._spawn(last.process.spawn, last.read_all(self._partitions))
        logs = await self._until(reading, "the last reading", PEACE_SECONDS)
        if logs is not None:
            self.recorder.history.final.update(logs)

        async def attempt() -> bool:
            await members[0].committed(self._partitions)
            return True

        await self._until(members[0].until(attempt), "committed offsets to be read", PEACE_SECONDS)

    # Faults

    async def _trouble(self, working: list[asyncio.Task[Any]]) -> None:
        """Faults while the producers work, and until there were enough. Only those that hit something count."""
        kinds: dict[str, Callable[[], bool]] = {
            "crash": self._crash_worker,
            "pause": self._pause_briefly,
            "hang": self._hang,
            "outlived hang": self._hang_past_two,
            "outage": self._outage,
            "cut off": self._cut_off,
            "lost answers": self._lose_answers,
            "broken connections": self._break_connections,
            "clock jump": self._jump_clock,
            "supervisor crash": self._crash_supervisor,
            "crash of all": self._crash_all,
        }
        weights = [self._mood.weights.get(name, 1) for name in kinds]
        began = self.world.loop.time()
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / self._mood.pace_seconds))
            enough = self.faults.total() >= FAULTS_LEAST and len(self.faults) >= KINDS_LEAST
            enough = enough and self.recorder.operations >= OPERATIONS_LEAST
            if enough and (all(task.done() for task in working) or self.world.loop.time() - began > TROUBLE_SECONDS):
                return
            (name,) = self._chance.choices(list(kinds), weights)
            self.world.trace(f"fault {name}")
            if kinds[name]():
                self.faults[name] += 1

    def _some_worker(self) -> WorkerProcess | None:
        alive = [worker for worker in self._broker.alive() if not worker.process.is_paused]
        return alive[self._chance.randrange(len(alive))] if alive else None

    def _crash_worker(self) -> bool:
        worker = self._some_worker()
        if worker is not None:
            worker.process.crash()
        return worker is not None

    def _pause(self, seconds: float) -> bool:
        worker = self._some_worker()
        if worker is not None:
            worker.process.pause()
            self._later(seconds, worker.process.resume)
        return worker is not None

    def _pause_briefly(self) -> bool:
        return self._pause(self._chance.uniform(0.05, 0.9 * self._settings.worker_hang_timeout_ms / 1000))

    def _hang(self) -> bool:
        """Long enough to be replaced; if it is not killed then, it comes back as one that doesn't know it."""
        return self._pause(self._settings.worker_hang_timeout_ms / 1000 + self._chance.uniform(0.2, 12))

    def _hang_past_two(self) -> bool:
        """Long enough to be replaced, and its replacement too: what its log holds nobody needs any more then."""
        worker = self._some_worker()
        if worker is None or worker.configure is None:
            return False
        worker.process.pause()
        replaced = self._settings.worker_hang_timeout_ms / 1000 + self._chance.uniform(2.5, 5)
        self._later(replaced, self._crash_replacement, worker.configure.worker_index)
        resumed = replaced + self._chance.uniform(3, 12)
        self._later(resumed, worker.process.resume)
        # It listens on the port of its successors still: let clients come to it.
        for seconds in (0.3, 1.5, 4.0):
            self._later(resumed + seconds, self._break_connections_of, worker.configure.worker_index)
        return True

    def _break_connections_of(self, index: int) -> None:
        for worker in self._broker.alive():
            if worker.configure is not None and worker.configure.worker_index == index:
                for link in self._network.links_of(worker.process):
                    self._network.cut(link)

    def _crash_replacement(self, index: int) -> None:
        for worker in self._broker.alive():
            configure = worker.configure
            if configure is not None and configure.worker_index == index and not worker.process.is_paused:
                worker.process.crash()

    def _outage(self) -> bool:
        self._bucket.fail_for(self._chance.uniform(0.2, 5))
        return True

    def _cut_off(self) -> bool:
        worker = self._some_worker()
        if worker is not None:
            self._bucket.cut_off.add(worker.process.name)
            self._later(self._chance.uniform(0.5, 8), self._bucket.cut_off.discard, worker.process.name)
        return worker is not None

    def _lose_answers(self) -> bool:
        self._bucket.faults = msgspec.structs.replace(
            self._calm[1],
            answer_lost_applied=0.2,
            answer_lost_not_applied=0.15,
            answer_lost_applied_later=0.15,
            own_put_refused=0.1,
            unavailable=0.1,
            slow=0.2,
        )
        self._later(self._chance.uniform(0.5, 4), self._calm_down)
        return True

    def _calm_down(self) -> None:
        self._bucket.faults = self._calm[1]

    def _break_connections(self) -> bool:
        links = list(self._network.links)
        for link in self._chance.sample(links, k=(len(links) + 1) // 2):
            self._network.cut(link)
        return bool(links)

    def _jump_clock(self) -> bool:
        """Less than an hour: beyond, Kafka's own check refuses batches whose timestamps lie too far ahead."""
        worker = self._some_worker()
        if worker is not None:
            worker.clock.wall_offset_ms = self._chance.randint(-3_500_000, 3_500_000)
        return worker is not None

    def _crash_supervisor(self) -> bool:
        self._broker.crash_supervisor()
        return True

    def _crash_all(self) -> bool:
        for worker in self._broker.workers:
            worker.process.crash()
        self._broker.crash_supervisor()
        return True

    async def _heal(self) -> None:
        self.world.trace("peace")
        for worker in self._broker.workers:
            worker.process.resume()
        self._bucket.unavailable_until = 0
        self._bucket.cut_off.clear()
        self._bucket.faults = StoreFaults()
        self._network.faults = NetworkFaults()
        self._calm = (self._network.faults, self._bucket.faults)

    async def _bury_replaced(self) -> None:
        """A worker that was replaced must find out by itself, and soon. Whoever hasn't is ended: it would disturb the
        verdict on all else."""
        await asyncio.sleep(NOTICE_SECONDS)
        supervisor = self._broker.supervisor
        current = {post.log_id for post in supervisor.posts}
        for worker in self._broker.alive():
            log_id = worker.configure.log_id if worker.configure is not None else ""
            if log_id not in current and worker.worker is not None and not worker.worker.is_stopped:
                self.world.complain(f"{worker.process.name} was replaced and still runs after {NOTICE_SECONDS:.0f} s")
                worker.process.crash()

    # The world's own tasks

    def _later(self, seconds: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self.world.loop.call_later(seconds, callback, *arguments, context=contextvars.Context())

    def _spawn(
        self, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]], work: Coroutine[Any, Any, Any]
    ) -> asyncio.Task[Any]:
        task = spawn(work)
        task.add_done_callback(self._noticed)
        return task

    def _noticed(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.complain(f"a client failed: {error!r}")

    async def _until(self, work: Any, what: str, seconds: float) -> Any:
        """Wait in peace; nothing may take for ever."""
        future = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if done:
            return future.result()
        self.world.complain(f"no progress: waited {seconds:.0f} s for {what}")
        raise OutOfTime(f"no {what}")


def _store_faults(chance: random.Random) -> StoreFaults:
    lost = chance.choice((0.0, 0.01, 0.03))
    return StoreFaults(
        delay_usual=chance.choice((0.002, 0.01, 0.05)),
        slow=chance.choice((0.0, 0.02, 0.05)),
        answer_lost_applied=lost,
        answer_lost_not_applied=lost,
        answer_lost_applied_later=lost / 2,
        own_put_refused=lost / 2,
        unavailable=lost,
    )


def _settings(chance: random.Random) -> Settings:
    return Settings(
        workers=chance.randint(1, 3),
        slots=chance.choice((4, 8)),
        offsets_topic_partitions=chance.choice((1, 3)),
        flush_bytes=chance.choice((4096, 20_000, 1 << 20)),
        flush_interval_ms=chance.choice((None, None, 20, 100)),
        cache_bytes=8 << 20,
        checkpoint_interval_bytes=1 << 20,
        checkpoint_interval_objects=chance.choice((8, 20, 60)),
        checkpoint_interval_ms=chance.choice((500, 2000, 20_000)),
        group_initial_rebalance_delay_ms=chance.choice((0, 500)),
        worker_hang_timeout_ms=chance.choice((1500, 3000, 5000)),
        auto_create_topics=False,
        listen=Settings().listen,
    )
