"""An asyncio event loop in virtual time: when nothing is ready, time jumps to the next timer.

It owns the time of a simulation and nothing else: no selector, no threads, no signals. The same program with the same
seed takes the same steps in the same order; what could differ between two runs (real threads, real files) is refused.
Where every task waits and no timer is set, nothing can ever happen again: that is a `Deadlock`. The world may stand
between a timer and what it calls (`gate`), and runs what production code hands to a thread (`executor`).
"""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")

# A loop that goes round so often without time passing is stuck.
ROUNDS_WITHOUT_TIME_MAX = 1_000_000


class Deadlock(Exception):
    """Everything waits and nothing is going to happen."""


class OutOfTime(Exception):
    """The simulation ran past its end of time."""


class _NoSelector:
    """Stands in for the selector: waiting is where time passes."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        pass


class SimLoop(base_events.BaseEventLoop):
    """The loop. `end_of_time` (seconds) bounds a simulation that would never end."""

    def __init__(self, end_of_time: float = 1e9) -> None:
        super().__init__()
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self._time = 0.0
        self._rounds = 0
        # What the program would have the selector watch, by descriptor: the world says when one becomes readable.
        self.readers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self.end_of_time = end_of_time
        # What nobody caught: the message and the exception, in order.
        self.uncaught: list[tuple[str, BaseException | None]] = []
        # Gets each timer that is set without a context of its own; returns what is to be called in its place.
        self.gate: Callable[[Callable[..., Any], tuple[Any, ...]], tuple[Callable[..., Any], Any] | None] = (
            lambda callback, arguments: None
        )
        self.executor: Callable[[Any, Callable[[], Any]], asyncio.Future[Any]] = _no_threads
        self.on_uncaught: Callable[[dict[str, Any]], bool] = lambda context: True
        self.set_exception_handler(self._record_uncaught)

    def time(self) -> float:
        return self._time

    def pass_time(self, timeout: float | None) -> None:
        if timeout is None:
            raise Deadlock(f"at {self._time:.3f} s every task waits and no timer is set")
        if timeout <= 0:
            self._rounds += 1
            if self._rounds > ROUNDS_WITHOUT_TIME_MAX:
                raise Deadlock(f"at {self._time:.3f} s the loop goes round without time passing")
            return
        self._rounds = 0
        # The timer's own time, not now plus timeout: a sum of floats could fall just short of it.
        self._time = max(self._time, self._scheduled[0]._when)
        if self._time > self.end_of_time:
            raise OutOfTime(f"the simulation has not ended by {self.end_of_time:.0f} s")

    def _record_uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.on_uncaught(context):
            self.uncaught.append((str(context.get("message")), context.get("exception")))

    # What BaseEventLoop leaves to its subclasses.

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        raise RuntimeError("no thread may call into a simulation")

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self.readers[fd] = (callback, args)

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        if context is None:
            gated = self.gate(callback, args)
            if gated is not None:
                passing, ticket = gated
                ticket.handle = handle = super().call_at(when, passing)
                return handle
        return super().call_at(when, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        return self.executor(executor, lambda: func(*args))


def _no_threads(executor: Any, function: Callable[[], Any]) -> asyncio.Future[Any]:
    raise RuntimeError("a simulation has no threads")


def run(main: Coroutine[Any, Any, _Result], loop: SimLoop | None = None) -> _Result:
    """Run `main` to its end on a loop of its own. Raises Deadlock and OutOfTime."""
    loop = loop or SimLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        _cancel_all(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_all(loop: SimLoop) -> None:
    """Let no task outlive the simulation: a coroutine that the collector ends runs code at no certain time."""
    for _ in range(100):
        # all_tasks is a set; names are numbered in the order of creation.
        tasks = sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
