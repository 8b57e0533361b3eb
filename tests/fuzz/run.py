"""Fuzz everything for so many seconds: `python -m tests.fuzz.run --seconds 600`, or `make fuzz`.

The targets take turns. A find is printed with an input that shows it, and the exit status is 1; by
`--target NAME --seed N` the same turn is taken again.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
import warnings
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

EXAMPLES_PER_TURN = 500


def take_turn(target: Target, number: int, examples: int = EXAMPLES_PER_TURN) -> int:
    """So many inputs, chosen by the number. Returns how many there were. Raises whatever a find raises."""
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal count
        count += 1
        target.run(data.draw)

    check()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="this one alone")
    parser.add_argument("--seed", type=int, help="this turn alone (with --target)")
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    # A library's, of keys that are too short; they are refused.
    warnings.simplefilter("ignore")
    chosen = [target for target in TARGETS if arguments.target in (None, target.name)]
    began = time.monotonic()
    inputs: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    finds = 0
    while True:
        # The one that has had least time.
        target = min(chosen, key=lambda one: seconds[one.name])
        number = random.getrandbits(32) if arguments.seed is None else arguments.seed
        start = time.monotonic()
        try:
            inputs[target.name] += take_turn(target, number)
        except Exception:  # noqa: BLE001 - that is what is looked for
            finds += 1
            print(f"FOUND in {target.name}, --target {target.name} --seed {number}:", flush=True)
            traceback.print_exc(file=sys.stdout)
        seconds[target.name] += time.monotonic() - start
        if arguments.seed is not None or time.monotonic() - began > arguments.seconds:
            break
    for name, count in inputs.most_common():
        print(f"{name}: {count:,} inputs in {seconds[name]:.0f} s")
    print(f"{inputs.total():,} inputs, {finds} finds, {time.monotonic() - began:.0f} s")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
