"""Goal: the checker can fail. Each of six bugs, planted in the production code, is caught within CI's seeds."""

from __future__ import annotations

import msgspec
import pytest

from kafscale.storage.planted import NO_BUGS, PlantedBugs
from tests.sim.scenario import run_seed
from tests.sim.test_sim import SEEDS

# What the bug breaks: violations of other kinds alone would not show that it was this bug that was found.
BREAKS = {
    "acknowledge_before_write": {"lost"},
    "plain_create": {"lost", "two-records"},
    "gap_is_the_end": {"lost", "two-records"},
    "seal_deleted": {"lost", "two-records", "not-durable", "committed-offset"},
    "producer_state_lost": {"duplicate"},
    "duplicate_answered_early": {"lost"},
}


def test_every_switch_is_tried() -> None:
    """Goal: no planted bug is without a test, and none is on by default."""
    assert set(BREAKS) == set(msgspec.structs.asdict(NO_BUGS))
    assert not any(msgspec.structs.asdict(NO_BUGS).values())


@pytest.mark.parametrize("bug", BREAKS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    """Goal: with the bug switched on some seed of CI's finds what it breaks; without it all of them are clean."""
    for seed in range(60):
        found = {violation.kind for violation in run_seed(seed, PlantedBugs(**{bug: True})).violations}
        if found & BREAKS[bug]:
            return
    pytest.fail(f"{SEEDS} seeds did not find {bug}")
