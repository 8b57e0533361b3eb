"""Breadth-first exploration of a model: every state that can be reached, or the shortest way to a broken one.

A model is its first states, what can happen in a state, and what must hold. States are values: equal ones are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


class Broken(Exception):
    """What must hold does not."""


class Found(Generic[State]):
    """How many states were reached, and the shortest way to a broken one, as names of actions; None if there is none.
    `is_complete`: there is nothing further to reach."""

    def __init__(self, states: int, way: list[str] | None, why: str, is_complete: bool) -> None:
        self.states = states
        self.way = way
        self.why = why
        self.is_complete = is_complete

    def __str__(self) -> str:
        if self.way is None:
            return f"{self.states:,} states, nothing broken" + ("" if self.is_complete else ", and there are more")
        return f"{self.why}, after:\n" + "\n".join(f"  {step}" for step in self.way)


def explore(
    first: State,
    successors: Callable[[State], Iterable[tuple[str, State]]],
    states_max: int = 1 << 62,
) -> Found[State]:
    """Explore from `first`. `successors` gives (name of the action, state), and raises Broken, with the action's name
    as the first argument and what is broken as the second."""
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    frontier = deque([first])
    while frontier:
        if len(came_from) > states_max:
            return Found(len(came_from), None, "", is_complete=False)
        state = frontier.popleft()
        try:
            for action, after in successors(state):
                if after not in came_from:
                    came_from[after] = (state, action)
                    frontier.append(after)
        except Broken as broken:
            action, why = broken.args
            return Found(len(came_from), [*_way(came_from, state), action], why, is_complete=False)
    return Found(len(came_from), None, "", is_complete=True)


def _way(came_from: dict[State, tuple[State, str] | None], state: State) -> Iterator[str]:
    steps = []
    while (step := came_from[state]) is not None:
        state, action = step
        steps.append(action)
    return reversed(steps)
