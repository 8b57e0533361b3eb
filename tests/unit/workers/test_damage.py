"""Goal: where an object that a slot's load needs is missing or damaged, that slot alone is not served, and clients are
told so; nothing is served as empty, nothing is forgotten or deleted meanwhile; and once the object is back everything
is there.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

from kafscale.coordination.assignment import Incarnation, replace
from kafscale.coordination.cluster import OFFSETS_TOPIC, Assign, Assignment, Version, apply
from kafscale.metrics import SLOTS_FAILED
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kafscale.storage.keys import Keys
from kafscale.storage.store import Purpose
from kafscale.storage.sweep import LogsInUse, sweep
from supervisor.sealing import LogEnder
from tests.unit.storage.rig import content, log_id
from tests.unit.workers.whole_worker import (
    ELSEWHERE,
    HERE,
    HeldStore,
    WholeWorker,
    batch_of,
    fetch_request,
    produce_request,
    run,
)
from workers.groups import java_hash

KEYS = Keys("ns")
# Longer than a failed slot waits to be tried again.
AGAIN = 35.0


class Damage:
    """What is wrong with an object, and how it is mended."""

    def __init__(self, store: HeldStore, key: str, position: int | None) -> None:
        """Missing, or with a flipped bit at `position`."""
        self._store = store
        self._key = key
        self._body = store.bodies()[key]
        self._position = position

    async def do(self) -> None:
        if self._position is None:
            await self._store.inner.delete([self._key], Purpose.SWEEP)
        else:
            await self._store.damage(self._key, self._position)

    async def mend(self) -> None:
        await self._store.inner.delete([self._key], Purpose.SWEEP)
        await self._store.inner.put_if_absent(self._key, [self._body], Purpose.FLUSH)


async def started() -> WholeWorker:
    """Serves `t`, in slot 2, and `u`, in slot 0, both with something in their manifests."""
    node = await WholeWorker().start()
    node.create("t", 2)
    node.create("u", 4)
    for topic in ("t", "u"):
        await node.produce(topic, batch_of(b"in a manifest"))
        await node.checkpoint()
    return node


async def successor(old: WholeWorker, number: int) -> WholeWorker:
    """The next life of the worker, as its supervisor would have it."""
    return await (await unstarted_successor(old, number)).start()


async def unstarted_successor(old: WholeWorker, number: int) -> WholeWorker:
    if not old.worker.is_stopped:
        old.stop()
    ender = LogEnder(old.store, KEYS, old.clock, random.Random(number), "supervisor")
    ended = await ender.end_or_leave(old.log_id, "it died")
    change = replace(old.state, Incarnation(HERE, log_id(number)), ended)
    assert change is not None
    state = apply(old.state, Version(old.state.version + 1, "supervisor", 0, [change]))
    return WholeWorker(old.settings, old.store, log_number=number, state=state)


def manifest_of(node: WholeWorker, topic: str) -> Any:
    return node.worker.ownership.slots[node.partition(topic).slot].place


async def codes(node: WholeWorker, topic: str) -> tuple[int, int, int]:
    """What Produce, Fetch and ListOffsets say."""
    produced = await node.call(ApiKey.PRODUCE, 9, produce_request((topic, 0, batch_of(b"new"))))
    fetched = await node.call(ApiKey.FETCH, 12, fetch_request((topic, 0, 0)))
    partition = ListOffsetsPartition(partition_index=0, timestamp=-1)
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=[partition])])
    listed = await node.call(ApiKey.LIST_OFFSETS, 6, request)
    return (
        produced.responses[0].partition_responses[0].error_code,
        fetched.responses[0].partitions[0].error_code,
        listed.topics[0].partitions[0].error_code,
    )


async def failed(node: WholeWorker, *topics: str) -> None:
    """These topics are not served for damage, and the worker lives."""
    for topic in topics:
        assert await codes(node, topic) == (ErrorCode.KAFKA_STORAGE_ERROR,) * 3
    assert not node.stopped
    await node.clock.sleep(1.5)
    assert node.metrics.cells[SLOTS_FAILED] == len(topics) == len(node.worker.ownership.failed)


async def serves(node: WholeWorker, topic: str, *values: bytes) -> None:
    """All of these, one a batch, and takes more."""
    partition = node.partition(topic)
    found = await content(node.store, partition)
    assert found.count(b"in a manifest") == values.count(b"in a manifest")
    assert all(value in found for value in values) and partition.high_watermark == len(values)
    assert await node.produce(topic, batch_of(b"more")) == [len(values)]


async def nothing_is_swept(node: WholeWorker) -> None:
    """The sweep, at any age of the objects, deletes nothing."""
    state = node.state

    async def in_use() -> LogsInUse:
        return LogsInUse(
            live=[node.log_id],
            listed={entry.log_id for entries in state.slots for entry in entries},
            owners={slot: (entries[-1].epoch, entries[-1].log_id) for slot, entries in enumerate(state.slots)},
        )

    before = set(node.store.bodies())
    result = await sweep(node.store, KEYS, node.clock, random.Random(1), in_use, grace_ms=0)
    assert result.deleted == 0 and before <= set(node.store.bodies())


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("position", [None, 30])
def test_a_damaged_manifest(position: int | None, restarts: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its slot alone is not served, life after life, and is there with all of its records once the object is back; at
    the next try, or at the next start."""

    async def main() -> None:
        node = await started()
        place = manifest_of(node, "t")
        assert place.key != manifest_of(node, "u").key
        await node.produce("t", batch_of(b"in the log"))
        await node.produce("u", batch_of(b"in the log"))
        damage = Damage(node.store, place.key, position)
        node.stop()
        await damage.do()
        for number in (2, 3):
            node = await successor(node, number)
            await failed(node, "t")
            await serves(node, "u", b"in a manifest", b"in the log", *[b"more"] * (number - 2))
            await node.checkpoint()
            await node.clock.sleep(3 * AGAIN)
            await failed(node, "t")
            await nothing_is_swept(node)
        lines = [record for record in caplog.records if "can't be loaded" in record.getMessage()]
        assert len(lines) == 2, "it is said once a life"
        for line in lines:
            assert place.key in line.cause and (line.slot, line.partitions) == (2, ["t-0"])
        await damage.mend()
        if restarts:
            node = await successor(node, 4)
        else:
            await node.clock.sleep(AGAIN)
        await serves(node, "t", b"in a manifest", b"in the log")
        await node.clock.sleep(1.5)
        assert node.metrics.cells[SLOTS_FAILED] == 0
        node = await successor(node, 5)
        assert node.partition("t").high_watermark == 3
        node.stop()

    with caplog.at_level(logging.ERROR):
        run(main())


@pytest.mark.parametrize("is_written_down", [False, True])
@pytest.mark.parametrize("position", [None, 5, -20])
def test_a_damaged_object_of_a_log(position: int | None, is_written_down: bool) -> None:
    """Between its last checkpoint and its end: who was in it can't be told, so all slots that need the log are not
    served; others are. The log is given no other end. What was written down when the log ended is enough to load."""

    async def main() -> None:
        node = await started()
        for _ in range(3):
            await node.produce("t", batch_of(b"in the log"))
            await node.produce("u", batch_of(b"in the log"))
        numbers = range(node.worker.log.checkpoint_sequence + 1, node.worker.log.counted)
        key = KEYS.log(node.log_id, numbers[2])
        size = len(node.store.bodies()[key])
        damage = Damage(node.store, key, position if position is None else position % size)
        # Slot 1 comes from another broker's log.
        given = Assignment(node.state.slots[1][-1].epoch + 1, HERE, log_id(2))
        node.stop()
        ender = LogEnder(node.store, KEYS, node.clock, random.Random(1), "supervisor")
        await ender.end_log(node.log_id, "it died")
        await ender.end_log(log_id(99), "it left")
        if not is_written_down:
            await node.store.inner.delete([KEYS.ended(node.log_id)], Purpose.SWEEP)
        await damage.do()
        before = set(node.store.bodies())
        old = node
        old.decide(Assign({1: [Assignment(1, ELSEWHERE, log_id(99)), given]}))
        node = await successor(old, 2)
        node.create("v", 1)
        await serves(node, "v")
        if is_written_down:
            assert node.partition("t").high_watermark == node.partition("u").high_watermark == 4
            node.stop()
            return
        await failed(node, "t", "u")
        await node.checkpoint()
        await node.clock.sleep(3 * AGAIN)
        await failed(node, "t", "u")
        old_log = KEYS.log_objects(old.log_id)
        assert {name for name in node.store.bodies() if name.startswith(old_log)} == {
            name for name in before if name.startswith(old_log)
        }
        await nothing_is_swept(node)
        node = await successor(node, 3)
        await failed(node, "t", "u")
        await serves(node, "v", b"more")
        await damage.mend()
        await node.clock.sleep(AGAIN)
        for topic in ("t", "u"):
            await serves(node, topic, b"in a manifest", *[b"in the log"] * 3)
        node.stop()

    run(main())


def test_a_slot_that_a_living_owner_releases() -> None:
    """Its new owner fails it alone, and releases it without having loaded it; whoever gets it next has all of it."""

    async def main() -> None:
        old = await started()
        new = await WholeWorker(store=old.store, log_number=2, state=old.state, node_id=ELSEWHERE).start()

        def give(to: WholeWorker) -> None:
            entries = old.state.slots[2]
            change = Assign({2: [*entries, Assignment(entries[-1].epoch + 1, to.worker.node_id, to.log_id)]})
            for node in (old, new):
                node.decide(change)

        damage = Damage(old.store, manifest_of(old, "t").key, None)
        await damage.do()
        give(new)
        await new.clock.sleep(5)
        assert await codes(new, "t") == (ErrorCode.KAFKA_STORAGE_ERROR,) * 3
        await serves(old, "u", b"in a manifest")
        for _ in range(3):
            # Whatever the old owner does meanwhile, it goes on naming what the slot needs.
            await old.produce("u", batch_of(b"more"))
            await old.checkpoint()
            await nothing_is_swept(old)
        give(old)
        await new.clock.sleep(5)
        assert new.worker.ownership.failed == {} and new.worker.ownership.released[2].place is None
        assert await codes(old, "t") == (ErrorCode.KAFKA_STORAGE_ERROR,) * 3
        assert (await codes(new, "t"))[0] == ErrorCode.NOT_LEADER_OR_FOLLOWER
        give(new)
        await damage.mend()
        await new.clock.sleep(5 + AGAIN)
        await serves(new, "t", b"in a manifest")
        old.stop()
        new.stop()

    run(main())


def test_a_slot_that_fails_while_it_is_given_away_is_released() -> None:
    """Though the worker goes on waiting for another slot: nobody waits for a slot that was never loaded."""

    async def main() -> None:
        old = await started()
        new = await WholeWorker(store=old.store, log_number=2, state=old.state, node_id=ELSEWHERE).start()
        key = manifest_of(old, "t").key
        await Damage(old.store, key, None).do()
        silent = [Assignment(1, ELSEWHERE, log_id(77)), Assignment(9, ELSEWHERE, new.log_id)]
        entries = [*old.state.slots[2], Assignment(10, ELSEWHERE, new.log_id)]
        old.store.read_seconds = 0.2
        for node in (old, new):
            node.decide(Assign({2: entries, 3: silent}))
        await old.store.wait_for("get_range", key)
        for node in (old, new):
            node.decide(Assign({2: [*entries, Assignment(11, HERE, old.log_id)]}))
        await new.clock.sleep(3)
        assert new.worker.ownership.released[2].epoch == 10 and not new.stopped
        old.stop()
        new.stop()

    run(main())


def test_groups_of_a_failed_slot() -> None:
    """Damaged records of a partition of `__consumer_offsets`: its groups' coordinator is not available, others' is."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create(OFFSETS_TOPIC, 2, partitions=4)
        groups = {java_hash(name) % 4: name for name in map(str, range(20))}

        async def commit(node: WholeWorker, index: int) -> int:
            partition = OffsetCommitRequestPartition(partition_index=0, committed_offset=5)
            topics = [OffsetCommitRequestTopic(name=OFFSETS_TOPIC, partitions=[partition])]
            request = OffsetCommitRequest(group_id=groups[index], topics=topics)
            answer = await node.call(ApiKey.OFFSET_COMMIT, 5, request)
            return answer.topics[0].partitions[0].error_code

        for index in (0, 2):
            assert await commit(node, index) == 0
        extent = node.partition(OFFSETS_TOPIC, 2).extents[-1]
        damage = Damage(node.store, extent.key, extent.position + extent.length - 3)
        await damage.do()
        node = await successor(node, 2)
        assert await commit(node, 2) == ErrorCode.COORDINATOR_NOT_AVAILABLE
        assert await commit(node, 0) == 0
        await damage.mend()
        await node.clock.sleep(AGAIN)
        assert await commit(node, 2) == 0
        assert node.partition(OFFSETS_TOPIC, 2).high_watermark == 2
        node.stop()

    run(main())


def test_who_waits_for_a_slot_hears_that_it_is_damaged() -> None:
    async def main() -> None:
        old = await started()
        place = manifest_of(old, "t")
        node = await unstarted_successor(old, 2)
        await Damage(old.store, place.key, None).do()
        node.let_in()
        client = node.connect()
        node.send(client, ApiKey.FETCH, 12, fetch_request(("t", 0, 0), max_wait_ms=600_000))
        await node.clock.sleep(1)
        assert not client.has_answers
        await node.start()
        (found,) = (await client.answer(ApiKey.FETCH, 12)).responses[0].partitions
        assert found.error_code == ErrorCode.KAFKA_STORAGE_ERROR
        assert node.clock.monotonic() < 60 and not node.worker.ownership.waiters
        node.stop()

    run(main())
