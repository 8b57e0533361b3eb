"""Goal: copies of audit records are in the internal topic, in order and as they were; nobody else writes there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.control import AuditCopy
from kafscale.coordination.cluster import AUDIT_TOPIC
from kafscale.metrics import AUDIT_UNCOPIED
from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from kafscale.protocol.records import iterate_records
from kafscale.storage.lookups import batches_from
from tests.unit.workers.guarded_worker import ADMIN, GuardedWorker
from tests.unit.workers.whole_worker import batch_of, produce_request, run


async def copies(worker: GuardedWorker) -> list[bytes | None]:
    """What is in the topic."""
    await worker.clock.sleep(1)
    topic = worker.state.topics[AUDIT_TOPIC]
    found: list[bytes | None] = []
    for index in range(topic.partitions):
        partition = worker.worker.ownership.partition(AUDIT_TOPIC, index)
        if partition is not None:
            batches = [bytes(batch) async for _, batch in batches_from(partition, worker.reader, 0)]
            found += [record.value for batch in batches for record in iterate_records(batch)]
    return found


def uncopied(worker: GuardedWorker) -> int:
    return int(worker.metrics.cells[AUDIT_UNCOPIED])


def test_records_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones make the topic, and wait for it; all stay as they were, in order, whatever their size."""
    monkeypatch.setattr("workers.audit_topic.BATCH_BYTES_MAX", 100)

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule()
        lines = [b'{"seq":%d,"text":"%s"}' % (number, b"x" * (number * 7 % 150)) for number in range(1, 60)]
        for first in (0, 20, 40):
            worker.worker.receive(AuditCopy(b"".join(line + b"\n" for line in lines[first : first + 20])))
            await asyncio.sleep(0 if first == 0 else 1)
        assert await copies(worker) == lines and uncopied(worker) == 0
        assert len([one for one in worker.asked if one.name == AUDIT_TOPIC]) == 1
        assert worker.state.topics[AUDIT_TOPIC].configs == {"retention.ms": "604800000"}
        worker.worker.receive(AuditCopy(b"last\n", lost=3))
        assert (await copies(worker))[-1] == b"last" and uncopied(worker) == 3

    run(scenario())


def test_nobody_else_writes_there() -> None:
    """Not even who may do everything; nor can the topic be deleted by anybody."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule()
        worker.worker.receive(AuditCopy(b"one\n"))
        await worker.clock.sleep(1)
        for index in range(4):
            answer: Any = await worker.ask(
                ApiKey.PRODUCE, 9, produce_request((AUDIT_TOPIC, index, batch_of(b"forged"))), ADMIN
            )
            assert answer.responses[0].partition_responses[0].error_code != 0
        request = DeleteTopicsRequest(topics=[DeleteTopicState(name=AUDIT_TOPIC)])
        answer = await worker.ask(ApiKey.DELETE_TOPICS, 6, request, ADMIN)
        assert answer.responses[0].error_code != 0
        assert await copies(worker) == [b"one"]

    run(scenario())


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the topic can't be made: what has no room is counted."""
    monkeypatch.setattr("workers.audit_topic.WAITING_BYTES_MAX", 10)

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        monkeypatch.setattr(worker, "_reply", lambda request: None)
        worker.worker.receive(AuditCopy(b"12345\n12345\n1\n"))
        assert uncopied(worker) == 1
        await worker.clock.sleep(3600)
        # It has been given up; the next one tries again.
        assert uncopied(worker) == 3
        monkeypatch.undo()
        worker.worker.receive(AuditCopy(b"again\n"))
        assert await copies(worker) == [b"again"]

    run(scenario())
