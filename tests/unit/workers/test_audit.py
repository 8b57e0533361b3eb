"""Goal: what a worker must put on record is on record, once and whole, whatever clients send; and when there is no room
for it, what the settings say becomes of their requests. All through a whole worker; the supervisor is played.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson
import pytest

from kafscale.config import Settings
from kafscale.control import AuditBatch, AuditWritten
from kafscale.metrics import AUDIT_LOST, AUDIT_REFUSED
from kafscale.protocol.api import APIS, ApiKey, encode_request
from kafscale.protocol.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.security.audit_chain import Chain
from kafscale.security.audit_event import AuditEvent, Kind, Origin, body_of, decode_events, encode_events
from tests.unit.workers.api_rights import CASES, Case
from tests.unit.workers.guarded_worker import ADMIN, ALICE, SETTINGS, GuardedWorker, document
from tests.unit.workers.whole_worker import Client, batch_of, fetch_request, produce_request, run
from workers.apis import handlers
from workers.audit import MORE, TOLD_PER_REQUEST_MAX, WINDOW_SECONDS, WINDOWS_MAX, WRITTEN_SECONDS_MAX
from workers.audited_access import AuditedAccess
from workers.audited_changes import READERS, resources_of
from workers.authentication import Login

CHANGING = {handler.api for handler in handlers() if getattr(handler, "is_admin", False)}
KINDS = {"topic", "partition", "group", "cluster", "broker", "user", "quota"}
HOSTILE = "\x1b[2Jevil\r\n" + '"},"hash":"' + "x" * 65_000


def settings_of(**changes: Any) -> Settings:
    return msgspec.structs.replace(SETTINGS, audit_log="file", **changes)


class AuditedWorker(GuardedWorker):
    """A guarded worker whose supervisor writes everything at once, or, while it `is_stuck`, nothing."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(settings_of(**changes))
        self.is_stuck = False
        self.batches: list[AuditBatch] = []
        self.events: list[AuditEvent] = []

    def _sent(self, message: Any) -> None:
        super()._sent(message)
        if isinstance(message, AuditBatch):
            self.batches.append(message)
            if not self.is_stuck:
                asyncio.get_running_loop().call_soon(self.write)

    def write(self) -> None:
        """Write what has come."""
        batches, self.batches = self.batches, []
        for batch in batches:
            self.events += decode_events(batch.events)
        if batches and not self.worker.is_stopped:
            self.worker.receive(AuditWritten(batches[-1].number))

    async def settled(self) -> list[AuditEvent]:
        """Everything that was told, and counted, up to now; and nothing that is told later."""
        await asyncio.sleep(WINDOW_SECONDS + 1)
        events, self.events = self.events, []
        return events


async def worker_of(**changes: Any) -> AuditedWorker:
    worker = await AuditedWorker(**changes).start()
    assert isinstance(worker, AuditedWorker)
    worker.rule()
    return worker


def of_kind(events: list[AuditEvent], kind: Kind) -> list[AuditEvent]:
    return [event for event in events if event.kind is kind]


def create(name: str, **configs: str) -> CreateTopicsRequest:
    made = [CreatableTopicConfig(name=key, value=value) for key, value in configs.items()]
    return CreateTopicsRequest(topics=[CreatableTopic(name=name, num_partitions=2, replication_factor=1, configs=made)])


# Denials


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_denial_is_on_record(case: Case) -> None:
    """Goal: whatever API a client may not use, it is told who asked for what, from where, and which rule decided."""

    async def scenario() -> None:
        worker = await worker_of()
        worker.rule(*(f"allow {right}" for right in case.has))
        version = case.versions[1] if case.versions else APIS[case.api].max_version
        client = worker.connect_as(ALICE)
        worker.send(client, case.api, version, case.request(version))
        await asyncio.sleep(1)
        denied = [event for event in await worker.settled() if event.decision == "denied"]
        if not case.denied:
            return  # Left out in silence: nobody asked for it by name.
        assert denied, case
        for event in denied:
            assert (event.kind, event.action, event.is_success) == (Kind.ACCESS, APIS[case.api].name, False)
            assert (event.principal, event.client_id) == (ALICE, "tester")
            assert event.client_host == client.protocol.client_host
            assert event.resources and event.operation and event.api_version == version
            assert event.rule == "no ACL allows it" and "catalogue" in event.rule_source

    run(scenario())


def test_a_denial_names_the_rule_and_its_source() -> None:
    """Goal: a deny rule of a document is told as the document has it, and where that is."""

    async def scenario() -> None:
        worker = await worker_of()
        worker.rule(in_document=document(allow=["produce topic *"], deny=["produce topic t"]))
        await worker.ask(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        (event,) = await worker.settled()
        assert event.rule.startswith("principals[0].deny[0] of 'alice'")
        assert event.rule_source == "acl.json"
        assert [(one.kind, one.name) for one in event.resources] == [("topic", "t")]
        worker.stop()

    run(scenario())


def test_alike_denials_are_told_once_and_counted() -> None:
    """Goal: a client that tries again and again fills no log, and how often it tried is on record."""

    async def scenario() -> None:
        worker = await worker_of()
        client = worker.connect_as()
        for _ in range(50):
            await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())), client)
        await worker.call(ApiKey.PRODUCE, 9, produce_request(("u", 0, batch_of())), client)
        first, other, rest = await worker.settled()
        assert (first.count, other.count, rest.count) == (1, 1, 49)
        assert other.resources[0].name == "u" and rest.resources[0].name == "t"
        assert rest.end_ms >= rest.time_ms
        await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())), client)
        (again,) = await worker.settled()
        assert again.count == 1

    run(scenario())


def test_what_strangers_send_is_bounded() -> None:
    """Goal: 64 KiB client ids and names with control characters make small events, whose records are one valid line;
    any number of different ones takes bounded memory."""

    async def scenario() -> None:
        worker = await worker_of(audit_queue_bytes=1 << 20)
        client = worker.connect_as()
        message = MetadataRequest(topics=[MetadataRequestTopic(name=HOSTILE[:30_000])], allow_auto_topic_creation=False)
        request = b"".join(encode_request(APIS[ApiKey.METADATA], 9, 1, HOSTILE[:32_000], message))
        client.send(request)
        assert await client.frame() is not None
        (event,) = await worker.settled()
        line = Chain("c/0").seal(body_of(event, Origin("c", 0)))
        assert len(line) < 8192 and line.count(b"\n") == 1 and line[:-1].decode().isprintable()
        assert orjson.loads(line)["unmapped"]["client_id"].startswith("\x1b[2Jevil\r\n")
        names = [MetadataRequestTopic(name=f"n{number}") for number in range(1000)]
        await worker.call(ApiKey.METADATA, 9, MetadataRequest(topics=names, allow_auto_topic_creation=False), client)
        events = await worker.settled()
        assert len(events) == TOLD_PER_REQUEST_MAX + 2
        assert sum(event.count for event in events) == 1000
        assert {event.resources[0].name for event in events} >= {"n0", MORE}

    run(scenario())


def test_different_denials_take_bounded_memory() -> None:
    """Goal: a client that asks for ever new names is told of name by name, and no more than so many are remembered."""

    async def scenario() -> None:
        worker = await worker_of(audit_queue_bytes=64 << 20)
        audit = worker.worker.audit
        assert audit is not None
        for number in range(WINDOWS_MAX + 100):
            refused = Login(False, f"User:{number}", "PLAIN", "sasl", "10.0.0.9", "wrong password")
            worker.worker.authenticator.record(refused)
        assert len(audit._windows) == WINDOWS_MAX
        assert len(await worker.settled()) == WINDOWS_MAX + 100
        assert not audit._windows

    run(scenario())


def test_kept_answers_hide_no_denial() -> None:
    """Goal: an answer with a denial in it is made anew each time, so that each is on record."""

    async def scenario() -> None:
        worker = await worker_of()
        client = worker.connect_as()
        message = MetadataRequest(topics=[MetadataRequestTopic(name="t")], allow_auto_topic_creation=False)
        for _ in range(3):
            await worker.call(ApiKey.METADATA, 9, message, client)
            assert [event.action for event in await worker.settled()] == ["Metadata"]

    run(scenario())


def test_a_fetch_that_waits_and_is_forbidden_is_on_record() -> None:
    """Goal: who loses a right while waiting is told of as who never had it."""

    async def scenario() -> None:
        worker = await worker_of()
        worker.rule("allow read topic t")
        client = worker.connect_as()
        worker.send(client, ApiKey.FETCH, 11, fetch_request(("t", 0, 0), max_wait_ms=500))
        worker.rule()
        await client.answer(ApiKey.FETCH, 11)
        (event,) = await worker.settled()
        assert (event.action, event.decision, event.operation) == ("Fetch", "denied", "READ")

    run(scenario())


# Changes


@pytest.mark.parametrize("case", [case for case in CASES if case.api in CHANGING], ids=lambda case: case.name)
def test_every_change_is_on_record(case: Case) -> None:
    """Goal: whoever changes anything is told of, with what was named and what came of it, before it is answered."""

    async def scenario() -> None:
        worker = await worker_of()
        version = case.versions[1] if case.versions else APIS[case.api].max_version
        answer = await worker.ask(case.api, version, case.request(version), ADMIN)
        assert answer is not None
        (event,) = of_kind(worker.events, Kind.CHANGE)
        assert (event.action, event.principal) == (APIS[case.api].name, ADMIN)
        assert event.resources or case.api is ApiKey.DELETE_ACLS
        assert {one.kind for one in event.resources} <= KINDS
        for secret in (
            one for part in getattr(case.request(version), "upsertions", ()) for one in msgspec.structs.astuple(part)
        ):
            assert not isinstance(secret, bytes) or secret not in encode_events([event])
        failed = [one.error_code for one in event.resources if one.error_code]
        assert event.is_success == (not failed and not event.error_code)

    run(scenario())


def test_every_api_that_changes_something_is_known() -> None:
    """Goal: an API that changes something can't be added without saying what of it is on record."""

    assert set(READERS) == CHANGING


def test_a_change_is_told_in_detail() -> None:
    """Goal: settings of a new topic are told, values that are none of the log's business are not."""

    async def scenario() -> None:
        worker = await worker_of()
        request = create("fresh", **{"retention.ms": "1000", "ssl.keystore.password": "hunter2"})
        await worker.ask(ApiKey.CREATE_TOPICS, 5, request, ADMIN)
        (event,) = worker.events
        (topic,) = event.resources
        assert topic.detail == "partitions=2, retention.ms=1000, ssl.keystore.password=…"
        assert topic.error_code and event.error_code == topic.error_code and not event.is_success
        validated = CreateTopicsRequest(topics=create("x").topics, validate_only=True)
        await worker.ask(ApiKey.CREATE_TOPICS, 5, validated, ADMIN)
        assert worker.events[1].details == {"validate_only": True} and worker.events[1].is_success
        many = CreateTopicsRequest(topics=[CreatableTopic(name=f"m{number}") for number in range(100)])
        await worker.ask(ApiKey.CREATE_TOPICS, 5, many, ADMIN)
        assert (len(worker.events[2].resources), worker.events[2].resources_omitted) == (64, 36)
        assert resources_of(ApiKey.METADATA, None, object()) == ([], 0)

    run(scenario())


def test_topics_made_by_use_are_on_record() -> None:
    """Goal: a topic that comes to be because a client asked for it has somebody who is on record for it."""

    async def scenario() -> None:
        worker = await worker_of()
        message = MetadataRequest(topics=[MetadataRequestTopic(name="fresh")], allow_auto_topic_creation=True)
        await worker.ask(ApiKey.METADATA, 9, message, ADMIN)
        (event,) = of_kind(await worker.settled(), Kind.CHANGE)
        assert (event.action, event.principal, event.details) == ("CreateTopics", ADMIN, {"by_use": True})
        assert [(one.kind, one.name) for one in event.resources] == [("topic", "fresh")]

    run(scenario())


def test_a_change_is_answered_once_it_is_on_record() -> None:
    """Goal: the client hears of it after the record was written; a sink that fails holds it up for a while only."""

    async def scenario() -> None:
        worker = await worker_of()
        worker.is_stuck = True
        client = worker.connect_as(ADMIN)
        worker.send(client, ApiKey.CREATE_TOPICS, 5, create("fresh"))
        await asyncio.sleep(1)
        assert worker.batches and not client.has_answers
        worker.write()
        assert (await client.answer(ApiKey.CREATE_TOPICS, 5)).topics[0].error_code == 0
        began = worker.clock.monotonic()
        await worker.call(ApiKey.CREATE_TOPICS, 5, create("fresher"), client)
        assert worker.clock.monotonic() - began == pytest.approx(WRITTEN_SECONDS_MAX, abs=0.1)

    run(scenario())


# No room


async def fill(worker: AuditedWorker) -> Client:
    """A client of the administrator's on a worker whose audit log is stuck and full."""
    worker.is_stuck = True
    assert worker.worker.audit is not None
    outbox = worker.worker.audit.outbox
    number = 0
    while outbox.put(AuditEvent(kind=Kind.CHANGE, time_ms=1, action=f"filler {number}", reason="x" * 500)):
        number += 1
    outbox._lost = 0
    outbox.flush()
    worker.metrics.cells[AUDIT_LOST] = 0
    return worker.connect_as(ADMIN)


def test_changes_are_refused_while_there_is_no_room() -> None:
    """Goal: with `deny` nothing is changed that would not be on record, and the client is told why."""

    async def scenario() -> None:
        worker = await worker_of(audit_when_full="deny", audit_queue_bytes=16 * 1024)
        client = await fill(worker)
        answer = await worker.call(ApiKey.CREATE_TOPICS, 5, create("fresh"), client)
        assert answer.topics[0].error_code == 44
        assert "the audit log can't be written" in answer.topics[0].error_message
        assert "fresh" not in worker.state.topics
        assert worker.metrics.cells[AUDIT_REFUSED] == 1
        # What needs no record goes on.
        assert await worker.produce("t", batch_of(), client=client)
        worker.is_stuck = False
        worker.write()
        answer = await worker.call(ApiKey.CREATE_TOPICS, 5, create("fresh"), client)
        assert answer.topics[0].error_code == 0

    run(scenario())


def test_changes_wait_while_there_is_no_room() -> None:
    """Goal: with `block` a change waits, and is made once its record has room."""

    async def scenario() -> None:
        worker = await worker_of(audit_when_full="block", audit_queue_bytes=16 * 1024)
        client = await fill(worker)
        worker.send(client, ApiKey.CREATE_TOPICS, 5, create("fresh"))
        await asyncio.sleep(30)
        assert not client.has_answers and "fresh" not in worker.state.topics
        worker.is_stuck = False
        worker.write()
        assert (await client.answer(ApiKey.CREATE_TOPICS, 5)).topics[0].error_code == 0
        assert of_kind(worker.events, Kind.CHANGE)[-1].action == "CreateTopics"

    run(scenario())


def test_changes_go_unrecorded_and_counted_while_there_is_no_room() -> None:
    """Goal: with `drop` a change is made at once, and how many records were lost is told with the next batch."""

    async def scenario() -> None:
        worker = await worker_of(audit_when_full="drop", audit_queue_bytes=16 * 1024)
        client = await fill(worker)
        for name in ("a", "b"):
            answer = await worker.call(ApiKey.CREATE_TOPICS, 5, create(name), client)
            assert answer.topics[0].error_code == 0
        assert worker.metrics.cells[AUDIT_LOST] == 2
        worker.write()
        await asyncio.sleep(1)
        assert [batch.lost for batch in worker.batches] == [2]

    run(scenario())


def test_strangers_leave_room_for_changes() -> None:
    """Goal: denials, of whatever number, never fill the room that changes need; those that had none are counted."""

    async def scenario() -> None:
        worker = await worker_of(audit_queue_bytes=16 * 1024)
        worker.is_stuck = True
        client = worker.connect_as()
        for first in range(0, 500, 50):
            names = [MetadataRequestTopic(name=f"n{number}") for number in range(first, first + 50)]
            message = MetadataRequest(topics=names, allow_auto_topic_creation=False)
            await worker.call(ApiKey.METADATA, 9, message, client)
        assert worker.worker.audit is not None and not worker.worker.audit.outbox.is_full
        lost = worker.metrics.cells[AUDIT_LOST]
        assert 0 < lost < 500
        answer = await worker.ask(ApiKey.CREATE_TOPICS, 5, create("fresh"), ADMIN)
        assert answer.topics[0].error_code == 0
        worker.is_stuck = False
        worker.write()
        await asyncio.sleep(1)
        worker.write()
        assert worker.events[-1].action == "CreateTopics"

    run(scenario())


# Logins


def test_logins_are_on_record() -> None:
    """Goal: who came in, who was refused and why; alike ones are counted; nobody comes in while nobody would know."""

    async def scenario() -> None:
        worker = await worker_of(audit_queue_bytes=16 * 1024)
        authenticator = worker.worker.authenticator
        refused = Login(False, "User:eve", "PLAIN", "sasl", "10.0.0.9", "wrong password")
        for login in (Login(True, ALICE, "SCRAM-SHA-256", "sasl", "10.0.0.1"), refused, refused, refused):
            authenticator.record(login)
        granted, first, rest = await worker.settled()
        assert (granted.kind, granted.principal, granted.mechanism) == (Kind.AUTHENTICATION, ALICE, "SCRAM-SHA-256")
        assert granted.is_success and not first.is_success
        assert (first.reason, first.listener, first.client_host) == ("wrong password", "sasl", "10.0.0.9")
        assert (first.count, rest.count) == (1, 2)
        assert authenticator.may_log_in()
        await fill(worker)
        assert not authenticator.may_log_in()

    run(scenario())


# Allowed requests


def test_allowed_requests_are_told_only_where_asked_for() -> None:
    """Goal: produce and consume are on record where the settings say so, by topic, repeated ones counted; else not."""

    async def scenario(kinds: str | None, acls: bool) -> list[AuditEvent]:
        worker = AuditedWorker(audit_requests=kinds)
        worker.settings = msgspec.structs.replace(worker.settings, acl_enabled=acls)
        await worker.start()
        worker.rule("allow all topic *")
        worker.worker.authority.is_on = acls
        client = worker.connect_as()
        for _ in range(5):
            await worker.produce("t", batch_of(), client=client)
        await worker.call(ApiKey.FETCH, 11, fetch_request(("t", 0, 0)), client)
        events = await worker.settled()
        worker.stop()
        return events

    assert run(scenario(None, True)) == []
    for acls in (True, False):
        events = run(scenario("produce,consume", acls))
        assert {(event.action, event.decision, event.resources[0].name) for event in events} == {
            ("Produce", "allowed", "t"),
            ("Fetch", "allowed", "t"),
        }
        assert sum(event.count for event in events if event.action == "Produce") == 5
    assert {event.action for event in run(scenario("consume", True))} == {"Fetch"}


@pytest.mark.parametrize("when_full", ["deny", "block", "drop"])
def test_audited_data_needs_room_too(when_full: str) -> None:
    """Goal: where produce requests are on record they are refused, held up or lost like all else, in their order."""

    async def scenario() -> None:
        worker = await worker_of(audit_requests="produce", audit_when_full=when_full, audit_queue_bytes=16 * 1024)
        client = await fill(worker)
        for number in range(3):
            worker.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"%d" % number))))
        if when_full == "deny":
            assert await client.answer(ApiKey.PRODUCE, 9) is None
            return
        if when_full == "block":
            await asyncio.sleep(30)
            assert not client.has_answers
            worker.is_stuck = False
            worker.write()
        offsets = []
        for _ in range(3):
            answer = await client.answer(ApiKey.PRODUCE, 9)
            offsets.append(answer.responses[0].partition_responses[0].base_offset)
        assert offsets == [0, 1, 2]

    run(scenario())


# The worker's end, and its path without an audit


def test_a_worker_tells_everything_before_it_ends() -> None:
    """Goal: what was counted and gathered goes out before the worker says that it has drained."""

    async def scenario() -> None:
        worker = await worker_of()
        client = worker.connect_as()
        for _ in range(3):
            await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())), client)
        await worker.worker.drain()
        kinds = [type(message).__name__ for message in worker.sent]
        assert kinds.index("Drained") > max(i for i, kind in enumerate(kinds) if kind == "AuditBatch")
        worker.write()
        assert [event.count for event in worker.events] == [1, 2]

    run(scenario())


def test_nothing_stands_in_the_way_without_an_audit() -> None:
    """Goal: a worker that puts nothing on record makes no event and gives handlers their access as it is."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule()
        seen: list[object] = []
        row = worker.worker.connections.dispatch._rows[ApiKey.PRODUCE]  # type: ignore[attr-defined]
        served = row.raw
        row.raw = lambda context, request, *rest: (seen.append(request.access), served(context, request, *rest))
        await worker.ask(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        assert seen and not isinstance(seen[0], AuditedAccess)
        assert not any(isinstance(message, AuditBatch) for message in worker.sent)

    run(scenario())
