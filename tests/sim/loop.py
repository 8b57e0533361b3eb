"""An asyncio event loop in virtual time: when nothing is ready, time jumps to the next timer.

It owns the time of a simulation and nothing else: no selector, no threads, no signals. The same program with the same
seed takes the same steps in the same order; what could differ between two runs (real threads, real files) is refused.
Where every task waits and no timer is set, nothing can ever happen again: that is a `Deadlock`. The world may stand
between a timer and what it calls (`gate`), and runs what production code hands to a thread (`executor`).

A seed is half a million turns, so the inner loop is asyncio's without what a simulation has no use for: no selector, no
debugging, and timers that are compared as tuples; such as are due at the same time come in the order in which they were
set.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import base_events
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")

# A loop that goes round so often without time passing is stuck.
ROUNDS_WITHOUT_TIME_MAX = 1_000_000
# Cancelled timers are forgotten when they come up, or when most are and there are more than so many.
CANCELLED_TIMERS_MAX = 100


class Deadlock(Exception):
    """Everything waits and nothing is going to happen."""


class OutOfTime(Exception):
    """The simulation ran past its end of time."""


class _NoSelector:
    """Stands in for the selector, which a simulation never asks."""

    def close(self) -> None:
        pass


class _Handle(asyncio.Handle):
    """A callback that is due."""

    __slots__ = ()

    def __init__(
        self, callback: Any, arguments: tuple[Any, ...], loop: SimLoop, context: contextvars.Context | None
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = arguments
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """A callback that is due at a time."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Any,
        arguments: tuple[Any, ...],
        loop: SimLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._when = when
        self._scheduled = True
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = arguments
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class SimLoop(base_events.BaseEventLoop):
    """The loop. `end_of_time` (seconds) bounds a simulation that would never end."""

    def __init__(self, end_of_time: float = 1e9) -> None:
        super().__init__()
        self._selector = _NoSelector()
        self._time = 0.0
        self._rounds = 0
        # (time, number, timer), of which so many are cancelled.
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_number = 0
        self._cancelled_timers = 0
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

    def _run_once(self) -> None:
        """Run what is ready; where nothing is, time passes to the next timer first."""
        ready, timers = self._ready, self._timers
        if self._cancelled_timers > CANCELLED_TIMERS_MAX and 2 * self._cancelled_timers > len(timers):
            self._forget_cancelled()
            timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
            self._cancelled_timers -= 1
        if ready or self._stopping:
            self._rounds += 1
            if self._rounds > ROUNDS_WITHOUT_TIME_MAX:
                raise Deadlock(f"at {self._time:.3f} s the loop goes round without time passing")
        elif not timers:
            raise Deadlock(f"at {self._time:.3f} s every task waits and no timer is set")
        elif timers[0][0] > self._time:
            self._rounds = 0
            self._time = timers[0][0]
            if self._time > self.end_of_time:
                raise OutOfTime(f"the simulation has not ended by {self.end_of_time:.0f} s")
        now = self._time
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False
            if timer._cancelled:
                self._cancelled_timers -= 1
            else:
                ready.append(timer)
        # What these make ready comes in the next turn, as in asyncio.
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - as asyncio does: whose it is decides the world
                message = f"exception in {handle._callback!r}"
                self.call_exception_handler({"message": message, "exception": error, "handle": handle})

    def _forget_cancelled(self) -> None:
        self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
        heapq.heapify(self._timers)
        self._cancelled_timers = 0

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle._scheduled:
            self._cancelled_timers += 1

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

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        ticket = None
        if context is None:
            gated = self.gate(callback, args)
            if gated is not None:
                callback, ticket = gated
                args = ()
        timer = _Timer(when, callback, args, self, context)
        if ticket is not None:
            ticket.handle = timer
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, timer))
        return timer

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
