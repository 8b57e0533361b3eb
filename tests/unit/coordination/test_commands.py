"""Goal: commands are decided as Kafka's controller would, and whatever is sent, the state stays valid."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.coordination import commands as c
from kafscale.coordination.cluster import (
    OFFSETS_TOPIC,
    ClusterState,
    Topic,
    Version,
    apply,
    decode_version,
    encode_version,
    topic_name_error,
)
from kafscale.coordination.quotas import KEYS, QuotaEntity
from kafscale.coordination.topic_configs import ConfigOp
from kafscale.errors import Corrupt
from kafscale.protocol.error_codes import ErrorCode

NOW = 1_700_000_000_000


def state(*topics: Topic) -> ClusterState:
    internal = Topic(OFFSETS_TOPIC, b"\x01" * 16, 50)
    return ClusterState(
        version=1,
        cluster_id="c",
        slot_count=8,
        topics={topic.name: topic for topic in (internal, *topics)},
        slots=[[] for _ in range(8)],
    )


def new_ids(seed: int = 0):
    source = random.Random(seed)
    return lambda: source.randbytes(16)


def run(before: ClusterState, *commands: c.Command) -> tuple[ClusterState, list[c.CommandResult]]:
    """The state after the commands, through the bytes of the cluster log, and the results."""
    changes, results = c.decide_all(c.Draft(before), commands, new_ids(), NOW, default_partitions=3)
    version = decode_version(encode_version(Version(before.version + 1, "w", NOW, changes)))
    return (apply(before, version) if changes else before), results


def code(before: ClusterState, command: c.Command) -> int:
    after, (result,) = run(before, command)
    if result.error_code:
        assert after == before and result.message and result.topic is None
    return result.error_code


T = Topic("t", b"\x02" * 16, 2, {"retention.ms": "1"})

names = st.sampled_from(["a", "b", "a.b", "a_b", "t", "", "..", "a/b", "x" * 250, OFFSETS_TOPIC])
configs = st.dictionaries(
    st.sampled_from(["retention.ms", "cleanup.policy", "nonsense"]), st.sampled_from(["1", "delete", "-5", None])
)
topic_ids = st.none() | st.sampled_from([b"\x01" * 16, b"\x02" * 16, b"", bytes(16)])
some_commands = st.one_of(
    st.builds(
        c.CreateTopic,
        name=names,
        partitions=st.integers(-2, 12) | st.just(2**31 - 1),
        replication_factor=st.integers(-2, 4),
        assignments=st.lists(st.tuples(st.integers(-1, 3), st.lists(st.integers(-1, 3), max_size=3)), max_size=3),
        configs=configs,
        validate_only=st.booleans(),
    ),
    st.builds(c.DeleteTopic, name=st.none() | names, topic_id=topic_ids),
    st.builds(
        c.CreatePartitions,
        name=names,
        count=st.integers(-1, 20) | st.just(2**31 - 1),
        assignments=st.none() | st.lists(st.lists(st.integers(0, 3), max_size=2), max_size=3),
        validate_only=st.booleans(),
    ),
    st.builds(
        c.AlterConfigs,
        topic=names,
        ops=st.lists(
            st.builds(
                ConfigOp,
                st.sampled_from(["retention.ms", "cleanup.policy", "x"]),
                st.integers(-1, 5),
                st.sampled_from(["1", "delete", None]),
            ),
            max_size=3,
        ),
        replace_with=st.none() | configs,
        validate_only=st.booleans(),
    ),
    st.builds(
        c.AlterQuota,
        entity=st.builds(QuotaEntity.of, user=st.none() | names),
        changes=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.none() | st.floats(1, 9)), max_size=3),
        validate_only=st.booleans(),
    ),
)


@settings(max_examples=300)
@given(st.lists(some_commands, max_size=12))
def test_any_commands_leave_a_valid_state(sent) -> None:
    """Names stay legal and distinct, ids unique, numbers of partitions bounded; refused commands change nothing."""
    before = state(T)
    after, results = run(before, *sent)
    assert len(results) == len(sent)
    assert after.topics[OFFSETS_TOPIC] == before.topics[OFFSETS_TOPIC]
    ids = [topic.topic_id for topic in after.topics.values()]
    assert len(set(ids)) == len(ids) and bytes(16) not in ids
    folded = [name.replace(".", "_") for name in after.topics]
    assert len(set(folded)) == len(folded)
    for name, topic in after.topics.items():
        assert topic.name == name and topic_name_error(name) is None
        assert 1 <= topic.partitions <= c.MAX_PARTITIONS_PER_TOPIC
    if all(result.error_code for result in results):
        assert after == before
    # One after the other in versions of their own comes to the same.
    alone, ids_alone = before, new_ids()
    for command, result in zip(sent, results, strict=True):
        changes, single = c.decide(alone, command, ids_alone, NOW, default_partitions=3)
        assert single == result
        if changes:
            alone = apply(alone, Version(alone.version + 1, "w", NOW, changes))
    assert alone.topics == after.topics


@given(st.lists(some_commands, max_size=5))
def test_commands_and_results_survive_the_wire(sent) -> None:
    assert c.decode_commands(c.encode_commands(sent)) == sent
    _, results = run(state(T), *sent)
    assert c.decode_results(c.encode_results(results)) == results


@given(st.binary(max_size=40))
def test_bytes_that_are_no_commands_are_corrupt_or_commands(data) -> None:
    for decode in (c.decode_commands, c.decode_results):
        try:
            decode(data)
        except Corrupt:
            pass


def test_a_created_topic_has_what_was_asked_for() -> None:
    after, (result,) = run(state(), c.CreateTopic(name="new", partitions=4, configs={"retention.ms": "5"}))
    assert result.error_code == 0 and result.topic == after.topics["new"]
    assert (result.topic.partitions, result.topic.configs, result.topic.created_ms) == (4, {"retention.ms": "5"}, NOW)


def test_the_number_of_partitions_has_a_default_and_may_come_from_an_assignment() -> None:
    after, results = run(
        state(), c.CreateTopic(name="a"), c.CreateTopic(name="b", assignments=[(1, [0]), (0, [1, 0])], configs={})
    )
    assert [r.error_code for r in results] == [0, 0]
    assert (after.topics["a"].partitions, after.topics["b"].partitions) == (3, 2)


def test_an_id_that_is_taken_or_zero_is_not_used() -> None:
    offered = iter([bytes(16), b"\x01" * 16, b"\x09" * 16])
    _, result = c.decide(state(), c.CreateTopic(name="a"), lambda: next(offered), NOW)
    assert result.topic.topic_id == b"\x09" * 16


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (c.CreateTopic(name="t"), ErrorCode.TOPIC_ALREADY_EXISTS),
        (c.CreateTopic(name="t", validate_only=True), ErrorCode.TOPIC_ALREADY_EXISTS),
        (c.CreateTopic(name=OFFSETS_TOPIC), ErrorCode.TOPIC_ALREADY_EXISTS),
        (c.CreateTopic(name=""), ErrorCode.INVALID_TOPIC_EXCEPTION),
        (c.CreateTopic(name="../x"), ErrorCode.INVALID_TOPIC_EXCEPTION),
        (c.CreateTopic(name="__consumer.offsets"), ErrorCode.INVALID_TOPIC_EXCEPTION),
        (c.CreateTopic(name="a", partitions=0), ErrorCode.INVALID_PARTITIONS),
        (c.CreateTopic(name="a", partitions=-2), ErrorCode.INVALID_PARTITIONS),
        (c.CreateTopic(name="a", partitions=10_001), ErrorCode.INVALID_PARTITIONS),
        (c.CreateTopic(name="a", replication_factor=0), ErrorCode.INVALID_REPLICATION_FACTOR),
        (c.CreateTopic(name="a", replication_factor=3), ErrorCode.NONE),
        (c.CreateTopic(name="a", configs={"retention.ms": "x"}), ErrorCode.INVALID_CONFIG),
        (c.CreateTopic(name="a", partitions=1, assignments=[(0, [1])]), ErrorCode.INVALID_REQUEST),
        (c.CreateTopic(name="a", assignments=[(1, [1])]), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.CreateTopic(name="a", assignments=[(0, [1, 1])]), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.CreateTopic(name="a", assignments=[(0, [])]), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.DeleteTopic(name="none"), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (c.DeleteTopic(topic_id=b"\x08" * 16), ErrorCode.UNKNOWN_TOPIC_ID),
        (c.DeleteTopic(), ErrorCode.INVALID_REQUEST),
        (c.DeleteTopic(name="t", topic_id=b"\x02" * 16), ErrorCode.INVALID_REQUEST),
        (c.DeleteTopic(name=OFFSETS_TOPIC), ErrorCode.INVALID_REQUEST),
        (c.DeleteTopic(topic_id=b"\x01" * 16), ErrorCode.INVALID_REQUEST),
        (c.CreatePartitions(name="none", count=5), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (c.CreatePartitions(name="t", count=2), ErrorCode.INVALID_PARTITIONS),
        (c.CreatePartitions(name="t", count=1), ErrorCode.INVALID_PARTITIONS),
        (c.CreatePartitions(name="t", count=10_001), ErrorCode.INVALID_PARTITIONS),
        (c.CreatePartitions(name="t", count=4, assignments=[[0]]), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.CreatePartitions(name="t", count=3, assignments=[[]]), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.CreatePartitions(name=OFFSETS_TOPIC, count=51), ErrorCode.INVALID_REQUEST),
        (c.AlterConfigs(topic="none"), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (c.AlterConfigs(topic="t", replace_with={"nonsense": "1"}), ErrorCode.INVALID_CONFIG),
        (c.AlterConfigs(topic=OFFSETS_TOPIC, replace_with={}), ErrorCode.INVALID_REQUEST),
    ],
)
def test_refusals_carry_kafkas_codes(command, expected) -> None:
    assert code(state(T), command) == expected


def test_validate_only_says_what_would_be_and_changes_nothing() -> None:
    before = state(T)
    after, results = run(
        before,
        c.CreateTopic(name="a", partitions=4, validate_only=True),
        c.CreatePartitions(name="t", count=9, validate_only=True),
        c.AlterConfigs(topic="t", replace_with={}, validate_only=True),
    )
    assert after == before
    assert [(r.error_code, r.topic.partitions, r.topic.configs) for r in results] == [
        (0, 4, {}),
        (0, 9, {"retention.ms": "1"}),
        (0, 2, {}),
    ]
    assert results[0].topic.topic_id == c.NO_TOPIC_ID


def test_settings_are_changed_in_part_or_replaced() -> None:
    before = state(T)
    part, _ = run(before, c.AlterConfigs(topic="t", ops=[ConfigOp("segment.ms", 0, "9")]))
    assert part.topics["t"].configs == {"retention.ms": "1", "segment.ms": "9"}
    whole, _ = run(part, c.AlterConfigs(topic="t", replace_with={"segment.ms": "8"}))
    assert whole.topics["t"].configs == {"segment.ms": "8"}
    assert run(whole, c.AlterConfigs(topic="t", replace_with={"segment.ms": "8"}))[0] is whole


def test_commands_of_a_request_see_those_before_them() -> None:
    _, results = run(
        state(T),
        c.CreateTopic(name="a.b"),
        c.CreateTopic(name="a_b"),
        c.DeleteTopic(name="a.b"),
        c.CreateTopic(name="a_b"),
        c.CreatePartitions(name="a_b", count=5),
    )
    assert [r.error_code for r in results] == [0, ErrorCode.INVALID_TOPIC_EXCEPTION, 0, 0, 0]


def test_the_cluster_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(c, "MAX_PARTITIONS_PER_CLUSTER", 60)
    monkeypatch.setattr(c, "MAX_CATALOGUE_BYTES", 250)
    before = state(T)  # 52 partitions
    _, results = run(
        before,
        c.CreateTopic(name="a", partitions=9),
        c.CreateTopic(name="a", partitions=8),
        c.CreatePartitions(name="t", count=3),
        c.DeleteTopic(name="a"),
        c.CreatePartitions(name="t", count=3),
        c.CreateTopic(name="x" * 249, partitions=1),
        c.AlterConfigs(topic="t", ops=[ConfigOp("leader.replication.throttled.replicas", 0, "y" * 100)]),
    )
    over = ErrorCode.POLICY_VIOLATION
    assert [r.error_code for r in results] == [over, 0, over, 0, 0, over, over]


def test_a_huge_request_is_refused_past_its_bound_and_takes_bounded_time() -> None:
    """Time grows with the number of commands, not with its square."""
    after, results = run(state(), *(c.CreateTopic(name=f"t{n}", partitions=1) for n in range(c.MAX_COMMANDS + 5)))
    assert [r.error_code for r in results].count(0) == c.MAX_COMMANDS == len(after.topics) - 1
    assert results[-1].error_code == ErrorCode.POLICY_VIOLATION
