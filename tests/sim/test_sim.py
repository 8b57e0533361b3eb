"""Goal: under every kind of fault a broker may meet, clients see exactly what a log promises.

A hundred seeds; `make sim` runs a thousand, and `python -m tests.sim.run --seed N` one alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.history import CommitAcknowledged, Fetched, OffsetFetched, ProduceAcknowledged, RecordsDeleted
from tests.sim.scenario import FAULTS_LEAST, KINDS_LEAST, OPERATIONS_LEAST, run_seed

SEEDS = 100
ROOT = Path(__file__).parents[2]
# Seeds that the tests of the simulation itself look at more closely.
LOOKED_AT = 12


@pytest.mark.parametrize("seed", range(SEEDS))
def test_clients_see_what_a_log_promises(seed: int) -> None:
    """Goal: no acknowledged record lost, none twice, no gap, nothing that goes back, whatever this seed breaks."""
    result = run_seed(seed)
    assert not result.failed, result.report()
    assert result.operations >= OPERATIONS_LEAST >= 500
    assert result.faults.total() >= FAULTS_LEAST >= 5
    assert len(result.faults) >= KINDS_LEAST >= 3


def test_the_simulation_reaches_what_it_is_for() -> None:
    """Goal: over some seeds everything happens that the checker could only then find fault with."""
    counts: Counter[str] = Counter()
    events: Counter[type] = Counter()
    faults: Counter[str] = Counter()
    for seed in range(LOOKED_AT):
        result = run_seed(seed)
        counts += result.counts
        faults += result.faults
        events.update(type(event) for event in result.history.events)
        events[Fetched] -= sum(isinstance(event, Fetched) and not event.records for event in result.history.events)
        events[OffsetFetched] -= sum(
            isinstance(event, OffsetFetched) and event.offset < 0 for event in result.history.events
        )
    assert counts["incarnations"] > 2 * LOOKED_AT
    for what in ("fenced workers", "swept objects", "log objects", "manifest objects", "pack objects", "segments"):
        assert counts[what] > 0, f"{what}: {counts}"
    for kind in (ProduceAcknowledged, Fetched, CommitAcknowledged, OffsetFetched, RecordsDeleted):
        assert events[kind] > 0, f"{kind.__name__}: {events}"
    assert len(faults) >= 10, faults


def test_the_same_seed_takes_the_same_steps() -> None:
    """Goal: a seed's trace is the same, byte for byte, in another process with other hashes of strings."""
    traces = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.sim.run", "--seed", "4", "--trace"]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False, cwd=ROOT)
        assert done.stderr == b""
        traces.append(done.stdout)
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 100


def test_a_failing_seed_says_how_to_replay_it() -> None:
    """Goal: what is printed of a failure names the seed, what was found, and the command."""
    command = [sys.executable, "-m", "tests.sim.run", "--seeds", "1", "--bug", "acknowledge_before_write"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "seed 0 failed" in done.stdout
    assert "two-records: " in done.stdout
    assert "python -m tests.sim.run --seed 0" in done.stdout
