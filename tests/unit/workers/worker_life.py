"""The life of a worker and its successors over one store, beside a plain model of what they were given to keep."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.coordination.cluster import Assignment
from kafscale.protocol.batches import read_header
from kafscale.storage.partition import PartitionLog
from kafscale.storage.takeover import seal_log
from tests.unit.storage.rig import content, log_id
from tests.unit.workers.whole_worker import EPOCH, HERE, HeldStore, WholeWorker, batch_of

NAMES = ("a", "b", "c")
QUICK = Settings(
    cluster_namespace="ns",
    checkpoint_interval_objects=5,
    checkpoint_interval_ms=400,
    log_retention_check_interval_ms=500,
    offsets_topic_partitions=2,
)

STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("append"), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("append"), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("start"), st.integers(0, 2), st.integers(0, 6)),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 5, 20, 600])),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 5, 20, 600])),
    st.tuples(st.just("idle"), st.just(0), st.just(0)),
    st.tuples(st.just("checkpoint"), st.just(0), st.just(0)),
    st.tuples(st.just("topic"), st.integers(0, 2), st.integers(0, 3)),
)


class Kept:
    """What must be kept of one partition: its batches as (base offset, last offset, bytes); how far it was told to be
    durable, and from where on it must still be there."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self.told = 0
        self.start_asked = 0
        self.start_told = 0


class Life:
    """Use inside a running loop, `start` first."""

    def __init__(self, seed: int, put_seconds: float = 0.01) -> None:
        self.random = random.Random(seed)
        self.store = HeldStore()
        self.store.put_seconds = lambda key: self.random.expovariate(1 / put_seconds)
        self.node = WholeWorker(QUICK, self.store)
        self.kept: dict[tuple[bytes, int], Kept] = {}
        self._number = 1
        self._topic_numbers = iter(range(2, 1 << 20, 2))

    async def start(self) -> None:
        await self.node.start()
        for name in NAMES:
            self.node.create(name, next(self._topic_numbers), 3)

    async def step(self, what: str, which: int, detail: int) -> None:
        node = self.node
        name = NAMES[which]
        match what:
            case "append" if name in node.state.topics:
                self.append(node.partition(name, 2 * (detail % 2)), detail)
            case "start" if name in node.state.topics:
                self.raise_start(node.partition(name, 0), detail)
            case "wait":
                await node.clock.sleep(detail / 1000)
            case "idle":
                # Long enough for compaction and for checkpoints.
                await node.clock.sleep(32)
            case "checkpoint":
                await node.checkpoint()
            case "topic":
                self.change_topic(name, detail)

    def append(self, partition: PartitionLog, records: int) -> None:
        batch = batch_of(*[b"%d" % partition.next_offset] * records)
        node = self.node
        base, flush = node.worker.flusher.append(partition, batch, read_header(batch), node.clock.wall_ms())
        kept = self.kept.setdefault((partition.topic_id, partition.index), Kept())
        kept.batches.append((base, base + records - 1, bytes(batch)))

        def told(_: float) -> None:
            kept.told = max(kept.told, base + records)

        flush.answers.append(told)

    def raise_start(self, partition: PartitionLog, offset: int) -> None:
        target = min(offset, partition.high_watermark)
        if target <= partition.log_start_offset:
            return
        kept = self.kept[partition.topic_id, partition.index]
        kept.start_asked = max(kept.start_asked, target)

        def told(_: float) -> None:
            kept.start_told = max(kept.start_told, target)

        self.node.worker.flusher.raise_log_start(partition, target).answers.append(told)

    def change_topic(self, name: str, how: int) -> None:
        node = self.node
        topic = node.state.topics.get(name)
        if topic is None:
            node.create(name, next(self._topic_numbers), 3)
        elif how == 0:
            node.delete(name)
        elif how == 1:
            node.delete(name)
            node.create(name, next(self._topic_numbers), 3)
        elif how == 2:
            node.grow(name, topic.partitions + 1)
        else:
            node.configure(name, retention_ms="-1", max_message_bytes=str(1000 + self.random.randrange(100)))

    # Successors

    async def crash(self) -> None:
        """End the worker where it is, seal its log, and let the next one take over."""
        self.node.stop()
        await self.take_over("crashed")

    async def drain(self) -> None:
        """The same by its own will: its log ends with its own seal, and nothing is written after that."""
        await self.node.worker.drain()
        await self.take_over("was drained")

    async def take_over(self, why: str) -> None:
        old = self.node
        await seal_log(self.store, old.keys, old.log_id, old.clock, self.random, "supervisor", why)
        self._number += 1
        slots = [
            [*entries, Assignment(EPOCH + self._number, HERE, log_id(self._number))] if slot % 2 == 0 else entries
            for slot, entries in enumerate(old.state.slots)
        ]
        state = msgspec.structs.replace(old.state, slots=slots)
        self.node = WholeWorker(QUICK, self.store, log_number=self._number, state=state)
        await self.node.start()

    # What must hold

    async def check(self) -> None:
        """All that was told to be durable is there, in its place, and what else is there was given."""
        ownership = self.node.worker.ownership
        for name, topic in self.node.state.topics.items():
            for index in range(0, topic.partitions, 2):
                await self._check_partition(self.node.partition(name, index))
        counted = Counter(extent.key for partition in ownership.partitions() for extent in partition.extents)
        assert ownership.references._counts == counted
        assert not set(ownership.references.unreferenced) & set(counted)
        assert not self.node.stopped

    async def _check_partition(self, partition: PartitionLog) -> None:
        kept = self.kept.setdefault((partition.topic_id, partition.index), Kept())
        assert partition.high_watermark >= kept.told
        assert kept.start_told <= partition.log_start_offset <= kept.start_asked
        # What was never told to be durable may be gone with the worker that had it.
        kept.batches = [entry for entry in kept.batches if entry[1] < partition.next_offset]
        first = partition.extents[0].base_offset if partition.extents else partition.high_watermark
        assert first <= partition.log_start_offset
        extents = list(partition.extents)
        durable = [raw for base, last, raw in kept.batches if base >= first and last < partition.high_watermark]
        view: Any = PartitionLog(partition.topic, partition.topic_id, partition.index, 0, 0, partition.config)
        view.extents = extents
        assert await content(self.store, view) == b"".join(durable)
