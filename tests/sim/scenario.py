"""One seed: a broker or several, clients at work, faults while they work, then peace, a last reading, and the verdict.

The seed decides all: how many brokers and workers, which settings and client versions, which faults and when. The same
seed takes the same steps, so that a failing one can be replayed alone.
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

from kafscale.errors import KafscaleError
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from kafscale.storage.compaction import CompactionPolicy
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from tests.sim.audit import disorder, findings
from tests.sim.checker import Violation, check
from tests.sim.client import MOVED, Client, Recorder
from tests.sim.cluster import SimCluster, predictable
from tests.sim.consumer import Consumer, Member
from tests.sim.etcd import SimEtcd
from tests.sim.faults import Faults
from tests.sim.history import History
from tests.sim.janitor import Janitor
from tests.sim.loop import Deadlock, OutOfTime, SimLoop, run
from tests.sim.moods import mood_of_seed, settings_of, store_faults
from tests.sim.network import Network, NetworkFaults
from tests.sim.producer import Producer
from tests.sim.store import Bucket
from tests.sim.threads import Threads
from tests.sim.worker import WorkerProcess
from tests.sim.world import World

FAULTS_LEAST = 6
KINDS_LEAST = 3
OPERATIONS_LEAST = 500
# So many of them at least are asked for while there is trouble.
TROUBLED_OPERATIONS_LEAST = 300
TROUBLE_SECONDS = 40.0
PEACE_SECONDS = 180.0
# By then a replaced worker has asked the store, or has been told.
NOTICE_SECONDS = 15.0
QUIET_SECONDS = 5.0
ORDER_SECONDS = 60.0
END_OF_TIME = 1500.0


class Result(msgspec.Struct):
    """What became of a seed."""

    seed: int
    bugs: PlantedBugs
    mood: str
    violations: list[Violation]
    complaints: list[str]
    operations: int
    faults: Counter[str]
    counts: Counter[str]
    # How often clients did and saw what, empty answers left out.
    seen: Counter[str]
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
        planted = [f" --bug {name}" for name, is_on in msgspec.structs.asdict(self.bugs).items() if is_on]
        lines.append(f"replay it with: python -m tests.sim.run --seed {self.seed}{''.join(planted)}")
        return "\n".join(lines)


def run_seed(seed: int, bugs: PlantedBugs = NO_BUGS, keep_trace: bool = False) -> Result:
    """Run one seed and judge it."""
    # What was there before is not looked through again and again, and nothing is collected at an odd moment.
    gc.freeze()
    gc.disable()
    try:
        return _run_seed(seed, bugs, keep_trace)
    finally:
        # The world itself, which nobody refers to by now: the next seed would freeze it for good.
        gc.collect()
        gc.unfreeze()
        gc.enable()


def _run_seed(seed: int, bugs: PlantedBugs, keep_trace: bool) -> Result:
    loop = SimLoop(END_OF_TIME)
    world = World(loop, seed, keep_trace)
    threads = Threads(world)
    with predictable(random.Random(f"{seed}/predictable")), _surprises_complained_about(world):
        scenario = Scenario(world, bugs)
        try:
            run(scenario.run(), loop)
        except (Deadlock, OutOfTime) as error:
            world.complain(f"no progress: {error}")
        except Exception:  # noqa: BLE001 - a seed that fails in any way must be named
            world.complain(f"the simulation failed: {traceback.format_exc()}")
        threads.close()
        # What nobody awaited is reported when it is collected.
        for process in world.processes:
            process.forget_done()
        gc.collect()
    history = scenario.recorder.history
    # Without a last reading there is nothing to hold the history against; why there is none is a complaint.
    violations = check(history) if history.final else []
    for violation in violations:
        world.trace(f"VIOLATION {violation}")
    return Result(
        seed,
        bugs,
        scenario.mood.name,
        violations,
        world.complaints,
        scenario.recorder.operations,
        scenario.faults,
        world.counts,
        history.seen(),
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
        chance = self._chance = world.stream("scenario")
        mood = self.mood = mood_of_seed(world.seed)
        self._network = Network(world, NetworkFaults(broken=chance.choice((0, 0.0005, 0.003))))
        bucket = Bucket(world, store_faults(chance, mood), plain_create=bugs.plain_create)
        count = chance.choice(mood.brokers)
        settings = settings_of(chance, mood)
        etcd = SimEtcd(world) if count > 1 else None
        self._cluster = SimCluster(
            world,
            self._network,
            bucket,
            etcd,
            settings,
            bugs,
            kill_hung=chance.random() < mood.kills_hung,
            compaction=CompactionPolicy(objects=chance.choice((4, 12)), idle_s=1.0) if chance.random() < 0.6 else None,
        )
        for _ in range(count):
            self._cluster.add_broker(
                workers=settings.workers if count == 1 else chance.choice((1, 1, 2, 3)),
                moves_address=chance.random() < 0.5,
            )
        self._faults = Faults(world, self._cluster, bucket, self._network, etcd, mood)
        self.recorder.log_of = self._cluster.log_of
        self.recorder.is_unwarned = self._cluster.is_unwarned
        self._topics = {"orders": chance.randint(2, 4), "events": chance.randint(1, 3)}
        self._partitions = [(topic, index) for topic, count in self._topics.items() for index in range(count)]
        self._working = True

    @property
    def faults(self) -> Counter[str]:
        return self._faults.counts

    async def run(self) -> None:
        for number, broker in enumerate(self._cluster.brokers):
            # Some come later, to a cluster at work.
            self._later(0.0 if number == 0 else self._chance.choice((0.0, 0.3, 15.0)), broker.start)
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
        if self._chance.random() < self.mood.deletes:
            janitor = Janitor(self.world, self._network, self.recorder, "janitor")
            self._spawn(janitor.process.spawn, janitor.run(self._partitions))
            await self._trouble(working)
            janitor.process.crash()
        else:
            await self._trouble(working)
        await self._faults.heal()
        await self._bury_replaced()
        await self._until(asyncio.gather(*working), "producers to be done", PEACE_SECONDS)
        await self._until(self._members_caught_up(members), "the group to catch up", PEACE_SECONDS)
        await self._until(self._enough_operations(), "enough operations", PEACE_SECONDS)
        self._working = False
        for member in members:
            member.is_stopping = True
        await self._until(asyncio.gather(*reading), "readers to stop", PEACE_SECONDS)
        await self._last_reading(members)
        await self._in_order()
        for finding in await self._until(findings(self._cluster), "the bucket to be verified", PEACE_SECONDS):
            self.world.complain(f"in the bucket: {finding}")

    async def _in_order(self) -> None:
        """Long before now everything has found its place."""
        deadline = self.world.loop.time() + ORDER_SECONDS
        while (what := disorder(self._cluster)) is not None:
            if self.world.loop.time() > deadline:
                self.world.complain(f"no order after {ORDER_SECONDS:.0f} s: {what}")
                return
            await asyncio.sleep(1)

    async def _create_topics(self, admin: Client) -> None:
        topics = [
            CreatableTopic(
                name=name,
                num_partitions=count,
                replication_factor=-1,
                configs=[
                    CreatableTopicConfig(name=f"message.timestamp.{which}.max.ms", value=str(2**62))
                    for which in ("before", "after")
                ],
            )
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
            batches = chance.randint(20, 35)
            producers.append(
                Producer(
                    self.world,
                    self._network,
                    self.recorder,
                    f"producer-{number}",
                    partitions,
                    batches,
                    pace_seconds=chance.choice(self.mood.producer_pace_seconds),
                    # Where sequences don't match an owner refuses; without them nothing but the fence is in the way.
                    idempotent=chance.random() < self.mood.idempotent,
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
            await reader.poll(reader.random.choice((20, 200, 1000)))
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

    async def _enough_operations(self) -> None:
        while True:
            if self.recorder.operations >= OPERATIONS_LEAST:
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
        faults = self._faults
        began = self.world.loop.time()
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / self.mood.pace_seconds))
            enough = faults.counts.total() >= FAULTS_LEAST and len(faults.counts) >= KINDS_LEAST
            enough = enough and self.recorder.operations >= TROUBLED_OPERATIONS_LEAST
            if enough and (all(task.done() for task in working) or self.world.loop.time() - began > TROUBLE_SECONDS):
                return
            faults.strike()

    async def _bury_replaced(self) -> None:
        """A worker that was replaced must find out by itself, and soon. Whoever hasn't is ended: it would disturb the
        verdict on all else."""
        deadline = self.world.loop.time() + NOTICE_SECONDS
        await asyncio.sleep(QUIET_SECONDS)
        while True:
            replaced = self._replaced()
            if not replaced or self.world.loop.time() > deadline:
                break
            await asyncio.sleep(1)
        for worker in replaced:
            self.world.complain(f"{worker.process.name} was replaced and still runs after {NOTICE_SECONDS:.0f} s")
            worker.process.crash()

    def _replaced(self) -> list[WorkerProcess]:
        current = self._cluster.current_logs()
        return [
            worker
            for worker in self._cluster.alive()
            if worker.log_id not in current and worker.worker is not None and not worker.worker.is_stopped
        ]

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
