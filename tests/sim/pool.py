"""Many seeds at once, on all cores, each in a process that runs one after the other."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator

from kafscale.storage.planted import PlantedBugs
from tests.sim.scenario import Result, run_seed

Work = tuple[int, PlantedBugs]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def results(work: Iterable[Work], jobs: int) -> Iterator[Result]:
    """The results of (seed, planted bugs), in the order of `work`, as they come. What is left undone when the iteration
    is broken off is given up."""
    if jobs <= 1:
        yield from map(_run_one, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _be_silent) as pool:
        yield from pool.imap(_run_one, work)


def _be_silent() -> None:
    logging.lastResort = None


def _run_one(work: Work) -> Result:
    result = run_seed(*work)
    # Only the verdict matters, and it has to cross to another process.
    result.history.events.clear()
    result.history.final.clear()
    return result
