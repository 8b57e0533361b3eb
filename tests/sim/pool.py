"""Many seeds at once, on all cores, each in a process that runs one after the other."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

from kafscale.storage.planted import PlantedBugs
from tests.sim.scenario import Result, run_seed

Work = tuple[int, PlantedBugs]


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Pool:
    """Processes that run seeds. Use it as a context: they end with it."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_be_silent)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def results(self, work: Iterable[Work], ahead: int | None = None) -> Iterator[Result]:
        """The results of (seed, planted bugs), in the order of `work`, as they come. When the iteration is broken off,
        no more is begun than `ahead`, by default as many as keep everybody busy where one seed takes long."""
        if ahead is None:
            ahead = 4 * self._jobs
        waiting: deque[Future[Result]] = deque()
        try:
            for item in work:
                waiting.append(self._executor.submit(_run_one, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _be_silent() -> None:
    logging.lastResort = None


def _run_one(work: Work) -> Result:
    result = run_seed(*work)
    # Only the verdict matters, and it has to cross to another process.
    result.history.events.clear()
    result.history.final.clear()
    return result
