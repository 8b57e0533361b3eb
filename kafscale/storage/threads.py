"""A few threads for calls that block, and the way back to the event loop.

It owns the threads of one store, so that a slow disk can't take them from anyone else. A call costs one hop there and
one back; the queue and the wake-up are cheaper than `concurrent.futures` with its locks and conditions. It knows
nothing of stores.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")
_Job = Callable[[], bool]  # False ends the thread that ran it.


class Threads:
    """Runs blocking calls in at most `count` threads, which are started with the first call."""

    def __init__(self, name: str, count: int) -> None:
        if count < 1:
            raise ValueError(f"at least one thread is needed, not {count}")
        self._name = name
        self._count = count
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    async def call(self, function: Callable[[], _Result]) -> _Result:
        """The result of `function()`, called in a thread. If the awaiting task is cancelled, a call that has begun runs
        to its end and its result is dropped; one that hasn't begun never does."""
        if self._closed:
            raise RuntimeError(f"the threads of {self._name} are closed")
        if not self._threads:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def job() -> bool:
            if future.cancelled():
                return True
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
                _hand_back(loop, _fail, future, error)
            else:
                _hand_back(loop, _settle, future, result)
            return True

        self._jobs.put(job)
        return await future

    def post(self, function: Callable[[], None]) -> None:
        """Have a thread call `function`, which raises nothing, some time; nobody hears of its end. May be called from
        any thread, those of this object included."""

        def job() -> bool:
            function()
            return True

        self._jobs.put(job)

    async def close(self) -> None:
        """Let the calls that were made end, then end the threads."""
        if self._closed:
            return
        self._closed = True
        ends = [self._thread_end() for _ in self._threads]
        await asyncio.gather(*ends)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        for number in range(self._count):
            # Daemons, so that a disk that hangs can't keep a process from ending.
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        while self._jobs.get()():
            pass

    async def _thread_end(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def job() -> bool:
            _hand_back(loop, _settle, future, None)
            return False

        self._jobs.put(job)
        await future


def _hand_back(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], future: object, value: object) -> None:
    try:
        loop.call_soon_threadsafe(settle, future, value)
    except RuntimeError:
        pass  # The loop is closed: nobody waits any more.


def _settle(future: asyncio.Future[_Result], result: _Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[object], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
