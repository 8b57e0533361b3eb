"""Goal: the checker can fail. Each of the bugs planted in the production code is caught within CI's seeds."""

from __future__ import annotations

import msgspec
import pytest

from kafscale.storage.planted import NO_BUGS, PlantedBugs
from tests.sim.moods import mood_of_seed
from tests.sim.pool import cores, results
from tests.sim.scenario import Result
from tests.sim.test_sim import SEEDS

UNREADABLE = "could not start"

# What the bug breaks: violations of other kinds alone would not show that it was this bug that was found. And the moods
# that are most likely to find it, whose seeds are tried first.
BREAKS = {
    "acknowledge_before_write": ({"lost"}, {"storm", "alone"}),
    "plain_create": ({"lost", "two-records"}, {"undead"}),
    "gap_is_the_end": ({"lost", "two-records"}, {"undead", "apart"}),
    "seal_deleted": ({"lost", "two-records", "not-durable", "committed-offset"}, {"undead"}),
    "last_log_alone": ({"lost", "two-records"}, {"moving", "cluster"}),
    "producer_state_lost": ({"duplicate"}, {"storm", "alone"}),
    "duplicate_answered_early": ({"lost"}, {"storm", "moving"}),
    # What is gone can't be loaded: no wrong answer, and none any more.
    "deleted_before_counting": ({UNREADABLE}, {"undead", "moving"}),
}


def test_every_switch_is_tried() -> None:
    """Goal: no planted bug is without a test, and none is on by default."""
    assert set(BREAKS) == set(msgspec.structs.asdict(NO_BUGS))
    assert not any(msgspec.structs.asdict(NO_BUGS).values())


@pytest.mark.parametrize("bug", BREAKS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    """Goal: with the bug switched on some seed of CI's finds what it breaks; without it all of them are clean."""
    kinds, moods = BREAKS[bug]
    bugs = PlantedBugs(**{bug: True})
    seeds = sorted(range(SEEDS), key=lambda seed: mood_of_seed(seed).name not in moods)
    for result in results(((seed, bugs) for seed in seeds), cores()):
        if _found(result) & kinds:
            return
    pytest.fail(f"{SEEDS} seeds did not find {bug}")


def _found(result: Result) -> set[str]:
    found = {violation.kind for violation in result.violations}
    if any(UNREADABLE in complaint for complaint in result.complaints):
        found.add(UNREADABLE)
    return found
