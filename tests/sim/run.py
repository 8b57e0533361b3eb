"""Run seeds of the simulation: `python -m tests.sim.run --seeds 1000`, or one alone with its trace: `--seed N`.

Prints each failing seed with the command that replays it. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator

from kafscale.storage.planted import PlantedBugs
from tests.sim.scenario import Result, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="print what happened, step by step (with --seed)")
    parser.add_argument("--log", action="store_true", help="show the broker's own log lines (with --seed)")
    parser.add_argument("--bug", help="plant this bug (see kafscale/storage/planted.py)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use")
    arguments = parser.parse_args()
    if arguments.log:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    else:
        logging.lastResort = None  # Nothing is printed, though the simulation listens.
    bugs = PlantedBugs(**({arguments.bug: True} if arguments.bug else {}))
    if arguments.seed is not None:
        result = run_seed(arguments.seed, bugs, keep_trace=arguments.trace)
        for line in result.trace:
            print(line)
        print(result.report() if result.failed else _summary(result))
        return int(result.failed)
    return _run_many(range(arguments.first, arguments.first + arguments.seeds), bugs, arguments.jobs)


def _run_many(seeds: range, bugs: PlantedBugs, jobs: int) -> int:
    began = time.perf_counter()
    failed = operations = faults = 0
    for result in _results(seeds, bugs, jobs):
        operations += result.operations
        faults += result.faults.total()
        if result.failed:
            failed += 1
            print(result.report(), flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(seeds)} seeds, {operations} operations, {faults} faults, {failed} failed, {seconds:.0f} s")
    return int(failed > 0)


def _results(seeds: range, bugs: PlantedBugs, jobs: int) -> Iterator[Result]:
    work: Iterable[tuple[int, PlantedBugs]] = ((seed, bugs) for seed in seeds)
    if jobs <= 1:
        yield from map(_run_one, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _be_silent) as pool:
        yield from pool.imap(_run_one, work)


def _be_silent() -> None:
    logging.lastResort = None


def _run_one(work: tuple[int, PlantedBugs]) -> Result:
    result = run_seed(*work)
    # Only the verdict matters, and it has to cross to another process.
    result.history.events.clear()
    result.history.final.clear()
    return result


def _summary(result: Result) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.faults.items()))
    return f"seed {result.seed}: {result.operations} operations, {result.seconds:.0f} s of virtual time; {kinds}; clean"


if __name__ == "__main__":
    sys.exit(main())
