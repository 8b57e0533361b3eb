"""Run seeds of the simulation: `python -m tests.sim.run --seeds 1000`, or one alone with its trace: `--seed N`.

Prints each failing seed with the command that replays it. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from kafscale.storage.planted import PlantedBugs
from tests.sim.pool import Pool
from tests.sim.scenario import Result, run_seed

SEEDS_PER_POOL = 500


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
    failed = operations = 0
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for first in range(0, len(seeds), SEEDS_PER_POOL):
        # What a process has run leaves something behind now and then.
        with Pool(jobs) as pool:
            for result in pool.results((seed, bugs) for seed in seeds[first : first + SEEDS_PER_POOL]):
                operations += result.operations
                faults += result.faults
                counts += result.counts
                if result.failed:
                    failed += 1
                    print(result.report(), flush=True)
        print(
            f"{first + len(seeds[first : first + SEEDS_PER_POOL])} seeds, {failed} failed", file=sys.stderr, flush=True
        )
    seconds = time.perf_counter() - began
    print("faults: " + _listed(faults))
    print("came about: " + _listed(counts))
    print(f"{len(seeds)} seeds, {operations} operations, {faults.total()} faults, {failed} failed, {seconds:.0f} s")
    return int(failed > 0)


def _summary(result: Result) -> str:
    return (
        f"seed {result.seed} ({result.mood}): {result.operations} operations, {result.seconds:.0f} s of virtual time;"
        f" {_listed(result.faults)}; {_listed(result.counts)}; clean"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
