"""Goal: the checker can fail. Each of the bugs planted in the production code is caught within CI's seeds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from kafscale.storage.planted import NO_BUGS, PlantedBugs
from tests.sim.moods import mood_of_seed
from tests.sim.pool import Pool
from tests.sim.scenario import Result
from tests.sim.test_sim import SEEDS

# What is gone can't be loaded or read: no wrong answer, and none any more.
UNREADABLE = ("can't load", "could not start", "no progress")


class Breaks(msgspec.Struct, frozen=True):
    """What a bug breaks: violations of other kinds alone would not show that it was this bug that was found. The moods
    that are most likely to find it, and seeds that did when they were last looked for: they are tried first."""

    kinds: set[str]
    moods: set[str]
    seeds: Sequence[int] = ()


BREAKS = {
    "acknowledge_before_write": Breaks({"lost"}, {"storm", "alone"}, (27, 39, 10)),
    "plain_create": Breaks({"lost", "two-records"}, {"undead"}, (2, 103, 78)),
    "gap_is_the_end": Breaks({"lost", "two-records"}, {"undead", "apart"}, (7, 15, 2)),
    "seal_deleted": Breaks({"lost", "two-records", "not-durable", "committed-offset"}, {"undead"}, (69, 2, 23)),
    "last_log_alone": Breaks({"lost", "two-records"}, {"moving", "cluster"}, (26, 56, 8)),
    "producer_state_lost": Breaks({"duplicate"}, {"storm", "alone"}, (13, 20, 10)),
    "duplicate_answered_early": Breaks({"lost"}, {"storm", "moving"}, (1, 10, 8)),
    "deleted_before_counting": Breaks({"unreadable"}, {"undead", "moving"}, (1, 2, 6)),
    "released_before_flush": Breaks({"lost", "two-records"}, {"hasty", "moving"}, (72, 62, 64)),
    "released_stays_open": Breaks({"lost", "two-records"}, {"hasty", "moving"}, (22, 21, 8)),
    "released_is_given_up": Breaks({"unreadable"}, {"hasty", "moving"}, (18, 8, 0)),
    "released_is_forgotten": Breaks({"unreadable"}, {"hasty", "moving"}, (22, 18)),
}


def test_every_switch_is_tried() -> None:
    """Goal: no planted bug is without a test, and none is on by default."""
    assert set(BREAKS) == set(msgspec.structs.asdict(NO_BUGS))
    assert not any(msgspec.structs.asdict(NO_BUGS).values())


@pytest.mark.parametrize("bug", BREAKS)
def test_a_planted_bug_is_caught(bug: str, pool: Pool) -> None:
    """Goal: with the bug switched on some seed of CI's finds what it breaks; without it all of them are clean."""
    breaks = BREAKS[bug]
    assert all(seed < SEEDS for seed in breaks.seeds)
    bugs = PlantedBugs(**{bug: True})
    others = sorted(range(SEEDS), key=lambda seed: mood_of_seed(seed).name not in breaks.moods)
    seeds = dict.fromkeys((*breaks.seeds, *others))
    if any(_found(result) & breaks.kinds for result in pool.results(((seed, bugs) for seed in seeds), ahead=1)):
        return
    pytest.fail(f"{SEEDS} seeds did not find {bug}")


def _found(result: Result) -> set[str]:
    found = {violation.kind for violation in result.violations}
    if any(words in complaint for complaint in result.complaints for words in UNREADABLE):
        found.add("unreadable")
    return found
