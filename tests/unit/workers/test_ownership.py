"""Goal: what is served agrees with the cluster log at every moment, and every object is counted as long as something
refers to it, whatever comes and goes while flushes are on their way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.coordination.cluster import CreateTopic, DeleteTopic, Topic
from kafscale.coordination.topic_configs import effective
from kafscale.errors import Invalid
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.workers.whole_worker import (
    WholeWorker,
    batch_of,
    fetch_request,
    first_state,
    id_of,
    produce_request,
    run,
)
from tests.unit.workers.worker_life import NAMES, STEP, Life


def served(node: WholeWorker) -> dict[Any, Any]:
    """What looking up gives, by name and by id."""
    ownership = node.worker.ownership
    places = [(key, index) for name in NAMES for key in (name, node.state.topics.get(name)) for index in range(8)]
    return {
        (key if isinstance(key, str) else key.topic_id, index): (found, found.config)
        for key, index in places
        if key is not None
        and (found := ownership.partition(key if isinstance(key, str) else key.topic_id, index)) is not None
    }


@settings(max_examples=40)
@given(steps=st.lists(STEP, max_size=40), seed=st.integers(0, 1 << 30))
def test_what_is_served_follows_the_cluster(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Topics created, deleted, created anew, grown and configured while batches, log starts, compaction and checkpoints
    are on their way. The generation rises with every change of what is served; references agree with the extents."""

    async def main() -> None:
        life = Life(seed, put_seconds=0.03)
        await life.start()
        node = life.node
        ownership = node.worker.ownership
        for step in steps:
            before, generation = served(node), ownership.generation
            await life.step(*step)
            after = served(node)
            if after.keys() != before.keys() or any(after[key] != before[key] for key in after):
                assert ownership.generation > generation
            expected = {
                (key, index)
                for topic in node.state.topics.values()
                for key in (topic.name, topic.topic_id)
                for index in range(0, topic.partitions, 2)
            }
            assert set(after) == expected
            for (key, index), (partition, config) in after.items():
                topic = node.state.topics[partition.topic]
                assert key in (topic.name, topic.topic_id) and partition.topic_id == topic.topic_id
                assert config == effective(topic.configs, node.settings) and partition.index == index
                assert partition in ownership.slots[partition.slot].partitions.values()
            assert len(ownership) == len(expected) // 2
        await node.clock.sleep(1)
        await life.check()
        node.stop()

    run(main())


@pytest.mark.parametrize("is_recreated", [False, True])
def test_a_topic_that_is_deleted_while_its_log_start_rises(is_recreated: bool) -> None:
    """What both let go of is let go of once: the object is another topic's too, and that one's records stay."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        node.create("u", 4)
        data = [("t", 0, batch_of(b"gone")), ("u", 0, batch_of(b"stays"))]
        await node.call(ApiKey.PRODUCE, 9, produce_request(*data))
        key = node.partition("u").extents[0].key
        assert node.partition("t").extents[0].key == key
        node.store.gate.clear()
        deleting = asyncio.ensure_future(node.worker.ownership.delete_records(node.partition("t"), -1))
        await node.clock.sleep(0.1)
        node.delete("t")
        if is_recreated:
            node.create("t", 6)
        node.store.gate.set()
        await deleting
        assert node.worker.ownership.references._counts == {key: 1}
        for number in range(3):
            node.create(f"v{number}", 8 + 2 * number)
            await node.produce("u", batch_of())
            await node.checkpoint()
        assert key in node.store.bodies() and not node.stopped

    run(main())


def test_a_topic_that_is_deleted_while_its_flush_is_on_its_way() -> None:
    """The object holds another topic's records too, and is not given up."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        node.create("u", 4)
        node.store.gate.clear()
        client = node.connect()
        data = [("t", 0, batch_of(b"gone")), ("u", 0, batch_of(b"stays"))]
        node.send(client, ApiKey.PRODUCE, 9, produce_request(*data))
        await node.clock.sleep(0.1)
        node.delete("t")
        node.store.gate.set()
        await client.answer(ApiKey.PRODUCE, 9)
        references = node.worker.ownership.references
        assert references._counts == {node.partition("u").extents[0].key: 1} and not references.unreferenced

    run(main())


def test_a_topic_that_is_deleted_while_a_pack_takes_its_place() -> None:
    """Compaction puts one partition after the other into place; that the first is gone again does not lose the rest."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        node.create("u", 4)
        for _ in range(3):
            data = [("t", 0, batch_of(b"gone")), ("u", 0, batch_of(b"stays"))]
            await node.call(ApiKey.PRODUCE, 9, produce_request(*data))
        compactor = node.worker.compactor
        spend = compactor._pace.spend
        first = node.partition("t")

        async def spend_and_delete(work: int) -> None:
            if "t" in node.state.topics and "/pack/" in first.extents[0].key:
                node.delete("t")
            await spend(work)

        compactor._pace.spend = spend_and_delete  # type: ignore[method-assign]
        await node.clock.sleep(40)
        pack = node.partition("u").extents[0].key
        assert "t" not in node.state.topics and "/pack/" in pack
        references = node.worker.ownership.references
        assert references._counts == {pack: 1} and pack not in references.unreferenced

    run(main())


def test_deleting_records() -> None:
    """To an offset or to the high watermark, durably; never past it, never back."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", *[batch_of(b"v") for _ in range(5)])
        partition, ownership = node.partition("t"), node.worker.ownership
        for before in (6, -2):
            with pytest.raises(Invalid) as raised:
                await ownership.delete_records(partition, before)
            assert raised.value.code == ErrorCode.OFFSET_OUT_OF_RANGE
        for before, expected in ((2, 2), (1, 2), (2, 2), (4, 4), (-1, 5), (-1, 5)):
            counted = node.worker.log.counted
            is_new = expected > partition.log_start_offset
            assert await ownership.delete_records(partition, before) == partition.log_start_offset == expected
            assert node.worker.log.counted == counted + is_new
        assert not partition.extents and not len(ownership.references)

    run(main())


def test_nothing_is_served_before_a_checkpoint_names_it() -> None:
    """While the first checkpoint is on its way nothing is served; what is decided meanwhile is followed."""

    async def main() -> None:
        state = first_state()
        old = Topic("old", id_of(2), 1)
        state.topics.update({"old": old, "twice": Topic("twice", id_of(4), 1)})
        node = WholeWorker(state=state)
        node.store.gate.clear()
        starting = asyncio.ensure_future(node.worker.start())
        await node.clock.sleep(0.1)
        ownership = node.worker.ownership
        assert ownership.partition("old", 0) is None and not len(ownership) and not ownership.wanted()
        answer = await node.call(ApiKey.FETCH, 12, fetch_request(("old", 0, 0)))
        assert answer.responses[0].partitions[0].error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        node.delete("old")
        node.delete("twice")
        node.create("twice", 6, 3)
        node.create("new", 8)
        node.grow("new", 3)
        node.configure("new", max_message_bytes="99")
        assert not node.sent
        node.store.gate.set()
        await starting
        assert ownership.partition("old", 0) is None
        assert {(p.topic, p.topic_id, p.index) for p in ownership.partitions()} == {
            *(("twice", id_of(6), 0), ("twice", id_of(6), 2), ("new", id_of(8), 0), ("new", id_of(8), 2)),
        }
        assert node.partition("new").config.max_message_bytes == 99
        assert await node.produce("twice", batch_of()) == [0]

    run(main())


def test_a_slot_that_cannot_be_loaded_is_never_taken_for_empty() -> None:
    """The earlier log has no checkpoint that names it: it is not served, and no checkpoint names it."""

    async def main() -> None:
        before = WholeWorker(log_number=1)
        life = Life(0)
        life.node = before
        life.store = before.store
        await life.take_over("never wrote anything")
        node = life.node
        assert set(node.worker.ownership.failed) == {0, 2} and not node.worker.ownership.slots
        node.create("t", 2)
        answer = await node.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        assert answer.responses[0].partition_responses[0].error_code == ErrorCode.KAFKA_STORAGE_ERROR
        await node.checkpoint()
        assert node.worker.log.counted == 1 and not node.worker.ownership.slots and not node.stopped
        node.stop()

    run(main())


def test_changes_of_other_topics_leave_partitions_alone() -> None:
    """A partition is the same object from its first to its last moment, with what was appended."""

    async def main() -> None:
        node = await WholeWorker(Settings(cluster_namespace="ns")).start()
        node.create("t", 2)
        partition = node.partition("t")
        await node.produce("t", batch_of())
        node.decide(
            CreateTopic(Topic("u", id_of(4), 1)), DeleteTopic("u", id_of(4)), CreateTopic(Topic("u", id_of(6), 1))
        )
        node.grow("t", 5)
        node.configure("t", retention_ms="5")
        assert node.partition("t") is partition and partition.config.retention_ms == 5
        assert node.worker.ownership.partition(id_of(2), 0) is partition
        assert node.worker.ownership.partition(id_of(4), 0) is None
        assert node.partition("t", 4).high_watermark == 0

    run(main())
