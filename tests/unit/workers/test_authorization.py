"""Goal: every API does, and tells, only what its caller may: the right one is enough, without it nothing happens and
the exact code is said, and a deny takes it from one who may do everything. All through a whole worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from kafscale.config import Settings
from kafscale.coordination.cluster import OFFSETS_TOPIC
from kafscale.metrics import DENIALS, MetricsBlock
from kafscale.protocol.acls import ResourceType
from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest
from kafscale.protocol.messages.fetch import FetchRequest
from kafscale.protocol.messages.list_groups import ListGroupsRequest
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kafscale.protocol.messages.offset_fetch import OffsetFetchRequest
from kafscale.protocol.schema import ZERO_UUID
from kafscale.security import needs
from kafscale.security.access import CHARACTERS_SHIFT, DECISIONS_MAX
from kafscale.security.needs import SUPPORTED_BITS, bits
from tests.unit.workers.api_rights import CASES, Case
from tests.unit.workers.doubles import ManualClock
from tests.unit.workers.guarded_worker import ADMIN, ALICE, SETTINGS, GuardedWorker, binding, document, snapshot_of
from tests.unit.workers.whole_worker import batch_of, fetch_request, id_of, produce_request, run
from workers.apis import handlers
from workers.authorization import (
    DENIALS_PER_SECOND_MAX,
    NOT_ASKED_FOR,
    REQUIREMENTS,
    Authority,
    OnCluster,
    PerItem,
)
from workers.dispatch import RawHandler
from workers.errors import error_codes_in

AUTHORIZATION_CODES = {29, 30, 31, 53}
SERVED = {handler.api: handler for handler in handlers()}
EVERYTHING = [f"allow all {kind} *" for kind in ("topic", "group", "transactional_id")]
EVERYTHING.append("allow all cluster kafka-cluster")
IDS = [case.name for case in CASES]


def versions(case: Case) -> Sequence[int]:
    handler = SERVED[case.api]
    low, high = case.versions or (handler.min_version, handler.max_version)
    return range(low, high + 1)


def codes_in(answer: Any) -> set[int]:
    """All codes, those of Produce and Fetch too."""
    assert answer is not None, "the connection was closed"
    return set(error_codes_in(answer))


async def settled_worker() -> GuardedWorker:
    """A worker with a group `g` that has committed something."""
    worker = await GuardedWorker().start()
    worker.rule()
    topic = OffsetCommitRequestTopic(name="t", partitions=[OffsetCommitRequestPartition(committed_offset=1)])
    answer = await worker.ask(ApiKey.OFFSET_COMMIT, 9, OffsetCommitRequest(group_id="g", topics=[topic]), ADMIN)
    assert codes_in(answer) == set()
    return worker


async def check_allowed(worker: GuardedWorker, case: Case, version: int) -> None:
    answer = await worker.ask(case.api, version, case.request(version))
    assert not codes_in(answer) & AUTHORIZATION_CODES, (version, answer)
    if case.tells is not None:
        assert case.tells(answer), (version, answer)


async def check_denied(worker: GuardedWorker, case: Case, version: int) -> None:
    offset = worker.partition("t").next_offset
    asked = len(worker.asked)
    answer = await worker.ask(case.api, version, case.request(version))
    assert codes_in(answer) == case.denied, (version, answer)
    if case.tells is not None:
        assert not case.tells(answer), (version, answer)
    # Nothing was appended, and nothing was asked of the supervisor.
    assert worker.partition("t").next_offset == offset
    assert len(worker.asked) == asked


async def is_changed(worker: GuardedWorker) -> bool:
    """Whether what was allowed made, changed or took away what the next request is about."""
    partitions = {name: topic.partitions for name, topic in worker.state.topics.items()}
    answer = await worker.ask(ApiKey.LIST_GROUPS, 4, ListGroupsRequest(), ADMIN)
    return partitions != {OFFSETS_TOPIC: 1, "t": 1, "u": 1} or [group.group_id for group in answer.groups] != ["g"]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_right_is_enough(case: Case) -> None:
    """Each right that an API takes, in Kafka's words and in KafScale's, in every version: served, and told."""

    async def scenario() -> None:
        worker = await settled_worker()
        for version in versions(case):
            for right in case.kafka:
                worker.rule(*(f"allow {text}" for text in (*case.has, right)))
                await check_allowed(worker, case, version)
                if await is_changed(worker):
                    worker = await settled_worker()
            for right in case.document:
                worker.rule(in_document=document([*case.has_document, right]))
                await check_allowed(worker, case, version)
                if await is_changed(worker):
                    worker = await settled_worker()

    run(scenario())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_without_the_right_nothing_happens(case: Case) -> None:
    """By either kind of rules, in every version: the exact codes, nothing told, nothing done."""

    async def scenario() -> None:
        worker = await settled_worker()
        for version in versions(case):
            # A right to everything else of that kind is none to this.
            others = [f"allow {text}" for text in case.has] + ["allow all topic other", "allow all group other"]
            if case.api is ApiKey.INIT_PRODUCER_ID:
                others = [text for text in others if "topic" not in text]
            worker.rule(*others)
            await check_denied(worker, case, version)
            worker.rule(in_document=document([*case.has_document, "* group other"]))
            await check_denied(worker, case, version)

    run(scenario())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_deny_takes_the_right_from_one_who_may_do_everything(case: Case) -> None:
    """By either kind of rules, in every version, and by each of the two where the other allows everything."""

    async def scenario() -> None:
        worker = await settled_worker()
        denies = [f"deny {text}" for text in case.deny or case.kafka]
        in_document = document(["* * *"], case.deny_document or case.document)
        for version in versions(case):
            worker.rule(*EVERYTHING, *denies)
            await check_denied(worker, case, version)
            worker.rule(*EVERYTHING, *denies, in_document=document(["* * *"]))
            await check_denied(worker, case, version)
            if case.document:
                worker.rule(in_document=in_document)
                await check_denied(worker, case, version)
                if not case.has:
                    worker.rule(*EVERYTHING, in_document=in_document)
                    await check_denied(worker, case, version)

    run(scenario())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_before_there_are_rules_nobody_may_anything(case: Case) -> None:
    """Not ready is not allowed; and with authorization off everything is."""

    async def scenario(settings: Settings) -> set[int]:
        worker = await GuardedWorker(settings).start()
        version = versions(case)[-1]
        return codes_in(await worker.ask(case.api, version, case.request(version)))

    shut = run(scenario(SETTINGS))
    assert shut <= AUTHORIZATION_CODES and bool(shut) is bool(case.denied)
    assert not run(scenario(Settings(cluster_namespace="ns"))) & AUTHORIZATION_CODES


def test_every_api_that_takes_a_right_is_in_the_cases() -> None:
    """And each need that its row names is asked for by some case, by its operation and kind of resource."""
    for handler in handlers():
        row = REQUIREMENTS[handler.api]
        if not isinstance(row, OnCluster | PerItem):
            continue
        wanted = {row.need} if isinstance(row, OnCluster) else set(row.needs)
        texts = {text for case in CASES if case.api is handler.api for text in case.kafka}
        for need in wanted - {needs.DESCRIBE_CONFIGS_OF_TOPIC, needs.DESCRIBE_TOPIC, needs.CLUSTER_ACTION}:
            start = f"{need.operation.name.lower()} {need.resource.name.lower()} "
            assert any(text.startswith(start) for text in texts), (handler.api, str(need))


FIRST_CASES = list({case.api: case for case in reversed(CASES)}.values())


@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.api.name)
def test_an_api_without_a_row_is_denied(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten in the table, it is served to nobody, super users included, and where ACLs are off as well; what has no
    place for a code closes the connection."""
    rows = {key: row for key, row in REQUIREMENTS.items() if key != case.api}
    monkeypatch.setattr("workers.dispatch.REQUIREMENTS", rows)

    async def scenario(settings: Settings) -> None:
        worker = await GuardedWorker(settings).start()
        if settings.acl_enabled:
            worker.rule(*EVERYTHING)
        version = SERVED[case.api].max_version
        answer = await worker.ask(case.api, version, case.request(version), ADMIN)
        if isinstance(SERVED[case.api], RawHandler):
            assert answer is None
        else:
            assert codes_in(answer) == {31}
        assert worker.partition("t").next_offset == 0 and not worker.asked

    for settings in (SETTINGS, Settings(cluster_namespace="ns")):
        run(scenario(settings))


# What particular answers say


def test_whether_a_topic_exists_is_told_to_nobody_who_may_not_see_it() -> None:
    """Metadata and DeleteTopics by name: 29 and nothing else, the same for a topic that is there and one that isn't;
    and no topic comes into being."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow describe topic t")
        for version in range(1, 14):
            names = [MetadataRequestTopic(name=name) for name in ("u", "none", "?", "t")]
            answer = await worker.ask(
                ApiKey.METADATA, version, MetadataRequest(topics=names, allow_auto_topic_creation=True)
            )
            assert [topic.error_code for topic in answer.topics] == [29, 29, 29, 0]
            assert [topic.topic_id for topic in answer.topics[:3]] == [ZERO_UUID] * 3
            assert not any(topic.partitions for topic in answer.topics[:3])
            assert answer.brokers
        for version in range(1, 7):
            states = [DeleteTopicState(name=name) for name in ("u", "none")]
            answer = await worker.ask(
                ApiKey.DELETE_TOPICS,
                version,
                DeleteTopicsRequest(topics=states, topic_names=["u", "none"], timeout_ms=1000),
            )
            assert [topic.error_code for topic in answer.responses] == [29, 29]
        assert not worker.asked and "none" not in worker.state.topics

    run(scenario())


def test_by_its_id_a_topic_is_not_named() -> None:
    """Ids are no secret and names are: Metadata and DeleteTopics by id give 29 and no name, 100 for an unknown id."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow describe topic t")
        ids = [id_of(6), id_of(77)]
        topics = [MetadataRequestTopic(name=None, topic_id=topic_id) for topic_id in ids]
        answer = await worker.ask(ApiKey.METADATA, 12, MetadataRequest(topics=topics))
        assert [(topic.error_code, topic.name, topic.topic_id) for topic in answer.topics] == [
            (29, None, ids[0]),
            (100, None, ids[1]),
        ]
        states = [DeleteTopicState(name=None, topic_id=topic_id) for topic_id in (*ids, id_of(4))]
        # A topic that is named as well, to find out whether name and id belong together.
        states.append(DeleteTopicState(name="u"))
        answer = await worker.ask(ApiKey.DELETE_TOPICS, 6, DeleteTopicsRequest(topics=states, timeout_ms=1000))
        assert [(topic.error_code, topic.name) for topic in answer.responses] == [
            (29, None),
            (100, None),
            (29, "t"),
            (29, "u"),
        ]

    run(scenario())


def test_settings_of_a_new_topic_are_told_to_who_may_see_them() -> None:
    """Who may create and not describe gets the topic, code 29 for its settings, and a list of none: null would be more
    than some clients bear."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        for version in range(5, 8):
            for name, rights, code in (
                (f"a{version}", [], 29),
                (f"b{version}", ["allow describe_configs topic b*"], 0),
            ):
                worker.rule("allow create cluster kafka-cluster", *rights)
                topic = CreatableTopic(name=name, num_partitions=1, replication_factor=1)
                request = CreateTopicsRequest(topics=[topic], timeout_ms=1000)
                (made,) = (await worker.ask(ApiKey.CREATE_TOPICS, version, request)).topics
                assert (made.error_code, made.topic_config_error_code, bool(made.configs)) == (0, code, not code)
                assert made.configs is not None and made.num_partitions == (-1 if code else 1)

    run(scenario())


def test_what_may_is_served_beside_what_may_not() -> None:
    """Of one Produce and one Fetch the topic that is allowed passes, and the other is 29."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow write topic t", "allow read topic u")
        request = produce_request(("t", 0, batch_of(b"x")), ("u", 0, batch_of(b"y")), ("none", 0, batch_of(b"z")))
        answer = await worker.ask(ApiKey.PRODUCE, 9, request)
        assert [topic.partition_responses[0].error_code for topic in answer.responses] == [0, 29, 29]
        answer = await worker.ask(ApiKey.FETCH, 12, fetch_request(("t", 0, 0), ("u", 0, 0), ("none", 0, 0)))
        assert [topic.partitions[0].error_code for topic in answer.responses] == [29, 0, 29]

    run(scenario())


def test_a_denied_produce_without_acks_closes_the_connection() -> None:
    """There is no answer in which to say so."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow read topic t")
        assert await worker.ask(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"x")), acks=0)) is None
        assert worker.partition("t").next_offset == 0

    run(scenario())


@pytest.mark.parametrize("version", [4, 12, 13, 15, 18])
def test_a_consumer_that_says_it_is_a_broker_is_denied(version: int) -> None:
    """CVE-2018-1288: whatever it may read, and even with authorization off, unless an ACL makes it a broker."""

    async def scenario(settings: Settings, *rules: str) -> set[int]:
        worker = await GuardedWorker(settings).start()
        if settings.acl_enabled:
            worker.rule(*rules)
        plain = fetch_request((id_of(4) if version >= 13 else "t", 0, 0))
        assert isinstance(plain, FetchRequest)
        state = msgspec.structs.replace(plain.replica_state, replica_id=7)
        request = msgspec.structs.replace(plain, replica_id=7, replica_state=state)
        return codes_in(await worker.ask(ApiKey.FETCH, version, request))

    assert run(scenario(SETTINGS, "allow read topic t")) == {29}
    assert run(scenario(SETTINGS, "allow cluster_action cluster kafka-cluster")) == set()
    assert run(scenario(Settings(cluster_namespace="ns"))) == {29}


def test_all_a_group_has_committed_shows_only_what_may_be_seen() -> None:
    """OffsetFetch without topics, in every version that has it: others' topics are left out silently."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule()
        topics = [
            OffsetCommitRequestTopic(name=name, partitions=[OffsetCommitRequestPartition(committed_offset=1)])
            for name in ("t", "u")
        ]
        await worker.ask(ApiKey.OFFSET_COMMIT, 9, OffsetCommitRequest(group_id="g", topics=topics), ADMIN)
        worker.rule("allow read group g", "allow describe topic u")
        for version in range(2, 8):
            answer = await worker.ask(ApiKey.OFFSET_FETCH, version, OffsetFetchRequest(group_id="g", topics=None))
            assert [topic.name for topic in answer.topics] == ["u"]

    run(scenario())


def test_what_a_client_may_do_is_told_where_it_asks() -> None:
    """KIP-430: topics, groups and the cluster; nothing of the cluster to who may not describe it; unasked, INT_MIN."""

    async def scenario() -> None:
        worker = await settled_worker()
        read_topic = bits(needs.READ_TOPIC.operation, needs.DESCRIBE_TOPIC.operation)
        read_group = bits(needs.READ_GROUP.operation, needs.DESCRIBE_GROUP.operation)
        asking = MetadataRequest(
            topics=[MetadataRequestTopic(name="t")],
            include_topic_authorized_operations=True,
            include_cluster_authorized_operations=True,
        )
        describing = DescribeGroupsRequest(groups=["g"], include_authorized_operations=True)
        describing_cluster = DescribeClusterRequest(include_cluster_authorized_operations=True)
        worker.rule("allow read topic t", "allow read group g")
        answer = await worker.ask(ApiKey.METADATA, 10, asking)
        assert answer.topics[0].topic_authorized_operations == read_topic
        assert answer.cluster_authorized_operations == 0
        answer = await worker.ask(ApiKey.DESCRIBE_GROUPS, 5, describing)
        assert answer.groups[0].authorized_operations == read_group
        assert (await worker.ask(ApiKey.DESCRIBE_CLUSTER, 1, describing_cluster)).cluster_authorized_operations == 0
        worker.rule("allow alter cluster kafka-cluster")
        alter_cluster = bits(needs.ALTER_CLUSTER.operation, needs.DESCRIBE_CLUSTER.operation)
        answer = await worker.ask(ApiKey.DESCRIBE_CLUSTER, 1, describing_cluster)
        assert answer.cluster_authorized_operations == alter_cluster
        everything = await worker.ask(ApiKey.METADATA, 10, asking, ADMIN)
        assert everything.cluster_authorized_operations == SUPPORTED_BITS[ResourceType.CLUSTER]
        answer = await worker.ask(ApiKey.METADATA, 10, MetadataRequest(topics=None), ADMIN)
        assert {topic.topic_authorized_operations for topic in answer.topics} == {NOT_ASKED_FOR}

    run(scenario())


# While connections are open


def test_new_rules_hold_for_open_connections() -> None:
    """The next request of a connection that was allowed, the short way of repeated Produce requests and a Fetch that
    waits included, goes by the new rules; and a decision that was remembered does not outlive its rules."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow write topic t", "allow read topic t")
        producer, consumer, observer = (worker.connect_as() for _ in range(3))
        for _ in range(3):
            answer = await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"x"))), producer)
            assert codes_in(answer) == set()
        assert producer.protocol.repeated_produce is not None
        asking = MetadataRequest(topics=[MetadataRequestTopic(name="t")])
        for _ in range(2):
            assert codes_in(await worker.call(ApiKey.METADATA, 9, asking, observer)) == set()
        end = worker.partition("t").high_watermark
        worker.send(consumer, ApiKey.FETCH, 12, fetch_request(("t", 0, end), max_wait_ms=600_000))
        worker.rule("allow write topic u")
        answer = await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"x"))), producer)
        assert codes_in(answer) == {29}
        assert worker.partition("t").high_watermark == end
        # Metadata was answered with bytes that were kept.
        assert codes_in(await worker.call(ApiKey.METADATA, 9, asking, observer)) == {29}
        answer = await worker.call(
            ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"secret"))), worker.connect_as(ADMIN)
        )
        assert codes_in(answer) == set()
        assert codes_in(await consumer.answer(ApiKey.FETCH, 12)) == {29}
        worker.rule("allow write topic t")
        answer = await worker.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"x"))), producer)
        assert codes_in(answer) == set()

    run(scenario())


def test_answers_that_are_kept_are_for_those_who_may_see_the_same() -> None:
    """Metadata of all topics, word for word the same request: to each client what he may see, by name and by host."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule(
            "allow read topic t",
            binding("allow read topic u", "User:bob"),
            binding("allow read topic *", "User:eve", "10.9.9.9"),
        )
        for _ in range(2):
            for principal, names in ((ALICE, ["t"]), ("User:bob", ["u"]), ("User:eve", [])):
                answer = await worker.ask(ApiKey.METADATA, 9, MetadataRequest(topics=None), principal)
                assert [topic.name for topic in answer.topics] == names
        client = worker.connect_as("User:eve")
        client.protocol.client_host = "10.9.9.9"
        answer = await worker.call(ApiKey.METADATA, 9, MetadataRequest(topics=None), client)
        assert len(answer.topics) == 3

    run(scenario())


def test_a_client_that_becomes_another_has_that_ones_rights() -> None:
    """The principal of a connection is what counts when a request begins, not what it was before."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow read topic t")
        client = worker.connect_as("User:ANONYMOUS")
        asking = MetadataRequest(topics=[MetadataRequestTopic(name="t")])
        assert codes_in(await worker.call(ApiKey.METADATA, 9, asking, client)) == {29}
        client.protocol.principal = ALICE
        assert codes_in(await worker.call(ApiKey.METADATA, 9, asking, client)) == set()

    run(scenario())


# The authority


def test_denials_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """By KafScale's action and resource; what is only filtered is neither."""

    async def scenario() -> None:
        worker = await GuardedWorker().start()
        worker.rule("allow read topic t")
        for _ in range(5):
            await worker.ask(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"x"))))
            await worker.ask(ApiKey.METADATA, 9, MetadataRequest(topics=None))
        cells = worker.metrics.cells
        assert cells[DENIALS.at("produce", "topic")] == 5
        assert sum(cells[DENIALS + offset] for offset in range(DENIALS.cell_count)) == 5
        lines = [record for record in caplog.records if record.message == "denied"]
        assert [(line.principal, line.operation, line.name_asked_for) for line in lines] == [(ALICE, "WRITE", "t")]  # type: ignore[attr-defined]

    run(scenario())


def test_the_memory_of_decisions_is_bounded_over_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients come and whatever they ask; and nobody keeps decisions that were dropped."""
    monkeypatch.setattr("workers.authorization.ACCESSES_MAX", 50)
    monkeypatch.setattr("kafscale.security.access.DECISIONS_MAX", 400)
    authority = Authority(ManualClock(), MetricsBlock.in_memory(), is_on=True)
    authority.replace(snapshot_of(["allow read topic *"]))
    for number in range(500):
        access = authority.access(f"User:{number}", "10.0.0.1")
        for name in range(20):
            assert access.shows(needs.READ_TOPIC, f"t{name}") is False
        assert len(authority._accesses) <= 50
    rules = authority.rules
    assert authority.access("User:7", "10.0.0.1").rules is rules


def test_long_names_are_remembered_as_many_short_ones() -> None:
    """Names and client ids of tens of kilobytes are asked for by anybody: what is kept of them is bounded in bytes."""
    authority = Authority(ManualClock(), MetricsBlock.in_memory(), is_on=True)
    authority.replace(snapshot_of(["allow read topic *"]))
    bound = DECISIONS_MAX << CHARACTERS_SHIFT
    access = authority.access("User:7", "10.0.0.1")
    for number in range(2 * bound // 32_000):
        access.shows(needs.READ_TOPIC, f"{number}".ljust(32_000, "x"))
        access = authority.access("User:7", "10.0.0.1")
        if number % 100 == 0:
            assert sum(map(len, access._decisions[needs.READ_TOPIC.index])) <= bound  # type: ignore[attr-defined]
    for number in range(2 * bound // 32_000):
        authority.access(f"User:{number}".ljust(32_000, "x"), "10.0.0.1")
    assert sum(len(principal) for principal, _ in authority._accesses) <= bound


def test_whoever_asks_for_thousands_of_things_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each denial is counted; of those logged there is a bound for each second, and the next one says how many were
    held back."""
    clock, metrics = ManualClock(), MetricsBlock.in_memory()
    authority = Authority(clock, metrics, is_on=True)
    authority.replace(snapshot_of([]))
    access = authority.access(ALICE, "10.0.0.1")
    for number in range(1000):
        assert not access.allows(needs.READ_TOPIC, f"t{number}")
    assert metrics.cells[DENIALS.at("fetch", "topic")] == 1000
    lines = [record for record in caplog.records if record.message == "denied"]
    assert len(lines) == DENIALS_PER_SECOND_MAX
    clock.advance(1.0)
    assert not access.allows(needs.READ_TOPIC, "more")
    assert caplog.records[-1].held_back == 1000 - DENIALS_PER_SECOND_MAX  # type: ignore[attr-defined]
