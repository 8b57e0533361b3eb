"""Goal: a worker that ends by its own will leaves nothing unanswered and nothing behind: its log ends with its seal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.control import Drained, Serving, WorkerFenced
from kafscale.coordination.cluster import OFFSETS_TOPIC
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import LogReader, find_end
from tests.unit.workers.whole_worker import WholeWorker, batch_of, fetch_request, produce_request, run

# As with object storage: a flush does not wait for others that are on their way.
STEADY = Settings(cluster_namespace="ns", flush_interval_ms=250)


async def end_of(node: WholeWorker) -> Any:
    """How far the worker's log goes; everything in it must count."""
    reader = LogReader(node.store, node.keys, node.clock, node.worker.checkpointer._random)
    end = await find_end(reader, node.log_id)
    assert end.sealed and await reader.sequences(node.log_id) == list(
        range(min(await reader.sequences(node.log_id)), end.end + 1)
    )
    return end


def bases(answer: Any) -> list[int]:
    return [result.base_offset for topic in answer.responses for result in topic.partition_responses]


@pytest.mark.parametrize("interval_ms", [None, 250])
def test_a_drain_answers_what_was_received(interval_ms: int | None) -> None:
    """What was pipelined on several connections, while the store is slow; then checkpoint, seal, and the last word."""

    async def main() -> None:
        node = await WholeWorker(Settings(cluster_namespace="ns", flush_interval_ms=interval_ms)).start()
        node.create("t", 2)
        clients = [node.connect() for _ in range(3)]
        node.store.gate.clear()
        for _ in range(5):
            for client in clients:
                node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        for client in clients:
            node.send(client, ApiKey.FETCH, 12, fetch_request(("t", 0, 0)))
        draining = asyncio.ensure_future(node.worker.drain())
        await node.clock.sleep(1)
        assert node.sent == [Serving(1)] and not draining.done()
        node.store.gate.set()
        await draining
        answered = []
        for client in clients:
            for _ in range(5):
                answered += bases(await client.answer(ApiKey.PRODUCE, 9))
            fetched = await client.answer(ApiKey.FETCH, 12)
            assert fetched.responses[0].partitions[0].error_code == 0
            assert await client.frame() is None
        assert sorted(answered) == list(range(15))
        assert node.sent[1:] == [Drained()] and not node.stopped
        end = await end_of(node)
        assert end.checkpoint.covered >= end.end - 1 and end.objects[-1].checkpoint is not None
        # And from then on nothing more is written, nobody is served.
        before = node.store.bodies()
        await node.clock.sleep(100)
        assert node.store.bodies() == before
        assert await node.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of()))) is None

    run(main())


def test_what_is_appended_while_the_log_is_being_sealed_is_never_acknowledged() -> None:
    """A fetch that waits keeps the produce request behind it waiting, past the time that a drain gives to answers. It
    begins when the seal is on its way: whatever would come above the seal would never have existed."""

    async def main() -> None:
        node = await WholeWorker(STEADY).start()
        node.create("t", 2)
        await node.produce("t", batch_of(b"before"))
        client = node.connect()
        wait_seconds = node.settings.drain_timeout_ms / 1000
        node.send(client, ApiKey.FETCH, 12, fetch_request(("t", 0, 1), max_wait_ms=int(wait_seconds * 1000)))
        node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"late"))))
        sequence = node.worker.log.next_sequence
        seal = node.keys.log(node.log_id, sequence + 1)  # behind the last checkpoint
        node.store.put_seconds = lambda key: 30.0 if key == seal else 0.001
        await node.worker.drain()
        end = await end_of(node)
        assert end.end == sequence + 1 and end.objects[-1].key == node.keys.log(node.log_id, sequence)
        await node.clock.sleep(100)
        assert max(key for key in node.store.bodies() if "/log/" in key) == seal
        fetched = await client.answer(ApiKey.FETCH, 12)
        assert fetched.responses[0].partitions[0].error_code == 0
        assert await client.frame() is None

    run(main())


@pytest.mark.parametrize("late_by", [0.5, 7.9])
def test_what_is_appended_during_the_last_checkpoint_is_answered_and_lies_below_the_seal(late_by: float) -> None:
    """The same, but for the checkpoint's manifests, which take their time: it is durable before the seal."""

    async def main() -> None:
        node = await WholeWorker(STEADY).start()
        node.create("t", 2)
        await node.produce("t", batch_of(b"before"))
        client = node.connect()
        wait_ms = int(node.settings.drain_timeout_ms / 2 + late_by * 1000)
        node.send(client, ApiKey.FETCH, 12, fetch_request(("t", 0, 1), max_wait_ms=wait_ms))
        node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"late"))))
        node.store.put_seconds = lambda key: 8.0 if "/manifest/" in key else 0.001
        await node.worker.drain()
        await client.answer(ApiKey.FETCH, 12)
        answer = await client.answer(ApiKey.PRODUCE, 9)
        assert bases(answer) == [1]
        end = await end_of(node)
        replayed = [group for entry in end.objects for group in entry.groups or ()]
        assert [row[0] for group in replayed for row in group.rows][-1:] == [1]

    run(main())


def test_members_that_wait_for_others_are_sent_away() -> None:
    """A rebalance is not waited for: its members are told to find the next coordinator."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create(OFFSETS_TOPIC, 2)
        request = JoinGroupRequest(
            group_id="g",
            session_timeout_ms=10_000,
            rebalance_timeout_ms=60_000,
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol(name="range", metadata=b"")],
        )
        client = node.connect()
        node.send(client, ApiKey.JOIN_GROUP, 3, request)
        await node.clock.sleep(0.5)
        assert not client.has_answers
        began = node.clock.monotonic()
        await node.worker.drain()
        assert node.clock.monotonic() - began < 1
        assert (await client.answer(ApiKey.JOIN_GROUP, 3)).error_code == ErrorCode.NOT_COORDINATOR
        await end_of(node)

    run(main())


def test_a_worker_that_is_asked_twice_drains_once() -> None:
    """Its slots were given away, and its broker ends while it drains: one seal, one `Drained`."""

    async def main() -> None:
        node = await WholeWorker().start()
        count = node.worker.log.counted
        await asyncio.gather(node.worker.drain(), node.worker.drain())
        await node.worker.drain()
        assert (await end_of(node)).end == count
        assert node.sent.count(Drained()) == 1

    run(main())


def test_an_idle_worker_drains_at_once() -> None:
    """Nothing changed: no checkpoint, just the seal."""

    async def main() -> None:
        node = await WholeWorker().start()
        idle = node.connect()
        count = node.worker.log.counted
        await node.worker.drain()
        assert (await end_of(node)).end == count and idle.is_closing

    run(main())


def test_a_seal_by_another_ends_everything() -> None:
    """A number taken by another: connections are dropped, the supervisor is told why, nothing is written any more."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", batch_of())
        clients = [node.connect() for _ in range(2)]
        node.send(clients[0], ApiKey.FETCH, 12, fetch_request(("t", 0, 1), max_wait_ms=60_000))
        key = node.keys.log(node.log_id, node.worker.log.next_sequence)
        await node.store.inner.put_if_absent(key, [b"\0" * 64], Purpose.RECOVERY)
        node.send(clients[1], ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        await node.clock.sleep(1)
        assert all(client.was_aborted and not client.has_answers for client in clients)
        assert [type(message) for message in node.sent] == [Serving, WorkerFenced] and len(node.stopped) == 1
        before = node.store.bodies()
        await node.clock.sleep(100)
        assert node.store.bodies() == before and node.connect().is_closing

    run(main())
