"""Goal: whatever a stranger sends or a person writes is read, or refused as it should be; a little of it each time, ten
minutes by `make fuzz`."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.run import take_turn
from tests.fuzz.targets import TARGETS, Target

EXAMPLES = 60


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_nothing_surprises(target: Target) -> None:
    """Some inputs, others each time; a failure names the turn, to be taken again."""
    number = random.getrandbits(32)
    try:
        take_turn(target, number, EXAMPLES)
    except BaseException as find:
        find.add_note(f"again: python -m tests.fuzz.run --target {target.name} --seed {number}")
        raise


def test_a_reader_that_is_wrong_is_found() -> None:
    """A target that fails for one bent input in a thousand is reported, with that input."""

    def run(draw: object) -> None:
        from tests.fuzz.mutations import bent

        data = draw(bent([b"good sample"]))  # type: ignore[operator]
        assert b"\xff\xff" not in data

    with pytest.raises(AssertionError):
        take_turn(Target("wrong", run), 1, 2000)
