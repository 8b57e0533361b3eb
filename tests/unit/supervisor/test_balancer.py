"""Goal: the leader gives every slot to a living worker, evenly; it takes nothing from brokers that only coordination
has lost sight of; and lists are shortened by what was read alone. Over real logs in a store in memory."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.coordination.assignment import NODES_PER_BROKER, Incarnation, unsettled_logs
from kafscale.coordination.cluster import ClusterState
from kafscale.coordination.commands import CreateTopic
from kafscale.coordination.store import Member
from kafscale.errors import Retry
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import Checkpoint, Kind, ManifestPlace, encode_small
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import LogReader
from kafscale.storage.worker_log import WorkerLog
from supervisor.balancer import Balancer, Presence
from supervisor.controller import Controller
from supervisor.post import new_log_id
from supervisor.sealing import LogEnder
from tests.unit.supervisor.hub import Hub, HubCoordination

SETTINGS = Settings(slots=24)
KEYS = Keys("ns")
GRACE_SECONDS = 12.0


class Clock(SystemClock):
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Broker:
    """The parts of a broker's supervisor that decide, and workers that do nothing but write checkpoints."""

    def __init__(self, cluster: Cluster, broker_id: int, workers: int) -> None:
        source = random.Random(broker_id)
        self.cluster = cluster
        self.broker_id = broker_id
        self.incarnations = tuple(
            Incarnation(broker_id * NODES_PER_BROKER + index, new_log_id()) for index in range(workers)
        )
        self.logs = {
            worker.log_id: WorkerLog(cluster.store, KEYS, worker.log_id, cluster.clock, source, lambda reason: None)
            for worker in self.incarnations
        }
        self.coordination = HubCoordination(cluster.hub)
        self.controller = Controller(
            ClusterLog(cluster.store, KEYS, cluster.clock, source),
            cluster.clock,
            SETTINGS,
            f"w{broker_id}",
            lambda version, payload: None,
            lambda: self.coordination.is_available,
        )
        self.ender = LogEnder(cluster.store, KEYS, cluster.clock, source, f"w{broker_id}")
        self.store_watch: Any = SimpleNamespace(is_steady=True)
        self.balancer = Balancer(
            self.coordination,
            self.controller,
            self.ender,
            LogReader(cluster.store, KEYS, cluster.clock, source),
            cluster.clock,
            GRACE_SECONDS,
            self.store_watch,
            broker_id,
        )
        self.coordination.on_change = self.balancer.wake

    async def start(self) -> None:
        await self.controller.start(
            self.incarnations, lambda log_id: self.ender.end_log(log_id, "anew"), self.broker_id
        )
        await self.say()
        await self.coordination.campaign()

    async def say(self, leaving: bool = False, store_silent: bool = False) -> None:
        if store_silent:
            self.store_watch.is_steady = False
        await self.coordination.join(
            Member(self.broker_id, (), self.incarnations, leaving=leaving, store_silent=store_silent)
        )

    async def catch_up(self) -> None:
        self.controller.look()
        await self.controller.assign(lambda state: None)

    async def take_over(self) -> None:
        """Every worker's checkpoint names what it owns."""
        state = await self.controller.newest_state()
        for worker in self.incarnations:
            log = self.logs[worker.log_id]
            places = {
                slot: ManifestPlace(entries[-1].epoch, "", 0, 0)
                for slot, entries in enumerate(state.slots)
                if entries[-1].log_id == worker.log_id
            }
            checkpoint = Checkpoint(covered=log.next_sequence, slots=places)
            await log.append(
                Kind.CHECKPOINT,
                lambda header, checkpoint=checkpoint: encode_small(header, checkpoint),  # type: ignore[misc]
                Purpose.CHECKPOINT,
            )


class Cluster:
    """Brokers that share a store and a hub."""

    def __init__(self) -> None:
        self.store = MemoryStore(SystemClock())
        self.clock = Clock()
        self.hub = Hub()
        self.brokers: dict[int, Broker] = {}

    async def add(self, broker_id: int, workers: int = 2) -> Broker:
        broker = self.brokers[broker_id] = Broker(self, broker_id, workers)
        await broker.start()
        return broker

    async def kill(self, broker_id: int) -> None:
        await self.brokers.pop(broker_id).controller.close()

    async def settle(self) -> ClusterState:
        """Let leader and workers act until nothing changes any more; the state then."""
        version, quiet = -1, 0
        # A log is looked at in the round after it was found to be unsettled.
        while quiet < 3:
            state = await self.newest()
            quiet = quiet + 1 if state.version == version else 0
            version = state.version
            for broker in self.brokers.values():
                await broker.take_over()
                await broker.catch_up()
                self.clock.now += 20.0
                await broker.balancer.step()
        return state

    async def newest(self) -> ClusterState:
        broker = next(iter(self.brokers.values()))
        return await broker.controller.newest_state()


def loads(state: ClusterState) -> dict[int, int]:
    return dict(sorted(Counter(entries[-1].node_id for entries in state.slots).items()))


def run(scenario: Callable[[Cluster], Coroutine[None, None, None]]) -> None:
    async def whole() -> None:
        cluster = Cluster()
        try:
            await scenario(cluster)
        finally:
            for broker in cluster.brokers.values():
                await broker.controller.close()

    asyncio.run(whole())


def test_brokers_that_join_get_their_share() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.add(0)
        assert loads(await cluster.settle()) == {0: 12, 1: 12}
        await cluster.add(1)
        assert loads(await cluster.settle()) == {0: 6, 1: 6, 100: 6, 101: 6}
        await cluster.add(2)
        state = await cluster.settle()
        assert loads(state) == {0: 4, 1: 4, 100: 4, 101: 4, 200: 4, 201: 4}
        assert unsettled_logs(state) == {}

    run(scenario)


def test_a_lost_brokers_slots_are_given_to_the_others_after_its_logs_were_ended() -> None:
    async def scenario(cluster: Cluster) -> None:
        for broker_id in range(3):
            lost = await cluster.add(broker_id)
        before = await cluster.settle()
        await cluster.kill(2)
        cluster.hub.lose(2)
        await cluster.brokers[0].balancer.step()
        state = await cluster.newest()
        assert loads(state) == {0: 6, 1: 6, 100: 6, 101: 6}
        for log in lost.logs.values():
            assert not await log.check_not_fenced()
        stayed = [slot for slot, entries in enumerate(before.slots) if entries[-1].node_id < 200]
        assert all(state.slots[slot] == before.slots[slot] for slot in stayed)
        assert unsettled_logs(await cluster.settle()) == {}

    run(scenario)


def test_a_broker_lost_before_it_released_what_it_gave_away_is_ended_too() -> None:
    """It owns nothing any more, and yet nobody could load its slots before it has ended."""

    async def scenario(cluster: Cluster) -> None:
        leaver = await cluster.add(0)
        await cluster.add(1)
        await cluster.settle()
        await leaver.say(leaving=True)
        await leaver.balancer.step()
        assert loads(await cluster.newest()) == {100: 12, 101: 12}
        await cluster.kill(0)
        cluster.hub.lose(0)
        successor = cluster.brokers[1]
        await successor.catch_up()
        await successor.balancer.step()
        for log in leaver.logs.values():
            assert not await log.check_not_fenced()
        assert unsettled_logs(await cluster.settle()) == {}

    run(scenario)


def test_a_lost_leader_is_followed_by_another() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.add(0)
        await cluster.add(1)
        await cluster.settle()
        await cluster.kill(0)
        cluster.hub.lose(0)
        await cluster.brokers[1].balancer.step()
        assert loads(await cluster.newest()) == {100: 12, 101: 12}

    run(scenario)


def test_a_broker_that_leaves_owns_nothing_in_the_end_and_nothing_is_sealed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.add(0)
        leaver = await cluster.add(1)
        await cluster.settle()
        await leaver.say(leaving=True)
        state = await cluster.settle()
        assert loads(state) == {0: 12, 1: 12}
        assert not {entry.log_id for entries in state.slots for entry in entries} & leaver.logs.keys()
        for log in leaver.logs.values():
            assert await log.check_not_fenced()

    run(scenario)


def test_the_last_broker_keeps_everything_when_it_leaves() -> None:
    async def scenario(cluster: Cluster) -> None:
        alone = await cluster.add(0)
        await cluster.settle()
        await alone.say(leaving=True)
        assert loads(await cluster.settle()) == {0: 12, 1: 12}

    run(scenario)


@pytest.mark.parametrize("cut_off", [0, 1, 2])
def test_a_broker_that_the_store_does_not_answer_alone_is_replaced(cut_off: int) -> None:
    """Leader or not: the others end its logs, share what it owned, and give it its share when it is back."""

    async def scenario(cluster: Cluster) -> None:
        brokers = [await cluster.add(broker_id) for broker_id in range(3)]
        await cluster.settle()
        silent = brokers[cut_off]
        await silent.say(store_silent=True)
        del cluster.brokers[cut_off]  # It does nothing meanwhile, be it the leader or not.
        state = await cluster.settle()
        assert sorted(loads(state).values()) == [6, 6, 6, 6]
        assert not any(node // NODES_PER_BROKER == cut_off for node in loads(state))
        assert unsettled_logs(state) == {}
        for worker in silent.incarnations:
            assert not await silent.logs[worker.log_id].check_not_fenced()
        await silent.controller.close()
        await silent.coordination.close()
        await cluster.add(cut_off)
        assert sorted(loads(await cluster.settle()).values()) == [4] * 6

    run(scenario)


def test_a_store_that_answers_nobody_moves_nothing() -> None:
    """Whoever is not sure of the store itself, or is cut off too, decides nothing; nor while one may have noticed
    sooner than another."""

    async def scenario(cluster: Cluster) -> None:
        brokers = [await cluster.add(broker_id) for broker_id in range(3)]
        before = await cluster.settle()
        for broker in brokers:
            broker.store_watch.is_steady = False
        await brokers[1].say(store_silent=True)
        assert (await cluster.settle()).version == before.version
        for broker in brokers:
            await broker.say(store_silent=True)
        assert (await cluster.settle()).version == before.version

    run(scenario)


def test_an_outage_of_coordination_moves_nothing() -> None:
    """Not while it lasts, nor when it is over and registrations are still to come again."""

    async def scenario(cluster: Cluster) -> None:
        for broker_id in range(3):
            await cluster.add(broker_id)
        before = await cluster.settle()
        cluster.hub.set_up(False)
        cluster.clock.now += 600
        del cluster.hub.members[1], cluster.hub.members[2]
        await cluster.brokers[0].balancer.step()
        cluster.hub.set_up(True)
        cluster.clock.now += GRACE_SECONDS / 2
        await cluster.brokers[0].balancer.step()
        assert (await cluster.newest()).slots == before.slots
        for broker_id in (1, 2):
            await cluster.brokers[broker_id].say()
        assert (await cluster.settle()).slots == before.slots

    run(scenario)


def test_while_coordination_is_down_a_dead_workers_slots_go_to_its_next_life_and_topics_stay_as_they_are() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.add(0)
        broker = await cluster.add(1)
        before = await cluster.settle()
        cluster.hub.set_up(False)
        old = broker.incarnations[0]
        ended = await broker.ender.end_log(old.log_id, "it died")
        await broker.controller.replace(ended, Incarnation(old.node_id, new_log_id()))
        after = await cluster.newest()
        assert loads(after) == loads(before)
        assert not any(entries[-1].log_id == old.log_id for entries in after.slots)
        with pytest.raises(Retry):
            await broker.controller.submit([CreateTopic(name="t")])
        cluster.hub.set_up(True)
        await broker.controller.submit([CreateTopic(name="t")])

    run(scenario)


def test_a_restart_takes_back_only_what_was_its_own() -> None:
    async def scenario(cluster: Cluster) -> None:
        for broker_id in range(2):
            await cluster.add(broker_id)
        before = await cluster.settle()
        await cluster.kill(1)
        again = await cluster.add(1, workers=1)
        state = again.controller.state
        assert loads(state) == {0: 6, 1: 6, 100: 12}
        assert all(a == b for a, b in zip(before.slots, state.slots, strict=True) if a[-1].node_id < 100)
        assert loads(await cluster.settle()) == {0: 8, 1: 8, 100: 8}

    run(scenario)


def test_lists_are_not_shortened_before_the_owner_has_taken_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.add(0)
        await cluster.settle()
        await cluster.add(1)
        leader = cluster.brokers[0].balancer
        await leader.step()
        moving = await cluster.newest()
        assert sum(len(entries) == 2 for entries in moving.slots) == 12
        for _ in range(5):
            cluster.clock.now += 20
            await leader.step()
        assert (await cluster.newest()).slots == moving.slots
        await cluster.brokers[1].take_over()
        cluster.clock.now += 20
        await leader.step()
        assert all(len(entries) == 1 for entries in (await cluster.newest()).slots)

    run(scenario)


def test_two_that_believe_to_lead_do_no_harm() -> None:
    async def scenario(cluster: Cluster) -> None:
        for broker_id in range(3):
            await cluster.add(broker_id)
        brokers = list(cluster.brokers.values())
        for broker in brokers:
            broker.coordination.__class__ = _Leading
        for _ in range(6):
            cluster.clock.now += 20
            for broker in brokers:
                await broker.take_over()
            await asyncio.gather(*(broker.balancer.step() for broker in brokers))
        state = await cluster.newest()
        assert set(loads(state).values()) == {4} and unsettled_logs(state) == {}

    run(scenario)


class _Leading(HubCoordination):
    is_leader = True  # type: ignore[assignment]


def test_lost_at_once_where_coordination_was_seen_and_later_where_it_was_not() -> None:
    presence = Presence(10.0)
    assert presence.lost(0.0, {1}, {}) == set()
    presence.observe(0.0, True)
    assert presence.lost(9.9, {1, 2}, {1}) == set()
    assert presence.lost(10.0, {1, 2}, {1}) == {2}
    presence.observe(20.0, False)
    assert presence.lost(30.0, {1, 2}, {1}) == set()
    presence.observe(31.0, True)
    presence.observe(35.0, True)
    assert presence.lost(40.9, {1, 2}, {1}) == set()
    assert presence.lost(41.0, {1, 2}, {1}) == {2}
