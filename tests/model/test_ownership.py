"""Goal: the rules of ownership keep their promise in every order of events, and none of them can be spared.

Within the bounds stated here; `make model` goes further.
"""

from __future__ import annotations

import msgspec
import pytest

from tests.model.explore import explore
from tests.model.ownership import Bounds, Model, Rules, first_state

# Small worlds, each with room for something else.
WORLDS = {
    "a slot comes back": Bounds(logs=2, assignments=3, versions=4, records=1),
    "three logs": Bounds(logs=3, assignments=3, versions=3, records=1, crashes=0),
    "two on their way": Bounds(logs=2, assignments=2, versions=3, records=2, in_flight=2),
    "a sweep": Bounds(logs=3, assignments=2, versions=3, records=1, sweeps=1),
}

LOST = "an acknowledged record is lost"
LACKS = "lacks record"
WAITS = "waits for ever"

# Rule → what is broken without it, and the smallest world in which that is seen.
NEEDED = {
    "waits_for_every_earlier_log": (LOST, Bounds(assignments=3, versions=3, records=1)),
    "seal_is_the_end": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "release_names_its_assignment": (LOST, Bounds(logs=2, assignments=4, versions=4, records=1, crashes=0)),
    "release_counts_without_gap": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1, in_flight=2)),
    "released_is_never_loaded": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "number_taken_fences": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "acknowledged_in_order": (LOST, Bounds(logs=2, assignments=1, versions=1, records=2, in_flight=2)),
    "own_checkpoint_before_acknowledging": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "stops_before_releasing": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "never_loaded_is_released_too": (WAITS, Bounds(logs=2, assignments=2, versions=2, records=1)),
    "decided_on_newest_version": (LOST, Bounds(logs=3, assignments=2, versions=3, records=1)),
    "epochs_rise": (LOST, Bounds(logs=2, assignments=2, versions=3, records=1)),
    "shortened_by_counting_checkpoint": (
        LOST,
        Bounds(logs=2, assignments=2, versions=3, records=1, in_flight=2, others=1, crashes=0),
    ),
    "entries_that_may_hold_something_stay": (LOST, Bounds(logs=3, assignments=3, versions=3, records=1, crashes=0)),
    "named_logs_are_not_swept": (LOST, Bounds(logs=2, assignments=2, versions=2, records=1, sweeps=1)),
    "seals_are_kept": (LOST, Bounds(logs=2, assignments=2, versions=3, records=1, sweeps=1)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_with_all_rules_nothing_is_ever_broken(world: str) -> None:
    """Goal: no order of events loses a record, gives a slot two writers, or has anybody wait for ever."""
    bounds = WORLDS[world]
    found = explore(first_state(bounds), Model(Rules(), bounds).successors)
    assert found.way is None, str(found)
    assert found.is_complete and found.states > 10_000


def test_every_rule_is_left_out_once() -> None:
    assert set(NEEDED) == set(Rules.__struct_fields__)


@pytest.mark.parametrize("rule", NEEDED)
def test_no_rule_can_be_spared(rule: str) -> None:
    """Goal: with one rule left out some order of events breaks what must hold; in the same world with it none does."""
    broken, bounds = NEEDED[rule]
    without = msgspec.structs.replace(Rules(), **{rule: False})
    found = explore(first_state(bounds), Model(without, bounds, is_patient=broken is not WAITS).successors)
    assert found.way is not None, f"{rule} could be left out: {found}"
    assert broken in found.why or (broken is LOST and LACKS in found.why), str(found)
