"""Goal: a reader gets the log as it is, from the offset it asked for, within its limits, never what is not durable and
never what is damaged; it waits as long as it asked to and no longer, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.coordination.cluster import Assign, Assignment, slot_of
from kafscale.errors import StoreUnavailable
from kafscale.metrics import CONNECTIONS_CLOSED, error_cell
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import check_stored, iterate
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.extents import Extent
from kafscale.storage.partition import PartitionLog
from kafscale.storage.store import Purpose
from tests.unit.workers.whole_worker import (
    ELSEWHERE,
    EPOCH,
    Client,
    WholeWorker,
    batch_of,
    fetch_request,
    id_of,
    produce_request,
    run,
)

VERSIONS = range(4, 19)


async def started(**options: Any) -> WholeWorker:
    """A worker with topic `t` of two partitions, of which it leads the first, and `u`, which it leads."""
    node = await WholeWorker(**options).start()
    node.create("t", 2, 2)
    node.create("u", 4)
    return node


async def with_records(sizes: list[int], per_flush: int = 1, **options: Any) -> WholeWorker:
    """`t` holds one batch of each size (of its value), `per_flush` to an extent."""
    node = await started(**options)
    for first in range(0, len(sizes), per_flush):
        batches = [batch_of(bytes([65 + first % 26]) * size) for size in sizes[first : first + per_flush]]
        request = produce_request(*[("t", 0, batch) for batch in batches])
        answer = await node.call(ApiKey.PRODUCE, 9, request)
        assert not any(r.error_code for entry in answer.responses for r in entry.partition_responses)
    assert len(node.partition("t").extents) == -(-len(sizes) // per_flush)
    return node


def flat(answer: Any) -> list[Any]:
    return [result for topic in answer.responses for result in topic.partitions]


async def fetch(node: WholeWorker, *wanted: Any, version: int = 12, **options: Any) -> Any:
    """The results, flat; or one, where one was asked for."""
    results = flat(await node.call(ApiKey.FETCH, version, fetch_request(*wanted, **options)))
    return results[0] if len(wanted) == 1 else results


def begin(node: WholeWorker, *wanted: Any, version: int = 12, **options: Any) -> Client:
    """A fetch on a connection of its own, whose answer is yet to come."""
    client = node.connect()
    node.send(client, ApiKey.FETCH, version, fetch_request(*wanted, **options))
    return client


def offsets(result: Any) -> list[int]:
    """The base offsets of what was served; every batch whole and sound."""
    records = bytes(result.records or b"")
    assert check_stored(records) >= 0
    return [header.base_offset for _, header in iterate(records)]


def evict(partition: PartitionLog, *numbers: int) -> None:
    """Take these extents (all, without numbers) out of memory."""
    for number in numbers or range(len(partition.extents)):
        partition.extents[number].views = None


def nobody_waits(node: WholeWorker) -> bool:
    return not any(partition.waiters for partition in node.worker.ownership.partitions())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_reads(version: int) -> None:
    """By name, from 13 on by id: the records, the high watermark, and from 5 on the log start offset."""

    async def main() -> None:
        node = await with_records([10, 20])
        topic: Any = id_of(2) if version >= 13 else "t"
        for offset, expected in ((0, [0, 1]), (1, [1]), (2, [])):
            result = await fetch(node, (topic, 0, offset), version=version)
            assert (result.error_code, result.high_watermark, result.last_stable_offset) == (0, 2, 2)
            assert result.log_start_offset == (0 if version >= 5 else -1)
            assert offsets(result) == expected

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_here_says_where_it_is(version: int) -> None:
    """Unknown topics, ids and partitions; another's partition with its leader and, from 16 on, the leader's address; at
    once, however long the request would wait."""

    async def main() -> None:
        node = await with_records([10])
        topic: Any = id_of(2) if version >= 13 else "t"
        unknown: Any = id_of(6) if version >= 13 else "missing"
        wanted = [(unknown, 0, 0), (topic, 7, 0), (topic, 1, 0), (topic, 0, 1)]
        answer = await node.call(ApiKey.FETCH, version, fetch_request(*wanted, max_wait_ms=60_000))
        results = flat(answer)
        no_topic = ErrorCode.UNKNOWN_TOPIC_ID if version >= 13 else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        codes = [no_topic, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.NOT_LEADER_OR_FOLLOWER, 0]
        assert [result.error_code for result in results] == codes
        if version >= 12:
            leader = results[2].current_leader
            assert (leader.leader_id, leader.leader_epoch) == (ELSEWHERE, EPOCH)
        nodes = [(entry.node_id, entry.host) for entry in answer.node_endpoints]
        assert nodes == ([(ELSEWHERE, "host1")] if version >= 16 else [])
        assert nobody_waits(node)

    run(main())


def test_there_are_no_sessions() -> None:
    """One that is asked for by its id is unknown, and the client sends all partitions again."""

    async def main() -> None:
        node = await with_records([10])
        answer = await node.call(ApiKey.FETCH, 12, fetch_request(("t", 0, 0), session_id=5))
        assert (answer.error_code, list(answer.responses)) == (ErrorCode.FETCH_SESSION_ID_NOT_FOUND, [])

    run(main())


# Where reading begins


@pytest.mark.parametrize("is_cold", [False, True])
def test_offsets_within_a_batch_and_an_extent(is_cold: bool) -> None:
    """The batch that holds the offset comes whole, and what follows it; none before."""

    async def main() -> None:
        node = await started()
        batches = [("t", 0, batch_of(*[b"v"] * count)) for count in (3, 2, 4)]
        await node.call(ApiKey.PRODUCE, 9, produce_request(*batches))
        await node.produce("t", batch_of(b"w"))
        starts = [0, 3, 5, 9]
        if is_cold:
            evict(node.partition("t"))
        for offset in range(10):
            first = max(start for start in starts if start <= offset)
            assert offsets(await fetch(node, ("t", 0, offset))) == [start for start in starts if start >= first]

    run(main())


def test_offsets_out_of_range() -> None:
    """Above the high watermark only after the store said that nobody has replaced us; below the log start at once."""

    async def main() -> None:
        node = await with_records([10, 10, 10])
        node.store.asked.clear()
        result = await fetch(node, ("t", 0, 4), max_wait_ms=5000)
        assert (result.error_code, result.high_watermark, offsets(result)) == (ErrorCode.OFFSET_OUT_OF_RANGE, 3, [])
        assert [how for how, key in node.store.asked if "/log/" in key] == ["exists"]
        await node.worker.ownership.delete_records(node.partition("t"), 2)
        result = await fetch(node, ("t", 0, 1))
        assert (result.error_code, result.log_start_offset) == (ErrorCode.OFFSET_OUT_OF_RANGE, 2)
        assert offsets(await fetch(node, ("t", 0, 2))) == [2]
        assert (await fetch(node, ("t", 0, -1))).error_code == ErrorCode.OFFSET_OUT_OF_RANGE

    run(main())


def test_a_replaced_owner_does_not_say_that_an_offset_is_out_of_range() -> None:
    """The record may be there, with the one who has taken over: the connection is closed instead."""

    async def main() -> None:
        node = await with_records([10])
        key = node.keys.log(node.log_id, node.worker.log.next_sequence)
        await node.store.inner.put_if_absent(key, [b"seal" * 20], Purpose.RECOVERY)
        client = node.connect()
        assert await node.call(ApiKey.FETCH, 12, fetch_request(("t", 0, 5)), client) is None
        assert node.stopped and node.metrics.cells[CONNECTIONS_CLOSED.at("fenced")] and not client.written

    run(main())


def test_leader_epochs() -> None:
    """An older one is fenced, a later one unknown; both with the present leader. The present one reads."""

    async def main() -> None:
        node = await with_records([10])
        cases = {
            EPOCH - 1: ErrorCode.FENCED_LEADER_EPOCH,
            EPOCH: 0,
            EPOCH + 1: ErrorCode.UNKNOWN_LEADER_EPOCH,
            -1: 0,
        }
        for epoch, code in cases.items():
            result = await fetch(node, ("t", 0, 0), max_wait_ms=5000, current_leader_epoch=epoch)
            assert result.error_code == code
            assert (result.current_leader.leader_epoch == EPOCH) == bool(code)

    run(main())


def test_a_history_that_parts_from_ours() -> None:
    """Where the reader's last epoch ended before its offset, it is told where (KIP-595), and gets no records."""

    async def main() -> None:
        node = await with_records([10, 10, 10])
        partition = node.partition("t")
        partition.epochs = [type(partition.epochs[0])(1, 0), type(partition.epochs[0])(EPOCH, 2)]
        result = await fetch(node, ("t", 0, 3), max_wait_ms=5000, last_fetched_epoch=1)
        assert (result.diverging_epoch.epoch, result.diverging_epoch.end_offset) == (1, 2)
        assert offsets(result) == []
        for offset, epoch in ((2, 1), (3, EPOCH), (1, EPOCH)):
            result = await fetch(node, ("t", 0, offset), last_fetched_epoch=epoch)
            assert result.diverging_epoch.epoch == -1 and len(offsets(result)) == 3 - offset

    run(main())


# Limits


@pytest.mark.parametrize("is_cold", [False, True])
def test_limits_of_bytes(is_cold: bool) -> None:
    """No more than partition_max_bytes of a partition and max_bytes in all; but the first batch of the answer always,
    or a reader could never pass it."""

    async def main() -> None:
        node = await with_records([1000] * 6, per_flush=2)
        await node.produce("u", batch_of(b"v" * 1000))
        size = node.partition("t").extents[0].length // 2

        async def lengths(*wanted: Any, **limits: Any) -> list[int]:
            if is_cold:
                evict(node.partition("t"))
                evict(node.partition("u"))
            results = flat(await node.call(ApiKey.FETCH, 12, fetch_request(*wanted, **limits)))
            return [len(offsets(result)) for result in results]

        both = [("t", 0, 0), ("u", 0, 0)]
        for count in range(1, 7):
            assert await lengths(("t", 0, 0), partition_max_bytes=count * size) == [count]
            assert await lengths(("t", 0, 0), partition_max_bytes=count * size + size - 1) == [count]
            assert await lengths(("t", 0, 0), max_bytes=count * size) == [count]
        assert await lengths(("t", 0, 0), partition_max_bytes=1) == [1]
        assert await lengths(("t", 0, 0), partition_max_bytes=0, max_bytes=0) == [1]
        assert await lengths(*both, max_bytes=1) == [1, 0]
        assert await lengths(*both, partition_max_bytes=1) == [1, 0]
        assert await lengths(*both, max_bytes=3 * size) == [3, 0]
        assert await lengths(*both, max_bytes=7 * size + 50) == [6, 1]
        assert await lengths(*both, partition_max_bytes=size + 50) == [1, 1]

    run(main())


def test_the_brokers_own_limit_holds_too() -> None:
    async def main() -> None:
        options = Settings(cluster_namespace="ns", fetch_max_bytes=2500)
        node = await with_records([1000] * 4, settings=options)
        assert offsets(await fetch(node, ("t", 0, 0))) == [0, 1]
        # And more than that is not waited for.
        client = begin(node, ("t", 0, 0), min_bytes=1 << 20, max_wait_ms=60_000)
        began = node.clock.monotonic()
        assert len(offsets(flat(await client.answer(ApiKey.FETCH, 12))[0])) == 2
        assert node.clock.monotonic() - began < 1

    run(main())


# Waiting


@pytest.mark.parametrize("wait_ms", [0, 1, 500, 30_000])
def test_an_empty_fetch_waits_as_long_as_it_asked_to(wait_ms: int) -> None:
    async def main() -> None:
        node = await with_records([10])
        began = node.clock.monotonic()
        result = await fetch(node, ("t", 0, 1), max_wait_ms=wait_ms)
        assert (result.error_code, offsets(result)) == (0, [])
        assert node.clock.monotonic() - began == pytest.approx(wait_ms / 1000, abs=0.001)
        assert nobody_waits(node)

    run(main())


def test_what_is_appended_ends_the_wait() -> None:
    """When it is durable, and not before; all who wait get it."""

    async def main() -> None:
        node = await with_records([10])
        clients = [begin(node, ("u", 0, 0), ("t", 0, 1), max_wait_ms=60_000) for _ in range(3)]
        await node.clock.sleep(1)
        node.store.gate.clear()
        producer = node.connect()
        node.send(producer, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"new"))))
        await node.clock.sleep(1)
        assert not any(client.has_answers for client in clients)
        node.store.gate.set()
        for client in clients:
            results = flat(await client.answer(ApiKey.FETCH, 12))
            assert [offsets(result) for result in results] == [[], [1]]
        assert nobody_waits(node) and node.clock.monotonic() < 5

    run(main())


def test_a_partition_that_is_being_loaded_is_waited_for() -> None:
    """As if it were empty; told to ask for its leader, clients would come back later than it does."""

    async def main() -> None:
        node = WholeWorker()
        node.let_in()
        node.create("t", 2)
        client = begin(node, ("t", 0, 0), max_wait_ms=60_000)
        gone = begin(node, ("t", 0, 0), max_wait_ms=60_000)
        await node.clock.sleep(1)
        assert not client.has_answers
        gone.lose()
        await node.start()
        await node.clock.sleep(1)
        assert not client.has_answers and not node.worker.ownership.waiters
        await node.produce("t", batch_of(b"new"))
        (result,) = flat(await client.answer(ApiKey.FETCH, 12))
        assert offsets(result) == [0]
        assert nobody_waits(node) and node.clock.monotonic() < 5

    run(main())


@pytest.mark.parametrize("how", ["it takes too long", "it is given away", "it is deleted"])
def test_a_partition_that_is_being_loaded_is_not_waited_for_in_vain(how: str) -> None:
    async def main() -> None:
        node = WholeWorker()
        node.let_in()
        topic = node.create("t", 2)
        slot = slot_of(topic.topic_id, 0, len(node.state.slots))
        client = node.connect()
        began = node.clock.monotonic()
        node.send(client, ApiKey.FETCH, 16, fetch_request((topic.topic_id, 0, 0), max_wait_ms=700))
        await node.clock.sleep(0.1)
        match how:
            case "it is given away":
                entries = node.state.slots[slot]
                node.decide(Assign({slot: [*entries, Assignment(EPOCH + 1, ELSEWHERE, "f" * 32)]}))
            case "it is deleted":
                node.delete("t")
        found = (await client.answer(ApiKey.FETCH, 16)).responses[0].partitions[0]
        code = ErrorCode.UNKNOWN_TOPIC_ID if how == "it is deleted" else ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert found.error_code == code
        took = 0.7 if how == "it takes too long" else 0.1
        assert node.clock.monotonic() - began == pytest.approx(took, abs=0.01)
        assert not node.worker.ownership.waiters
        if how == "it takes too long":
            assert found.current_leader.leader_id == node.worker.cluster.node_id
        node.stop()

    run(main())


def test_least_bytes_are_counted_over_all_partitions() -> None:
    """A fetch waits until min_bytes are there together, of what was there and what came."""

    async def main() -> None:
        node = await with_records([100])
        size = node.partition("t").extents[0].length
        wanted = [("t", 0, 0), ("u", 0, 0)]
        client = begin(node, *wanted, min_bytes=3 * size, max_wait_ms=60_000)
        for topic in ("u", "t"):
            await node.clock.sleep(1)
            assert not client.has_answers and not nobody_waits(node)
            await node.produce(topic, batch_of(b"v" * 100))
        results = flat(await client.answer(ApiKey.FETCH, 12))
        assert [offsets(result) for result in results] == [[0, 1], [0]]
        # What never comes is not waited for longer than asked.
        began = node.clock.monotonic()
        results = await fetch(node, *wanted, min_bytes=4 * size, max_wait_ms=700)
        assert [offsets(result) for result in results] == [[0, 1], [0]]
        assert node.clock.monotonic() - began == pytest.approx(0.7)
        assert nobody_waits(node)

    run(main())


@pytest.mark.parametrize("evicted", [(), (1, 2, 3, 4, 5)])
def test_a_reader_far_behind_does_not_wait(evicted: tuple[int, ...]) -> None:
    """Where min_bytes are there, but not all of them can be sent in whole batches or from memory, nothing is gained by
    waiting."""

    async def main() -> None:
        node = await with_records([600] * 6)
        if evicted:
            evict(node.partition("t"), *evicted)
        began = node.clock.monotonic()
        options = {"min_bytes": 1000, "partition_max_bytes": 1200, "max_wait_ms": 60_000}
        assert offsets(await fetch(node, ("t", 0, 0), **options)) == [0]
        assert node.clock.monotonic() - began < 0.1
        # At the end of the log it does wait.
        client = begin(node, ("t", 0, 6), min_bytes=1, max_wait_ms=60_000)
        await node.clock.sleep(1)
        assert not client.has_answers

    run(main())


@pytest.mark.parametrize("how", ["lost", "closed", "deleted", "created anew", "fenced", "drained"])
def test_nothing_of_a_wait_is_left_behind(how: str) -> None:
    """A connection that goes away, a topic that is deleted, a worker that ends: whoever waited is forgotten or told."""

    async def main() -> None:
        node = await with_records([10])
        partition, other = node.partition("t"), node.partition("u")
        client = begin(node, ("t", 0, 1), ("u", 0, 0), max_wait_ms=600_000)
        await node.clock.sleep(1)
        assert len(partition.waiters) == len(other.waiters) == 1
        match how:
            case "lost":
                client.lose(ConnectionResetError())
            case "closed":
                client.protocol.close("idle")
            case "deleted" | "created anew":
                node.delete("t")
                if how == "created anew":
                    node.create("t", 6)
                results = flat(await client.answer(ApiKey.FETCH, 12))
                code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                assert [result.error_code for result in results] == [code, 0]
            case "fenced":
                node.stop()
            case "drained":
                await node.worker.drain()
                assert await client.frame() is None
        assert not partition.waiters and not other.waiters
        await node.clock.sleep(700)
        assert not client.has_answers

    run(main())


# Reading back


@pytest.mark.parametrize("is_mixed", [False, True])
def test_what_was_evicted_is_read_back(is_mixed: bool) -> None:
    """All of it, or some between what is still in memory: the same bytes."""

    async def main() -> None:
        node = await with_records([1000, 10, 70_000, 10, 1000], per_flush=1)
        hot = (await fetch(node, ("t", 0, 0))).records
        whole = bytes(hot)
        partition = node.partition("t")
        evict(partition, *((0, 2) if is_mixed else range(5)))
        read = b""
        while len(read) < len(whole):
            offset = sum(1 for _ in iterate(read))
            result = await fetch(node, ("t", 0, offset), max_wait_ms=60_000)
            assert result.error_code == 0 and result.records
            read += bytes(result.records)
        assert read == whole and node.clock.monotonic() < 5

    run(main())


def test_damage_is_an_error_and_is_never_served() -> None:
    """The reader of the damaged extent is told; what lies before and behind it can still be read."""

    async def main() -> None:
        node = await with_records([100] * 5)
        partition = node.partition("t")
        damaged = partition.extents[2]
        await node.store.damage(damaged.key, damaged.position + 80)
        evict(partition)
        for _ in range(2):
            assert offsets(await fetch(node, ("t", 0, 0))) == [0, 1]
            result = await fetch(node, ("t", 0, 2))
            assert (result.error_code, offsets(result)) == (ErrorCode.CORRUPT_MESSAGE, [])
            assert offsets(await fetch(node, ("t", 0, 3))) == [3, 4]
        assert node.metrics.cells[error_cell(ErrorCode.CORRUPT_MESSAGE)] == 2

    run(main())


def test_damage_does_not_spread_to_its_neighbours_in_an_object() -> None:
    """Extents that come in one range are judged one by one, whoever asked for the range."""

    async def main() -> None:
        node = await with_records([100] * 3, per_flush=3)
        partition = node.partition("t")
        (whole,) = partition.extents
        # As compaction leaves them: several extents in one object, one behind the other.
        raw = (await node.store.inner.get(whole.key, Purpose.RECOVERY))[whole.position :][: whole.length]
        partition.extents[:] = [
            Extent(h.base_offset, h.last_offset, h.max_timestamp, whole.key, whole.position + at, h.size_bytes)
            for at, h in iterate(raw)
        ]
        await node.store.damage(whole.key, partition.extents[1].position + 70)
        clients = [begin(node, ("t", 0, offset)) for offset in range(3)]
        results = [flat(await client.answer(ApiKey.FETCH, 12))[0] for client in clients]
        assert [offsets(result) for result in results] == [[0], [], [2]]
        assert [result.error_code for result in results] == [0, ErrorCode.CORRUPT_MESSAGE, 0]

    run(main())


def test_an_object_that_is_gone() -> None:
    """Looked for where compaction may have put it; if it is nowhere that is an error, and no empty log."""

    async def main() -> None:
        node = await with_records([100] * 3)
        partition = node.partition("t")
        key = partition.extents[1].key
        evict(partition)
        moved = await node.store.inner.get(key, Purpose.RECOVERY)
        await node.store.inner.delete([key], Purpose.SWEEP)
        assert offsets(await fetch(node, ("t", 0, 0))) == [0]
        result = await fetch(node, ("t", 0, 1))
        assert (result.error_code, result.records or b"") == (ErrorCode.KAFKA_STORAGE_ERROR, b"")
        # As compaction does it, while a reader has begun with the old place.
        client = begin(node, ("t", 0, 1))
        await node.store.inner.put_if_absent("ns/pack/" + "0" * 32 + "/" + "0" * 20, [moved], Purpose.COMPACTION)
        partition.extents[1].key = "ns/pack/" + "0" * 32 + "/" + "0" * 20
        assert offsets(flat(await client.answer(ApiKey.FETCH, 12))[0]) == [1, 2]

    run(main())


def test_a_store_that_gives_no_answers() -> None:
    """What must be read back is a retriable error; what lies in memory is served."""

    async def main() -> None:
        node = await with_records([100] * 2)
        partition = node.partition("t")
        evict(partition, 0)
        node.store.read_errors[partition.extents[0].key] = [StoreUnavailable("no")]
        result = await fetch(node, ("t", 0, 0))
        assert result.error_code == ErrorCode.KAFKA_STORAGE_ERROR
        assert offsets(await fetch(node, ("t", 0, 1))) == [1]
        assert offsets(await fetch(node, ("t", 0, 0))) == [0, 1]

    run(main())


@pytest.mark.parametrize("what", ["records", "topic"])
def test_what_is_deleted_while_it_is_read_back(what: str) -> None:
    """The reader gets an answer, of what there was or that it is gone."""

    async def main() -> None:
        node = await with_records([100] * 4)
        partition = node.partition("t")
        evict(partition)
        began = asyncio.Event()
        inner = node.store.inner.get_range
        gate = asyncio.Event()

        async def slow(*arguments: Any) -> bytes:
            began.set()
            await gate.wait()
            return await inner(*arguments)

        node.store.inner.get_range = slow  # type: ignore[method-assign]
        client = begin(node, ("t", 0, 0))
        await began.wait()
        if what == "topic":
            node.delete("t")
        else:
            await node.worker.ownership.delete_records(partition, 4)
        gate.set()
        result = flat(await client.answer(ApiKey.FETCH, 12))[0]
        assert result.error_code == 0 and offsets(result)[:1] == [0]

    run(main())


# The property


@settings(max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([1, 50, 400, 3000]), min_size=1, max_size=14),
    counts=st.lists(st.integers(1, 4), min_size=14, max_size=14),
    per_flush=st.integers(1, 5),
    seed=st.integers(0, 1 << 30),
)
def test_readers_get_the_log(sizes: list[int], counts: list[int], per_flush: int, seed: int) -> None:
    """Whatever limits readers set, whatever is in memory and whatever is compacted meanwhile: the answers
    one after the other are the log from where they began, batch by batch, without a gap and within the limits."""

    async def main() -> None:
        chance = random.Random(seed)
        node = await started()
        batches = [("t", 0, batch_of(*[b"v" * size] * count)) for size, count in zip(sizes, counts, strict=False)]
        for first in range(0, len(batches), per_flush):
            await node.call(ApiKey.PRODUCE, 9, produce_request(*batches[first : first + per_flush]))
        partition = node.partition("t")
        log = bytes((await fetch(node, ("t", 0, 0))).records)
        places = [(header.last_offset, log[at : at + header.size_bytes]) for at, header in iterate(log)]
        assert len(places) == len(batches)
        for _ in range(3):
            offset = chance.randrange(partition.high_watermark)
            expected = [raw for last, raw in places if last >= offset]
            while offset < partition.high_watermark:
                if chance.random() < 0.3:
                    evict(partition, *[n for n in range(len(partition.extents)) if chance.random() < 0.5])
                if chance.random() < 0.1:
                    node.worker.compactor.slots_loaded()
                    await node.worker.compactor.run_once(node.worker.ownership.partitions())
                partition_limit, limit = (chance.choice([1, 100, 1000, 4000, 1 << 20]) for _ in range(2))
                began = node.clock.monotonic()
                result = await fetch(
                    node, ("t", 0, offset), partition_max_bytes=partition_limit, max_bytes=limit, max_wait_ms=500
                )
                assert node.clock.monotonic() - began < 0.4
                got = bytes(result.records)
                found = list(iterate(got))
                assert found and result.error_code == 0
                assert len(got) <= min(partition_limit, limit) or len(found) == 1
                assert got == b"".join(expected[: len(found)])
                expected = expected[len(found) :]
                offset = found[-1][1].last_offset + 1
            assert not expected
        assert nobody_waits(node)

    run(main())


def test_slots_given_away_are_served_no_more() -> None:
    """Once the cluster log names another owner a fetch is sent there at once, those that wait included."""

    async def main() -> None:
        node = await with_records([10])
        client = node.connect()
        waiting = asyncio.ensure_future(
            node.call(ApiKey.FETCH, 16, fetch_request((id_of(2), 0, 1), max_wait_ms=60_000), client)
        )
        await node.clock.sleep(0.1)
        slots = {slot: [*node.state.slots[slot], Assignment(EPOCH + 1, ELSEWHERE, "f" * 32)] for slot in (0, 2)}
        node.decide(Assign(slots))
        for answer in (await waiting, await node.call(ApiKey.FETCH, 16, fetch_request((id_of(2), 0, 0)))):
            found = answer.responses[0].partitions[0]
            assert found.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
            assert (found.current_leader.leader_id, found.current_leader.leader_epoch) == (ELSEWHERE, EPOCH + 1)

    run(main())
