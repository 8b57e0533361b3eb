"""Goal: the cluster log has one history whoever writes it; decisions are durable, then published, then answered."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.coordination.assignment import EndedLog, Incarnation
from kafscale.coordination.cluster import (
    OFFSETS_TOPIC,
    Assign,
    Assignment,
    ClusterState,
    Version,
    apply,
    decode_version,
    encode_version,
)
from kafscale.coordination.commands import CreateTopic, DeleteTopic, Draft
from kafscale.errors import Corrupt, Retry, StartError, StoreUnavailable
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import Purpose
from supervisor import controller as controller_module
from supervisor.controller import SNAPSHOT_INTERVAL_VERSIONS, Controller, new_topic_id
from tests.unit.storage.rig import QuickClock

SETTINGS = Settings(slots=8, auto_create_partitions=2)
WORKERS = [Incarnation(0, "log-a"), Incarnation(1, "log-b")]


class Store(MemoryStore):
    """A store that may be down."""

    down = False

    def __init__(self) -> None:
        super().__init__(SystemClock())

    async def put_if_absent(self, key, parts, purpose) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("down")
        await super().put_if_absent(key, parts, purpose)


class Broker:
    """A controller, and a worker that follows what it publishes."""

    def __init__(self, store: MemoryStore, name: str = "w", workers: list[Incarnation] = WORKERS) -> None:
        clock = QuickClock()
        self.store = store
        self.workers = workers
        self.ended: list[str] = []
        self.follower: ClusterState | None = None
        log = ClusterLog(store, Keys("ns"), clock, random.Random(name))
        self.controller = Controller(log, clock, SETTINGS, name, self.on_version)

    def on_version(self, version: int, payload: bytes) -> None:
        if self.follower is not None:
            assert version == self.follower.version + 1
            self.follower = apply(self.follower, decode_version(payload))
            assert self.follower == self.controller.state

    async def end_log(self, log_id: str) -> EndedLog:
        self.ended.append(log_id)
        return EndedLog(log_id, False, {})

    async def __aenter__(self) -> Controller:
        await self.controller.start(self.workers, self.end_log)
        self.follower = self.controller.state
        return self.controller

    async def __aexit__(self, *_: object) -> None:
        await self.controller.close()


def run(scenario) -> None:
    asyncio.run(scenario())


def versions(store: MemoryStore) -> int:
    return len(asyncio.run(store.list("ns/cluster/", Purpose.CLUSTER)))


def test_the_first_start_writes_one_version_with_everything() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            state = controller.state
            assert state.version == 1 and len(state.cluster_id) == 22
            assert state.topics[OFFSETS_TOPIC].partitions == SETTINGS.offsets_topic_partitions
            assert [entries[-1].log_id for entries in state.slots] == ["log-a", "log-b"] * 4

    run(scenario)
    assert versions(store) == 1


def test_a_restart_ends_the_old_logs_and_keeps_the_rest() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            first = controller.state
            await controller.submit([CreateTopic(name="t")])
        again = Broker(store, workers=[Incarnation(0, "log-c"), Incarnation(1, "log-d")])
        async with again as controller:
            state = controller.state
        assert sorted(again.ended) == ["log-a", "log-b"]
        assert (state.version, state.cluster_id) == (3, first.cluster_id)
        assert "t" in state.topics and state.topics[OFFSETS_TOPIC] == first.topics[OFFSETS_TOPIC]
        assert [entries[-1].log_id for entries in state.slots] == ["log-c", "log-d"] * 4
        assert {entries[-1].epoch for entries in state.slots} == {2}

    run(scenario)


def test_a_restart_ends_logs_that_others_wait_for() -> None:
    """An earlier life gave its slot to another broker and died before it released it: nobody else ends that log, since
    this broker is alive."""
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            given = {
                slot: [*controller.state.slots[slot], Assignment(2, 100, "log-x")]
                for slot in range(8)
                if controller.state.slots[slot][-1].log_id == "log-a"
            }
            await controller.assign(lambda state: Assign(given))
        again = Broker(store, workers=[Incarnation(0, "log-c"), Incarnation(1, "log-d")])
        await again.controller.start(again.workers, again.end_log, 0)
        assert sorted(again.ended) == ["log-a", "log-b"]
        owners = [entries[-1].log_id for entries in again.controller.state.slots]
        assert owners.count("log-x") == 4 and "log-a" not in owners and "log-b" not in owners
        await again.controller.close()

    run(scenario)


def test_results_come_with_the_version_that_holds_them() -> None:
    async def scenario() -> None:
        async with Broker(Store()) as controller:
            version, (result,) = await controller.submit([CreateTopic(name="t")])
            assert version == 2 and result.topic == controller.state.topics["t"] and result.topic.partitions == 2
            assert (await controller.submit([DeleteTopic(name="none")]))[0] == 0
            assert (await controller.submit([CreateTopic(name="u", validate_only=True)]))[0] == 0
            assert controller.state.version == 2

    run(scenario)


def test_requests_that_come_together_share_a_version_and_see_each_other() -> None:
    async def scenario() -> None:
        async with Broker(Store()) as controller:
            outcomes = await asyncio.gather(*(controller.submit([CreateTopic(name="t")]) for _ in range(20)))
            assert controller.state.version == 2
            codes = [result.error_code for _, (result,) in outcomes]
            assert codes == [0] + [36] * 19

    run(scenario)


@settings(max_examples=25)
@given(st.integers(2, 4), st.integers(1, 6))
def test_rival_controllers_write_one_history(rivals, requests) -> None:
    """Every topic is created exactly once; every rival ends at the same state; no result is told that isn't in it."""

    async def scenario() -> None:
        store = Store()
        brokers = [Broker(store, f"w{n}", [Incarnation(0, "log-a")]) for n in range(rivals)]
        controllers = [await broker.__aenter__() for broker in brokers]
        outcomes = await asyncio.gather(
            *(c.submit([CreateTopic(name=f"t{n}")]) for n in range(requests) for c in controllers)
        )
        for controller in controllers:
            await controller.submit([CreateTopic(name="last", validate_only=True), DeleteTopic(name="t0")])
        created = [result.topic.name for _, (result,) in outcomes if result.error_code == 0]
        assert sorted(created) == [f"t{n}" for n in range(requests)]
        # The last to write has caught up with all others.
        newest = max((c.state for c in controllers), key=lambda state: state.version)
        assert set(newest.topics) == {OFFSETS_TOPIC} | {f"t{n}" for n in range(1, requests)}
        for broker in brokers:
            await broker.__aexit__()

    run(scenario)


def test_two_that_found_a_cluster_at_once_agree_on_one() -> None:
    async def scenario() -> None:
        store = Store()
        brokers = [Broker(store, f"w{n}", [Incarnation(0, f"log-{n}")]) for n in range(2)]
        controllers = await asyncio.gather(*(broker.__aenter__() for broker in brokers))
        assert controllers[0].state.cluster_id == controllers[1].state.cluster_id
        for broker in brokers:
            await broker.__aexit__()

    run(scenario)


def test_a_worker_is_replaced_only_where_it_still_owns() -> None:
    async def scenario() -> None:
        async with Broker(Store()) as controller:
            await controller.replace(EndedLog("log-a", True, {}), Incarnation(0, "log-c"))
            assert [entries[-1].log_id for entries in controller.state.slots] == ["log-c", "log-b"] * 4
            version = controller.state.version
            await controller.replace(EndedLog("log-a", True, {}), Incarnation(0, "log-x"))
            assert controller.state.version == version

    run(scenario)


def test_a_start_reads_a_bounded_part_of_a_long_history() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            for n in range(SNAPSHOT_INTERVAL_VERSIONS * 2 + 5):
                await controller.submit([CreateTopic(name="t") if n % 2 == 0 else DeleteTopic(name="t")])
            before = controller.state
        # What the newest snapshot holds is not read again: so it doesn't matter that this is damaged.
        await store.delete([Keys("ns").cluster(3)], Purpose.CLUSTER)
        await store.put_if_absent(Keys("ns").cluster(3), [b"damaged"], Purpose.CLUSTER)
        async with Broker(store, workers=[Incarnation(0, "log-c")]) as controller:
            assert controller.state.topics == before.topics
            assert controller.state.version == before.version + 1

    run(scenario)


def test_a_damaged_version_stops_the_start() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            await controller.submit([CreateTopic(name="t")])
        await store.delete([Keys("ns").cluster(2)], Purpose.CLUSTER)
        await store.put_if_absent(Keys("ns").cluster(2), [b"damaged"], Purpose.CLUSTER)
        with pytest.raises(Corrupt):
            async with Broker(store):
                pass

    run(scenario)


def test_a_newer_format_stops_the_start_and_writes_nothing() -> None:
    store = Store()

    async def scenario() -> None:
        state = ClusterState(version=1, cluster_id="c", slot_count=8, format_version=2, slots=[[]] * 8)
        log = ClusterLog(store, Keys("ns"), QuickClock(), random.Random(1))
        await log.append(1, encode_version(Version(1, "w", 0, [], state)))
        with pytest.raises(StartError, match="newer"):
            async with Broker(store):
                pass

    run(scenario)
    assert versions(store) == 1


def test_a_store_that_is_down_fails_changes_and_recovers() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            store.down = True
            with pytest.raises(StoreUnavailable):
                await controller.submit([CreateTopic(name="t")])
            assert "t" not in controller.state.topics
            store.down = False
            assert (await controller.submit([CreateTopic(name="t")]))[1][0].error_code == 0

    run(scenario)


def test_what_waits_at_the_end_is_told_to_retry() -> None:
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            waiting = [asyncio.ensure_future(controller.submit([CreateTopic(name=f"t{n}")])) for n in range(3)]
            await asyncio.sleep(0)
            await controller.close()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, Retry) for outcome in outcomes)
            with pytest.raises(Retry):
                await controller.submit([CreateTopic(name="late")])

    run(scenario)


def test_ids_suit_kafkas_command_line_tools() -> None:
    """None begins with '-' when written as base64."""
    assert all(new_topic_id()[0] >> 2 != 62 for _ in range(2000))


def test_a_big_catalogue_is_indexed_once(monkeypatch) -> None:
    """A command's cost must not grow with the number of topics; only a lost race or a failure makes the index anew."""
    built: list[ClusterState] = []

    class CountedDraft(Draft):
        def __init__(self, state: ClusterState) -> None:
            built.append(state)
            super().__init__(state)

    monkeypatch.setattr(controller_module, "Draft", CountedDraft)
    store = Store()

    async def scenario() -> None:
        async with Broker(store) as controller:
            for n in range(20):
                await controller.submit([CreateTopic(name=f"t{n}")])
            assert len(built) == 1
            store.down = True
            with pytest.raises(StoreUnavailable):
                await controller.submit([CreateTopic(name="unwritten")])
            store.down = False
            (result,) = (await controller.submit([CreateTopic(name="unwritten")]))[1]
            assert result.error_code == 0 and len(built) == 2

    run(scenario)


def test_a_defect_in_one_change_does_not_fail_those_beside_it(monkeypatch) -> None:
    """Nor does half of it come to be written."""

    def decide_all(draft, commands, *others):
        changes, results = real(draft, commands, *others)
        if commands[0].name == "bad":
            raise RuntimeError("a defect")
        return changes, results

    real = controller_module.decide_all
    monkeypatch.setattr(controller_module, "decide_all", decide_all)

    async def scenario() -> None:
        async with Broker(Store()) as controller:
            names = ["a", "bad", "b"]
            outcomes = await asyncio.gather(
                *(controller.submit([CreateTopic(name=name)]) for name in names), return_exceptions=True
            )
            assert isinstance(outcomes[1], RuntimeError)
            assert [outcomes[n][1][0].error_code for n in (0, 2)] == [0, 0]
            assert set(controller.state.topics) == {OFFSETS_TOPIC, "a", "b"}

    run(scenario)
