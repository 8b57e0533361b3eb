"""Goal: a log of an incarnation that is over, which a list names, is ended, and what it owns comes to another."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.coordination.assignment import Incarnation
from kafscale.coordination.cluster import Assign, Assignment
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.takeover import LogReader, find_end
from supervisor.controller import Controller
from supervisor.post import new_log_id
from supervisor.sealing import LogEnder
from supervisor.strays import bring_home

KEYS = Keys("ns")


class Clock(SystemClock):
    """Sleeps are looked at by the test."""

    def __init__(self) -> None:
        self.rounds = 0
        self.woken = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.rounds += 1
        self.woken.set()
        await asyncio.sleep(0)


def a_post(node_id: int, *, alive: bool = True) -> Any:
    """What `bring_home` looks at of a post."""
    log_id = new_log_id()
    return SimpleNamespace(
        node_id=node_id, log_id=log_id, child=object() if alive else None, incarnation=Incarnation(node_id, log_id)
    )


@pytest.mark.parametrize("is_owner", (True, False))
def test_the_log_of_an_ended_incarnation_is_ended(is_owner: bool) -> None:
    """Slot 0 was given to a log that had ended already; perhaps it was given on to another broker since."""

    async def scenario() -> None:
        clock, store, source = Clock(), MemoryStore(SystemClock()), random.Random(1)
        post, being_replaced = a_post(0), a_post(1, alive=False)
        controller = Controller(
            ClusterLog(store, KEYS, clock, source), clock, Settings(slots=4), "w", lambda version, payload: None
        )
        await controller.start([post.incarnation, being_replaced.incarnation], _no_logs)
        dead, other, unknown = new_log_id(), Assignment(3, 100, new_log_id()), new_log_id()
        first = controller.state.slots[0]
        slots = {
            0: [*first, Assignment(2, 0, dead)] + ([] if is_owner else [other]),
            1: [Assignment(2, 1, unknown)],
        }
        await controller.assign(lambda state: Assign(slots))
        ender = LogEnder(store, KEYS, clock, source, "w")
        looking = asyncio.create_task(bring_home(clock, controller, ender, [post, being_replaced]))
        reader = LogReader(store, KEYS, SystemClock(), source)
        async with asyncio.timeout(20):
            while not (await find_end(reader, dead)).sealed or clock.rounds < 100:
                await clock.woken.wait()
                clock.woken.clear()
        looking.cancel()
        owner = controller.state.slots[0][-1]
        assert owner == (Assignment(3, 0, post.log_id) if is_owner else other)
        # The other post has no worker at the moment: its next log may be in the cluster log already.
        assert not (await find_end(reader, unknown)).sealed
        assert not (await find_end(reader, post.log_id)).sealed
        await controller.close()

    asyncio.run(scenario())


def test_what_is_given_to_an_ended_log_later_comes_home_too() -> None:
    """Goal: a log that was ended while it owned nothing is looked at again when a leader that had not heard gives it
    slots."""

    async def scenario() -> None:
        clock, store, source = Clock(), MemoryStore(SystemClock()), random.Random(1)
        post = a_post(0)
        controller = Controller(
            ClusterLog(store, KEYS, clock, source), clock, Settings(slots=4), "w", lambda version, payload: None
        )
        await controller.start([post.incarnation], _no_logs)
        dead, first = new_log_id(), controller.state.slots[0]
        given_on = {0: [*first, Assignment(2, 0, dead), Assignment(3, 100, new_log_id())]}
        await controller.assign(lambda state: Assign(given_on))
        looking = asyncio.create_task(bring_home(clock, controller, LogEnder(store, KEYS, clock, source, "w"), [post]))
        reader = LogReader(store, KEYS, SystemClock(), source)
        async with asyncio.timeout(20):
            while not (await find_end(reader, dead)).sealed or clock.rounds < 100:
                await clock.woken.wait()
                clock.woken.clear()
            await controller.assign(lambda state: Assign({1: [*state.slots[1], Assignment(2, 0, dead)]}))
            while controller.state.slots[1][-1].log_id == dead:
                await clock.woken.wait()
                clock.woken.clear()
        looking.cancel()
        assert controller.state.slots[1][-1] == Assignment(3, 0, post.log_id)
        await controller.close()

    asyncio.run(scenario())


async def _no_logs(log_id: str) -> Any:
    raise AssertionError("the bucket was empty")
