"""Threads of a simulated world: production code that blocks runs here, one step at a time, in virtual time.

A call handed to an executor becomes a greenlet of its process. Where it would block (`wait`), it stands aside and the
world goes on; the answer comes through the gate of its process, so that a paused process's threads are paused too, and
a crashed one's never go on. Which of them runs when is decided by the world's time alone.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, greenlet

from tests.sim.world import Process, World, current_process

Settle = Callable[[Any, BaseException | None], None]


class Threads:
    """The executor of a world's loop. An executor of n threads runs n calls at once; the others wait their turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._waiting: weakref.WeakKeyDictionary[Any, deque[Callable[[], None]]] = weakref.WeakKeyDictionary()
        # Those that have begun and not ended. What a crash left waiting is here to the end.
        self._begun: dict[_Thread, None] = {}
        world.loop.executor = self.call

    def call(self, executor: Any, function: Callable[[], Any]) -> asyncio.Future[Any]:
        process = current_process()
        if executor is None or process is None:
            raise RuntimeError("a simulation has no threads but those of its processes' own executors")
        outcome: asyncio.Future[Any] = self._world.loop.create_future()

        def ended(result: Any, error: BaseException | None) -> None:
            self._begun.pop(thread, None)
            self._running[executor] -= 1
            waiting = self._waiting.get(executor)
            if waiting:
                waiting.popleft()()
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        thread = _Thread(process, function, ended)

        def begin() -> None:
            self._running[executor] = self._running.get(executor, 0) + 1
            self._begun[thread] = None
            self._world.loop.call_soon(thread.go_on)

        if self._running.get(executor, 0) < executor._max_workers:
            begin()
        else:
            self._waiting.setdefault(executor, deque()).append(begin)
        return outcome

    def close(self) -> None:
        """End those that wait for what will never come: a stack that stands aside keeps all that it knows alive."""
        while self._begun:
            thread, _ = self._begun.popitem()
            thread.parent = greenlet.getcurrent()
            thread.throw(GreenletExit)


class _Thread(greenlet):
    """One call in progress."""

    def __init__(self, process: Process, function: Callable[[], Any], ended: Settle) -> None:
        super().__init__()
        self.process = process
        self._function = function
        self._ended = ended

    def run(self) -> None:
        try:
            result = self._function()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            outcome: tuple[Any, BaseException | None] = (None, error)
        else:
            outcome = (result, None)
        self._ended(*outcome)

    def go_on(self, *answer: Any) -> None:
        self.parent = greenlet.getcurrent()
        self.switch(*answer)


def wait(ask: Callable[[Settle], None]) -> Any:
    """Called in a thread: `ask` gets a function to be called once, with the result or an error, and returns at once;
    this returns, or raises, when it has been called and the process is awake."""
    thread = greenlet.getcurrent()
    assert isinstance(thread, _Thread)

    def settle(result: Any, error: BaseException | None) -> None:
        thread.process.deliver(thread.go_on, (result, error))

    ask(settle)
    assert thread.parent is not None
    result, error = thread.parent.switch()
    if error is not None:
        raise error
    return result
