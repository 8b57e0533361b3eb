"""Goal: under every kind of fault that brokers may meet, alone or together, clients see exactly what a log promises.

Two hundred seeds; `make sim` runs a thousand, and `python -m tests.sim.run --seed N` one alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kafscale.storage.planted import NO_BUGS
from tests.sim.faults import KINDS
from tests.sim.moods import MOODS
from tests.sim.pool import Pool
from tests.sim.scenario import FAULTS_LEAST, KINDS_LEAST, OPERATIONS_LEAST

SEEDS = 200
ROOT = Path(__file__).parents[2]
# What no fault alone brings about, and without which a hundred seeds would show nothing of it.
COMES_ABOUT = (
    "fenced workers",
    "deleted objects",
    "swept objects",
    "lost answers",
    "late puts",
    "late deletes",
    "moves between nodes",
    "planned moves",
    "repeated events",
    "late events",
    "lost events",
    "silent watches",
    "log objects",
    "manifest objects",
    "pack objects",
    "segments",
)

# What clients do and see, empty answers left out.
SEEN = ("ProduceAcknowledged", "Fetched", "CommitAcknowledged", "OffsetFetched", "RecordsDeleted")


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_clients_see_what_a_log_promises(first: int, pool: Pool) -> None:
    """Goal: no acknowledged record lost, none twice, no gap, nothing that goes back, whatever a hundred seeds break.
    Every kind of fault is among them, and clients do everything that the checker could only then find fault with."""
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    moods: Counter[str] = Counter()
    failures = []
    for result in pool.results((seed, NO_BUGS) for seed in range(first, first + 100)):
        if result.failed:
            failures.append(result.report())
        assert result.operations >= OPERATIONS_LEAST >= 500 or result.failed, f"seed {result.seed}"
        assert result.faults.total() >= FAULTS_LEAST >= 5 or result.failed, f"seed {result.seed}: {result.faults}"
        assert len(result.faults) >= KINDS_LEAST >= 3 or result.failed, f"seed {result.seed}: {result.faults}"
        faults += result.faults
        counts += result.counts
        seen += result.seen
        moods[result.mood] += 1
    assert not failures, "\n".join(failures)
    assert set(moods) == {mood.name for mood in MOODS}
    assert set(faults) == KINDS, f"these never came: {sorted(KINDS - set(faults))}"
    assert not [what for what in COMES_ABOUT if not counts[what]], counts
    assert not [what for what in SEEN if not seen[what]], seen
    assert counts["incarnations"] > 500


# One broker, and three of them with an etcd.
@pytest.mark.parametrize("seed", (4, 0))
def test_the_same_seed_takes_the_same_steps(seed: int) -> None:
    """Goal: a seed's trace is the same, byte for byte, in another process with other hashes of strings."""
    command = [sys.executable, "-m", "tests.sim.run", "--seed", str(seed), "--trace"]

    def trace(hash_seed: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False, cwd=ROOT)
        assert done.stderr == b""
        return done.stdout

    with ThreadPoolExecutor() as threads:
        traces = list(threads.map(trace, ("1", "2")))
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 100


def test_a_failing_seed_says_how_to_replay_it() -> None:
    """Goal: what is printed of a failure names the seed, what was found, and the command."""
    arguments = ["--first", "6", "--seeds", "1", "--bug", "acknowledge_before_write"]
    command = [sys.executable, "-m", "tests.sim.run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "seed 6 failed" in done.stdout
    # What clients saw, or what else went wrong: whichever the bug brought about with this seed.
    assert re.search(r"^  ([a-z-]+: |complaint )\w", done.stdout, re.M), done.stdout
    assert "python -m tests.sim.run --seed 6 --bug acknowledge_before_write" in done.stdout
