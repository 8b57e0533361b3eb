"""Goal: slots go from one living worker to another, back and forth, while records are appended, flushed, compacted and
deleted: nothing acknowledged is lost, nothing that a manifest names is deleted, and no slot has two who serve it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.control import PeerReleased, Released
from kafscale.coordination.assignment import shorten
from kafscale.coordination.cluster import Assign, Assignment, Change, CreateTopic, DeleteTopic, Topic
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import read_header
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.partition import PartitionLog
from kafscale.storage.takeover import LogReader, find_end, seal_log
from tests.unit.storage.rig import content, log_id
from tests.unit.workers.whole_worker import (
    HERE,
    SLOTS,
    HeldStore,
    WholeWorker,
    batch_of,
    fetch_request,
    first_state,
    id_of,
    produce_request,
    run,
)

QUICK = Settings(
    cluster_namespace="ns",
    checkpoint_interval_objects=5,
    checkpoint_interval_ms=400,
    offsets_topic_partitions=2,
    slot_release_timeout_ms=60_000,
)
NAMES = ("a", "b", "c")

STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("append"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("start"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([1, 20, 100, 700])),
    st.tuples(st.just("idle"), st.just(0), st.just(0)),
    st.tuples(st.just("move"), st.integers(0, 1), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("move"), st.integers(0, 1), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("shorten"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("topic"), st.integers(0, 2), st.just(0)),
)


class Kept:
    """What one partition was told to be durable."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self.told = 0
        self.start_asked = 0


class Pair:
    """Two workers that share a store and a cluster log."""

    def __init__(self, seed: int, put_seconds: float = 0.01) -> None:
        self.random = random.Random(seed)
        self.store = HeldStore()
        self.store.put_seconds = lambda key: self.random.expovariate(1 / put_seconds)
        state = first_state()
        for number, entries in enumerate(state.slots):
            entries[:] = [Assignment(1, HERE, log_id(1 + number % 2))]
        self.nodes = [self._node(number, state) for number in (1, 2)]
        self.hints = 0
        self._number = 2
        self._topic_numbers = iter(range(2, 1 << 20, 2))
        self.kept: dict[tuple[bytes, int], Kept] = {}

    def _node(self, number: int, state: Any) -> WholeWorker:
        node = WholeWorker(QUICK, self.store, log_number=number, state=state)
        node.sent = _Wire(self, node)  # type: ignore[assignment]
        return node

    async def start(self) -> Pair:
        await asyncio.gather(*(node.start() for node in self.nodes))
        for name in NAMES:
            self.decide(CreateTopic(Topic(name, id_of(next(self._topic_numbers)), SLOTS)))
        return self

    @property
    def state(self) -> Any:
        return self.nodes[0].state

    def decide(self, *changes: Change) -> None:
        for node in self.nodes:
            node.decide(*changes)

    def released(self, sender: WholeWorker, message: Released) -> None:
        """Hints reach the other sometimes, late, or not at all."""
        if self.random.random() < 0.7:
            hint = PeerReleased(message.log_id, message.slots, message.sequence)
            for node in self.nodes:
                if node is not sender and not node.worker.is_stopped:
                    node.clock.call_later(self.random.random() * 0.02, self._tell, node, hint)

    def _tell(self, node: WholeWorker, hint: PeerReleased) -> None:
        if not node.worker.is_stopped:
            self.hints += 1
            node.worker.receive(hint)

    # What happens

    async def step(self, what: str, which: int, detail: int) -> None:
        match what:
            case "append":
                self.append(NAMES[which], detail)
            case "start":
                partition = self.served(NAMES[which], detail)
                if partition is not None and partition.high_watermark > partition.log_start_offset:
                    kept = self.kept[partition.topic_id, partition.index]
                    kept.start_asked = max(kept.start_asked, partition.high_watermark)
                    self.server(partition).worker.flusher.raise_log_start(partition, partition.high_watermark)
            case "wait":
                await self.nodes[0].clock.sleep(detail / 1000)
            case "idle":
                await self.nodes[0].clock.sleep(32)
            case "move":
                self.move(detail, self.nodes[which])
            case "shorten":
                await self.shorten(self.nodes[which])
            case "crash":
                await self.crash(which)
            case "topic":
                name = NAMES[which]
                old = self.state.topics[name]
                self.decide(
                    DeleteTopic(name, old.topic_id),
                    CreateTopic(Topic(name, id_of(next(self._topic_numbers)), SLOTS)),
                )

    def server(self, partition: PartitionLog) -> WholeWorker:
        (node,) = (node for node in self.nodes if node.worker.ownership.serves(partition))
        return node

    def served(self, name: str, index: int) -> PartitionLog | None:
        """The partition, at whoever serves it; never two."""
        found = [
            partition
            for node in self.nodes
            if not node.worker.is_stopped and (partition := node.worker.ownership.partition(name, index)) is not None
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def append(self, name: str, index: int) -> None:
        partition = self.served(name, index)
        if partition is None:
            return
        node = self.server(partition)
        batch = batch_of(b"%d" % partition.next_offset)
        kept = self.kept.setdefault((partition.topic_id, partition.index), Kept())
        base, flush = node.worker.flusher.append(partition, batch, read_header(batch), node.clock.wall_ms())
        assert base >= kept.told, "an offset was given twice"
        kept.batches = [entry for entry in kept.batches if entry[0] < base]
        kept.batches.append((base, base, bytes(batch)))

        def told(_: float) -> None:
            kept.told = max(kept.told, base + 1)

        flush.answers.append(told)

    def move(self, slot: int, target: WholeWorker) -> None:
        entries = self.state.slots[slot]
        if entries[-1].log_id != target.log_id and len(entries) < 5:
            self.decide(Assign({slot: [*entries, Assignment(entries[-1].epoch + 1, HERE, target.log_id)]}))

    async def shorten(self, node: WholeWorker) -> None:
        """As the leader does: by what a counting checkpoint says."""
        reader = LogReader(self.store, node.keys, node.clock, self.random)
        end = await find_end(reader, node.log_id)
        if end.checkpoint is not None:
            epochs = {slot: place.epoch for slot, place in end.checkpoint.slots.items()}
            change = shorten(self.state, node.log_id, epochs)
            if change is not None:
                self.decide(change)

    async def crash(self, which: int) -> None:
        """End a worker where it is; its log is ended, then its slots go to its next life."""
        old = self.nodes[which]
        old.stop()
        await seal_log(self.store, old.keys, old.log_id, old.clock, self.random, "supervisor", "crashed")
        self._number += 1
        new = log_id(self._number)
        change = Assign(
            {
                slot: [*entries, Assignment(entries[-1].epoch + 1, HERE, new)]
                for slot, entries in enumerate(self.state.slots)
                if entries[-1].log_id == old.log_id
            }
        )
        if change.slots:
            self.decide(change)
        self.nodes[which] = self._node(self._number, self.state)
        await self.nodes[which].start()

    # What must hold

    async def settle(self) -> None:
        """Everything is served, by one."""
        async with asyncio.timeout(600):
            while not all(self.served(name, index) for name in NAMES for index in range(SLOTS)):
                assert not any(node.stopped for node in self.nodes), [node.stopped for node in self.nodes]
                await self.nodes[0].clock.sleep(0.05)
        await self.nodes[0].clock.sleep(2)

    async def check(self) -> None:
        for name in NAMES:
            for index in range(SLOTS):
                partition = self.served(name, index)
                assert partition is not None
                kept = self.kept.get((partition.topic_id, index), Kept())
                assert partition.high_watermark >= kept.told
                assert partition.log_start_offset <= kept.start_asked
                first = partition.extents[0].base_offset if partition.extents else partition.high_watermark
                durable = [raw for base, last, raw in kept.batches if first <= base and last < partition.high_watermark]
                view: Any = PartitionLog(name, partition.topic_id, index, 0, 0, partition.config)
                view.extents = list(partition.extents)
                stored = await content(self.store, view)
                # Leader epochs are stamped into batches: compare what they hold.
                assert len(stored) == sum(map(len, durable))


class _Wire(list[Any]):
    """What a worker sends to its supervisor."""

    def __init__(self, pair: Pair, node: WholeWorker) -> None:
        super().__init__()
        self._pair, self._node = pair, node

    def append(self, message: Any) -> None:
        super().append(message)
        if isinstance(message, Released):
            self._pair.released(self._node, message)


@settings(max_examples=60)
@given(steps=st.lists(STEP, max_size=50), seed=st.integers(0, 1 << 30))
def test_slots_move_while_everything_goes_on(steps: list[tuple[str, int, int]], seed: int) -> None:
    async def main() -> None:
        pair = await Pair(seed, put_seconds=0.02).start()
        for step in steps:
            await pair.step(*step)
        await pair.settle()
        await pair.check()
        # And once more from the store alone.
        for which in (0, 1):
            await pair.crash(which)
        await pair.settle()
        await pair.check()
        for node in pair.nodes:
            node.stop()

    run(main())


def moves_of(pair: Pair, slot: int, *targets: int) -> None:
    for which in targets:
        pair.move(slot, pair.nodes[which])


@pytest.mark.parametrize("targets", [(1, 0), (1, 0, 1), (1, 0, 1, 0)])
def test_a_slot_that_is_moved_on_before_it_was_loaded(targets: tuple[int, ...]) -> None:
    """Goal: what was assigned and never loaded is released, by a checkpoint that names no manifest of that epoch, and
    loaded at its last owner with all that its first one acknowledged."""

    async def main() -> None:
        pair = await Pair(1).start()
        for _ in range(3):
            pair.append("a", 0)
            await pair.nodes[0].clock.sleep(0.1)
        partition = pair.served("a", 0)
        assert partition is not None and partition.high_watermark == 3
        slot = partition.slot
        start = pair.nodes.index(pair.server(partition))
        moves_of(pair, slot, *((target + start) % 2 for target in targets))
        await pair.settle()
        moved = pair.served("a", 0)
        assert moved is not None and moved is not partition and moved.high_watermark == 3
        assert pair.server(moved) is pair.nodes[(targets[-1] + start) % 2]
        assert moved.leader_epoch == 1 + len(targets)
        await pair.check()

    run(main())


def test_a_move_interrupts_for_less_than_a_second_at_a_50_ms_store() -> None:
    """Goal: from the last acknowledgement of the old owner to the first of the new one, with a store whose every answer
    takes 50 ms, while all partitions are written to."""

    async def main() -> None:
        pair = await Pair(2).start()
        pair.store.put_seconds = lambda key: 0.05
        pair.store.read_seconds = 0.05
        pair.random.random = lambda: 0.5  # type: ignore[method-assign]  # every hint arrives
        clock = pair.nodes[0].clock
        acked: dict[int, list[float]] = {index: [] for index in range(SLOTS)}

        async def write(index: int) -> None:
            while True:
                partition = pair.served("a", index)
                if partition is not None:
                    batch = batch_of(b"x" * 1000)
                    node = pair.server(partition)
                    _, flush = node.worker.flusher.append(partition, batch, read_header(batch), clock.wall_ms())
                    flush.answers.append(lambda _: acked[index].append(clock.monotonic()))
                await clock.sleep(0.02)

        writing = [asyncio.ensure_future(write(index)) for index in range(SLOTS)]
        await clock.sleep(5)
        partition = pair.served("a", 1)
        assert partition is not None
        other = pair.nodes[1 - pair.nodes.index(pair.server(partition))]
        epoch = partition.leader_epoch
        pair.move(partition.slot, other)
        await clock.sleep(5)
        for task in writing:
            task.cancel()
        moved = pair.served("a", 1)
        assert moved is not None and moved.leader_epoch == epoch + 1
        gaps = {index: max(b - a for a, b in itertools.pairwise(times)) for index, times in acked.items()}
        print(f"longest pauses of a moved slot and of others, seconds: {gaps}")
        assert gaps[1] < 0.7
        assert all(gap < 0.3 for index, gap in gaps.items() if index != 1)

    run(main())


def test_waiting_clients_are_sent_to_the_new_owner() -> None:
    """Goal: produced before the move: acknowledged; after it: NOT_LEADER; the moved
    partition serves what was acknowledged, and the old owner's other slots go on."""

    async def main() -> None:
        pair = await Pair(3).start()
        partition = pair.served("a", 0)
        assert partition is not None
        old = pair.server(partition)
        (new,) = (node for node in pair.nodes if node is not old)
        old.store.gate.clear()
        client = old.connect()
        waiting = asyncio.ensure_future(
            old.call(ApiKey.PRODUCE, 9, produce_request(("a", 0, batch_of(b"late"))), client)
        )
        await old.clock.sleep(0.1)
        pair.move(partition.slot, new)
        refused = await old.call(ApiKey.PRODUCE, 10, produce_request(("a", 0, batch_of(b"too late"))))
        result = refused.responses[0].partition_responses[0]
        assert result.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        await old.clock.sleep(1)
        assert pair.served("a", 0) is None and not waiting.done()
        old.store.gate.set()
        assert (await waiting).responses[0].partition_responses[0].base_offset == 0
        await pair.settle()
        answer = await new.call(ApiKey.FETCH, 12, fetch_request(("a", 0, 0)))
        assert answer.responses[0].partitions[0].high_watermark == 1
        assert any(isinstance(message, Released) for message in old.sent)
        assert not old.stopped

    run(main())
