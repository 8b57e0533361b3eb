"""Machines and processes of a simulated world: they can be paused, resumed and crashed, and clocks can be set.

A process is woken only from outside: by an answer of the store, by its clock, by the network, by its control channel.
All of these come through its gate (`Process.deliver`). While it is paused they are held, in order, and come when it
resumes; once it has crashed they are dropped. Whatever a process starts, tasks, timers and callbacks alike, carries the
process with it in its context, so that a crash finds all of it. The processes of a machine share its clocks.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

from tests.sim.loop import SimLoop

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)

# The context of what belongs to no process.
_nowhere = contextvars.Context()

EPOCH_MS = 1_800_000_000_000


def current_process() -> Process | None:
    """The process in which the caller runs."""
    return _process.get()


# A process with fewer tasks remembers also those that are done.
FEW_TASKS = 30


class Machine:
    """Where processes run. Its monotonic clock began at some time of its own; its wall clock can be set."""

    def __init__(self, name: str, monotonic_zero: float) -> None:
        self.name = name
        self.monotonic_zero = monotonic_zero
        self.wall_offset_ms = 0


class Process:
    """One process of the world."""

    def __init__(self, world: World, name: str, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.is_paused = False
        self.is_dead = False
        self._is_draining = False
        self.on_crash: list[Callable[[], None]] = []
        self._world = world
        self._context = contextvars.Context()
        self._context.run(_process.set, self)
        self._held: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        # Tasks in the order of their creation, so that a crash cancels them in the same order every time; those that
        # are done are forgotten when there are so many.
        self.tasks: list[asyncio.Task[Any]] = []
        self._tasks_most = FEW_TASKS

    def deliver(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run `callback(*args)` inside the process: now, on resumption, or, if it is dead, never."""
        if self.is_dead:
            return
        if self.is_paused or self._is_draining:
            self._held.append((callback, args))
            return
        self.run(callback, *args)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something as the process. What it raises is its own affair, as in a callback of an event loop."""
        return self._context.copy().run(function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self.run(lambda: asyncio.get_running_loop().create_task(coroutine, name=name))
        return task

    def remember(self, task: asyncio.Task[Any]) -> None:
        self.tasks.append(task)
        if len(self.tasks) > self._tasks_most:
            self.forget_done()

    def forget_done(self) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        self._tasks_most = FEW_TASKS + 2 * len(self.tasks)

    def pause(self) -> None:
        if not self.is_dead:
            self._world.trace(f"pause {self.name}")
            self.is_paused = True

    def resume(self) -> None:
        if self.is_dead or not self.is_paused:
            return
        self._world.trace(f"resume {self.name}")
        self.is_paused = False
        # What has waited comes one by one, each in a turn of the loop, and keeps its place before what comes later.
        if not self._is_draining:
            self._is_draining = True
            self._world.loop.call_soon(self._drain, context=contextvars.Context())

    def _drain(self) -> None:
        if self.is_dead or self.is_paused or not self._held:
            self._is_draining = False
            return
        callback, args = self._held.popleft()
        self._world.loop.call_soon(self._drain, context=contextvars.Context())
        self.run(callback, *args)

    def crash(self) -> None:
        """End at once: tasks are cancelled, and nothing they do on the way reaches anyone."""
        if self.is_dead:
            return
        self._world.trace(f"crash {self.name}")
        self.is_dead = True
        self._held.clear()
        for callback in self.on_crash:
            callback()
        self.on_crash.clear()
        for task in self.tasks:
            task.cancel()
        self.forget_done()


class _Ticket:
    """A timer that a process set by the loop, not by its clock: what it calls comes through the gate as well."""

    __slots__ = ("_arguments", "_callback", "_process", "handle")

    def __init__(self, process: Process, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._process = process
        self._callback = callback
        self._arguments = arguments
        self.handle: asyncio.TimerHandle | None = None

    def arrive(self) -> None:
        process = self._process
        if process.is_dead:
            return
        if process.is_paused or process._is_draining:
            process._held.append((self._run, ()))
        else:
            self._callback(*self._arguments)

    def _run(self) -> None:
        assert self.handle is not None
        if not self.handle.cancelled():
            self._callback(*self._arguments)


class SimTimer:
    """A timer of a process: it may be cancelled until it has run, also while it is held at the gate."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._handle is not None:
            self._handle.cancel()

    def _run(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self._is_cancelled:
            callback(*args)


class SimClock:
    """A `Clock` of one process. Wall time may be set off against the world's; monotonic time only begins elsewhere."""

    def __init__(self, world: World, process: Process) -> None:
        self._loop = world.loop
        self._process = process
        self._machine = process.machine

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._loop.time() * 1000) + self._machine.wall_offset_ms

    def monotonic(self) -> float:
        return self._machine.monotonic_zero + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = self._loop.create_future()
        timer = self.call_later(seconds, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> SimTimer:
        timer = SimTimer()
        timer._handle = self._loop.call_later(
            max(0.0, seconds), self._process.deliver, timer._run, callback, args, context=_nowhere
        )
        return timer


class _Task(asyncio.Task[Any]):
    """A task that knows its process."""

    process: Process | None = None


class World:
    """Time, chance, processes, and what happened."""

    def __init__(self, loop: SimLoop, seed: int, keep_trace: bool = False) -> None:
        self.loop = loop
        self.seed = seed
        self.random = random.Random(seed)
        # Where clients are.
        self.outside = self.machine("outside")
        self.processes: list[Process] = []
        # What went wrong outside the clients' view: a surprise in a task, a buffer that changed under way.
        self.complaints: list[str] = []
        self.trace_lines: list[str] = []
        # How often what is worth simulating came about.
        self.counts: Counter[str] = Counter()
        self._keep_trace = keep_trace
        loop.set_task_factory(self._make_task)
        loop.gate = self._gated
        loop.on_uncaught = self._uncaught

    def machine(self, name: str) -> Machine:
        return Machine(name, self.random.uniform(0, 10_000))

    def process(self, name: str, machine: Machine | None = None) -> Process:
        process = Process(self, name, machine or self.outside)
        self.processes.append(process)
        return process

    def stream(self, name: str) -> random.Random:
        """A source of chance of its own, so that one part's draws don't shift another's."""
        return random.Random(f"{self.seed}/{name}")

    def trace(self, line: str) -> None:
        if self._keep_trace:
            self.trace_lines.append(f"{self.loop.time():12.6f} {line}")

    def complain(self, what: str) -> None:
        self.trace(f"COMPLAINT {what}")
        self.complaints.append(f"at {self.loop.time():.3f} s: {what}")

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        if context is None:
            task = _Task(coroutine, loop=loop)
            process = _process.get()
        else:
            task = _Task(coroutine, loop=loop, context=context)
            process = context.get(_process)
        if process is not None:
            process.remember(task)
            task.process = process
            if process.is_dead:
                task.cancel()
        return task

    def _gated(self, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], Any] | None:
        process = _process.get()
        if process is None:
            return None
        ticket = _Ticket(process, callback, arguments)
        return ticket.arrive, ticket

    def _uncaught(self, context: dict[str, Any]) -> bool:
        process = None
        if "handle" in context:
            process = context["handle"]._context.get(_process)
        elif isinstance(task := context.get("task") or context.get("future"), _Task):
            process = task.process
        if process is not None and process.is_dead:
            return False
        error = context.get("exception")
        name = process.name if process is not None else "the world"
        frames = traceback.extract_tb(error.__traceback__)[-8:] if error is not None else []
        where = " < ".join(
            f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames[::-1]
        )
        self.complain(f"{name}: {context.get('message')}: {error!r} in {where}")
        return True
