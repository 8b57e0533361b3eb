"""Explore the model of ownership further than CI does: `python -m tests.model.run`, or `make model`.

Each world to its end, or as far as memory lets it: prints how many states were reached. Exit status 1 and the shortest
way there if anything is broken. `--without RULE` leaves a rule out.
"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from tests.model.explore import explore
from tests.model.ownership import Bounds, Model, Rules, first_state

WORLDS = (
    Bounds(logs=2, assignments=3, versions=5, records=2),
    Bounds(logs=2, assignments=4, versions=5, records=1, crashes=0),
    Bounds(logs=3, assignments=3, versions=4, records=1),
    Bounds(logs=3, assignments=3, versions=4, records=1, sweeps=1, crashes=0),
    Bounds(logs=2, assignments=2, versions=3, records=1, in_flight=2, others=1),
    Bounds(logs=2, assignments=3, versions=3, records=2, in_flight=2, crashes=0),
    Bounds(logs=4, assignments=4, versions=4, records=1, crashes=0),
)
# Some 400 bytes each.
STATES_MAX = 6_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.run", description=__doc__)
    parser.add_argument("--without", choices=Rules.__struct_fields__, help="leave this rule out")
    parser.add_argument("--states", type=int, default=STATES_MAX, help="stop in each world after so many")
    arguments = parser.parse_args()
    rules = msgspec.structs.replace(Rules(), **({arguments.without: False} if arguments.without else {}))
    for bounds in WORLDS:
        began = time.process_time()
        found = explore(first_state(bounds), Model(rules, bounds).successors, arguments.states)
        changed = {name: value for name, value in msgspec.structs.asdict(bounds).items() if value}
        print(", ".join(f"{name} {value}" for name, value in changed.items()))
        print(f"  {found}; {time.process_time() - began:.0f} s", flush=True)
        if found.way is not None:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
