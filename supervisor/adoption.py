"""Which worker accepts on whose bootstrap socket while its own worker is down. Pure."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class Order(NamedTuple):
    """Tell worker `adopter` to begin (or to stop) accepting on the socket of `worker`."""

    adopter: int
    worker: int
    adopt: bool


class Adoptions:
    """Remembers who was told what. A worker that goes down forgets, and so does this."""

    def __init__(self) -> None:
        self._adopter_of: dict[int, int] = {}

    def settle(self, serving: Set[int], orphaned: Set[int]) -> list[Order]:
        """The orders that make every orphaned socket accepted on by one serving worker, and no other by a stranger."""
        orders = []
        for index, adopter in list(self._adopter_of.items()):
            if index not in orphaned or adopter not in serving:
                del self._adopter_of[index]
                if adopter in serving:
                    orders.append(Order(adopter, index, adopt=False))
        for index in sorted(orphaned - self._adopter_of.keys()):
            if serving:
                load = list(self._adopter_of.values())
                adopter = min(sorted(serving), key=load.count)
                self._adopter_of[index] = adopter
                orders.append(Order(adopter, index, adopt=True))
        return orders
