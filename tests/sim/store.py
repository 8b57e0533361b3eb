"""An object store that behaves as badly as its promises allow, by the seed.

One bucket is shared by all processes of a world; each uses it through a handle of its own. Every request takes time
there and back, so that requests overtake each other. A put's answer may be lost (it was applied, it was not, it will be
later); the store may refuse everything for a while, or everything of one machine or process; what was on its way when
that began, or when its process crashed, may still arrive, now or much later, or never. Listings are consistent. What is
never allowed happens in no case: an object that changes, two winners of one key, an acknowledged put that is not there.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from crc32c import crc32c

from kafscale.errors import ObjectExists, StoreUnavailable, StoreUnclear
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import Buffer, ObjectInfo, Purpose
from tests.sim.world import EPOCH_MS, Process, World

_Result = TypeVar("_Result")


class StoreFaults(msgspec.Struct, kw_only=True):
    """How bad: probabilities per request, times in seconds."""

    delay_least: float = 0.0005
    delay_usual: float = 0.005
    slow: float = 0.02
    slow_seconds: float = 1.5
    # What a listing of everything takes beyond that, there and back: a large bucket has many pages.
    sweep_list_seconds: float = 0.0
    answer_lost_applied: float = 0.0
    answer_lost_not_applied: float = 0.0
    answer_lost_applied_later: float = 0.0
    own_put_refused: float = 0.0
    unavailable: float = 0.0
    unclear_after: float = 0.4
    applied_later_seconds: float = 5.0
    crashed_put_dropped: float = 0.4
    crashed_put_late: float = 0.3
    crashed_delete_late: float = 0.5
    # And then it is carried out, later.
    delete_answer_lost: float = 0.0


@dataclass
class Applied:
    """A put or delete that took effect."""

    at: float
    process: str
    key: str
    is_delete: bool
    size: int = 0


@dataclass
class _InFlight:
    """A request that has left its process and has not been applied."""

    apply: Callable[[], None]
    handle: asyncio.TimerHandle
    answer: asyncio.Future[Any]
    is_write: bool = False
    is_delete: bool = False


@dataclass
class Bucket:
    """The store as a place: its objects and its moods."""

    world: World
    faults: StoreFaults = field(default_factory=StoreFaults)
    plain_create: bool = False

    def __post_init__(self) -> None:
        self.objects = MemoryStore(_BucketClock(self.world))
        self.random: random.Random = self.world.stream("store")
        self.delete_random: random.Random = self.world.stream("store deletes")
        self.applied: list[Applied] = []
        self.unavailable_until = 0.0
        # Names of machines and processes.
        self.cut_off: set[str] = set()
        self._handles: list[StoreHandle] = []
        # Told of every object that comes to be.
        self.on_put: Callable[[str, bytes], None] = lambda key, body: None
        # Keys, and the bodies that a reader could have seen under them.
        self.bodies: dict[str, bytes] = {}

    def handle(self, process: Process) -> StoreHandle:
        handle = StoreHandle(self, process)
        self._handles.append(handle)
        return handle

    def cut(self, name: str) -> None:
        """Cut a machine or a process off: what is on its way has an uncertain fate, and all else is refused."""
        self.cut_off.add(name)
        self._handles = [handle for handle in self._handles if not handle.process.is_dead]
        for handle in self._handles:
            if name in (handle.process.name, handle.process.machine.name):
                handle.sever()

    def mend(self, name: str) -> None:
        self.cut_off.discard(name)

    def fail_for(self, seconds: float) -> None:
        """Refuse every request for a while."""
        self.unavailable_until = max(self.unavailable_until, self.world.loop.time() + seconds)

    def refuses(self, process: Process) -> bool:
        if process.name in self.cut_off or process.machine.name in self.cut_off:
            return True
        if self.world.loop.time() < self.unavailable_until:
            return True
        return self.random.random() < self.faults.unavailable

    def delay(self) -> float:
        faults = self.faults
        if self.random.random() < faults.slow:
            return faults.delay_least + self.random.expovariate(1 / faults.slow_seconds)
        return faults.delay_least + self.random.expovariate(1 / faults.delay_usual)

    def apply_put(self, process: Process, key: str, body: bytes) -> bool:
        """Create the object now; False if the key is taken."""
        taken = key in self.bodies
        if taken and not self.plain_create:
            return False
        if taken:
            _now(self.objects.delete([key], Purpose.SWEEP))
        _now(self.objects.put_if_absent(key, [body], Purpose.FLUSH))
        self.bodies[key] = body
        kind = key.split("/")[1]
        self.world.counts["segments" if kind == "topics" else f"{kind} objects"] += 1
        self.applied.append(Applied(self.world.loop.time(), process.name, key, False, len(body)))
        self.world.trace(f"store {process.name} put {key} {len(body)} {crc32c(body):08x}")
        self.on_put(key, body)
        return True

    def apply_delete(self, process: Process, keys: Sequence[str]) -> None:
        _now(self.objects.delete(keys, Purpose.SWEEP))
        for key in keys:
            if self.bodies.pop(key, None) is not None:
                # A worker deletes what its checkpoints gave up, a supervisor what the sweep found.
                self.world.counts["swept objects" if process.name.startswith("super") else "deleted objects"] += 1
                self.applied.append(Applied(self.world.loop.time(), process.name, key, True))
                self.world.trace(f"store {process.name} delete {key}")


class StoreHandle:
    """The bucket as one process sees it: an `ObjectStore`."""

    def __init__(self, bucket: Bucket, process: Process) -> None:
        self._bucket = bucket
        self.process = process
        self._loop = bucket.world.loop
        self._in_flight: dict[int, _InFlight] = {}
        self._number = 0
        process.on_crash.append(self._crashed)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        bucket, chance = self._bucket, self._bucket.random
        faults = bucket.faults
        body = b"".join(parts)
        answer = self._answer()
        arrives = bucket.delay()
        if bucket.refuses(self.process):
            self._reply(answer, arrives, StoreUnavailable("the simulated store refuses"))
            return await answer
        fate = chance.random()
        lost_applied = faults.answer_lost_applied
        lost_not_applied = lost_applied + faults.answer_lost_not_applied
        lost_later = lost_not_applied + faults.answer_lost_applied_later
        refused_own = lost_later + faults.own_put_refused
        unclear = StoreUnclear("the simulated store's answer was lost")
        gives_up = arrives + faults.unclear_after + bucket.delay()

        def apply(then: Callable[[bool], None]) -> Callable[[], None]:
            def run() -> None:
                if not self.process.is_dead and not answer.done() and b"".join(parts) != body:
                    bucket.world.complain(f"{self.process.name}: a buffer of {key} changed while it was being put")
                then(bucket.apply_put(self.process, key, body))

            return run

        if fate < lost_later:
            bucket.world.counts["lost answers"] += 1
        if fate < lost_applied:
            self._send(answer, arrives, apply(lambda won: None), is_write=True)
            self._reply(answer, gives_up, unclear)
        elif fate < lost_not_applied:
            self._reply(answer, gives_up, unclear)
        elif fate < lost_later:
            bucket.world.counts["late puts"] += 1
            late = gives_up + chance.expovariate(1 / faults.applied_later_seconds)
            self._reply(answer, gives_up, unclear)
            self._send(answer, late, apply(lambda won: None), is_write=True)
        elif fate < refused_own:
            # What a client that repeats requests by itself makes of a lost answer.
            self._send(answer, arrives, apply(lambda won: None), is_write=True)
            self._reply(answer, gives_up, ObjectExists(f"object {key} exists"))
        else:

            def answered(won: bool) -> None:
                self._reply(answer, bucket.delay(), None if won else ObjectExists(f"object {key} exists"))

            self._send(answer, arrives, apply(answered), is_write=True)
        return await answer

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return await self._ask(lambda objects: objects.get(key, purpose))

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        return await self._ask(lambda objects: objects.get_range(key, position, length, purpose))

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        return await self._ask(lambda objects: objects.get_tail(key, length, purpose))

    async def exists(self, key: str, purpose: Purpose) -> bool:
        return await self._ask(lambda objects: objects.exists(key, purpose))

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        longer = self._bucket.faults.sweep_list_seconds if purpose is Purpose.SWEEP else 0.0
        return await self._ask(lambda objects: objects.list(prefix, purpose, start_after), longer)

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        bucket = self._bucket
        keys = tuple(keys)
        answer = self._answer()
        if bucket.refuses(self.process):
            self._reply(answer, bucket.delay(), StoreUnavailable("the simulated store refuses"))
            return await answer

        def run() -> None:
            bucket.apply_delete(self.process, keys)
            if not is_lost:
                self._reply(answer, bucket.delay(), None)

        faults, arrives = bucket.faults, bucket.delay()
        is_lost = bucket.delete_random.random() < faults.delete_answer_lost
        if is_lost:
            bucket.world.counts["late deletes"] += 1
            gives_up = arrives + faults.unclear_after
            self._reply(answer, gives_up, StoreUnavailable("the simulated store's answer was lost"))
            arrives = gives_up + bucket.delete_random.expovariate(1 / faults.applied_later_seconds)
        self._send(answer, arrives, run, is_write=True, is_delete=True)
        return await answer

    async def close(self) -> None:
        return None

    async def _ask(self, question: Callable[[MemoryStore], Any], longer: float = 0.0) -> Any:
        """`longer`: seconds that it takes beyond the usual, there and back."""
        bucket = self._bucket
        there, back = (bucket.random.uniform(0, longer), bucket.random.uniform(0, longer)) if longer else (0.0, 0.0)
        answer = self._answer()
        if bucket.refuses(self.process):
            self._reply(answer, bucket.delay(), StoreUnavailable("the simulated store refuses"))
            return await answer

        def run() -> None:
            try:
                result = _now(question(bucket.objects))
            except Exception as error:  # noqa: BLE001 - the asker gets it
                self._reply(answer, back + bucket.delay(), error)
            else:
                self._reply(answer, back + bucket.delay(), None, result)

        self._send(answer, there + bucket.delay(), run)
        return await answer

    def _answer(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def _send(
        self,
        answer: asyncio.Future[Any],
        seconds: float,
        apply: Callable[[], None],
        is_write: bool = False,
        is_delete: bool = False,
    ) -> None:
        """Have the request arrive after `seconds`. Nothing that a dead process still does arrives anywhere."""
        if self.process.is_dead:
            return
        self._number += 1
        number = self._number

        def arrive() -> None:
            del self._in_flight[number]
            apply()

        handle = _call_later(self._loop, seconds, arrive)
        self._in_flight[number] = _InFlight(apply, handle, answer, is_write, is_delete)

    def _reply(
        self, answer: asyncio.Future[Any], seconds: float, error: Exception | None, result: object = None
    ) -> None:
        def settle() -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        _call_later(self._loop, seconds, self.process.deliver, settle)

    def sever(self) -> None:
        """The way to the store is gone: whoever waits for an answer gives up in a while, and does not know."""
        for request in self._abandon():
            error = StoreUnclear if request.is_write else StoreUnavailable
            self._reply(
                request.answer,
                self._bucket.faults.unclear_after + self._bucket.delay(),
                error("the simulated store can't be reached any more"),
            )

    def _crashed(self) -> None:
        self._abandon()

    def _abandon(self) -> list[_InFlight]:
        """Decide what becomes of the requests on their way; returns them."""
        faults, chance = self._bucket.faults, self._bucket.random
        in_flight, self._in_flight = self._in_flight, {}
        for request in in_flight.values():
            arrives = request.handle.when() - self._loop.time()
            request.handle.cancel()
            fate = chance.random()
            if request.is_delete:
                is_late = fate < faults.crashed_delete_late
                self._bucket.world.counts["late deletes"] += is_late
                late = chance.expovariate(1 / faults.applied_later_seconds) if is_late else 0
            elif fate < faults.crashed_put_dropped or not request.is_write:
                continue
            elif fate < faults.crashed_put_dropped + faults.crashed_put_late:
                self._bucket.world.counts["late puts"] += 1
                late = chance.expovariate(1 / faults.applied_later_seconds)
            else:
                late = 0
            _call_later(self._loop, max(0.0, arrives) + late, request.apply)
        return list(in_flight.values())


class _BucketClock:
    """The store's own clock: the world's time."""

    def __init__(self, world: World) -> None:
        self._loop = world.loop

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a store does not sleep")

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        raise AssertionError("a store has no timers")


def _now(coroutine: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the store in memory waited")


def _call_later(
    loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., Any], *args: Any
) -> asyncio.TimerHandle:
    """A timer of the world: it belongs to no process, though one may have caused it."""
    return loop.call_later(seconds, callback, *args, context=contextvars.Context())
