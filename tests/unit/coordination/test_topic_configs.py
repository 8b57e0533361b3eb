"""Goal: a topic's settings are accepted, refused, defaulted and described as Kafka's tools expect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.coordination.topic_configs import (
    DECLARED,
    DEFAULT_SEGMENT_BYTES,
    ConfigOp,
    ConfigSource,
    ConfigType,
    Effect,
    Operation,
    altered,
    describe,
    effective,
    validated,
)
from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode

NAMES = [setting.name for setting in DECLARED]


def code_of(configs: dict[str, str | None]) -> int:
    with pytest.raises(Invalid) as caught:
        validated(configs)
    return caught.value.code


def test_every_default_is_a_value_that_its_setting_accepts() -> None:
    assert [s.name for s in DECLARED if s.value_error(s.default) is not None] == []
    assert len(set(NAMES)) == len(NAMES)


def test_every_default_that_settings_give_is_what_the_table_declares() -> None:
    """Else DescribeConfigs would call a default a broker's own value."""
    defaults = Settings()
    assert [s.name for s in DECLARED if s.setting and str(getattr(defaults, s.setting)) != s.default] == []


@given(st.sampled_from(DECLARED), st.text(max_size=40) | st.integers(-(2**70), 2**70).map(str))
def test_an_accepted_value_is_always_usable(setting, value) -> None:
    """Whatever text is accepted can be made into what a partition obeys."""
    if setting.value_error(value) is None:
        configs = validated({setting.name: value})
        result = effective(configs, Settings())
        assert result.retention_ms >= -1 and result.segment_bytes > 0 and result.max_message_bytes >= 0


@given(st.text(max_size=30).filter(lambda name: name not in NAMES))
def test_an_unknown_name_is_refused(name) -> None:
    assert code_of({name: "1"}) == ErrorCode.INVALID_CONFIG
    with pytest.raises(Invalid) as caught:
        altered({}, [ConfigOp(name, Operation.DELETE)])
    assert caught.value.code == ErrorCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention.ms", "-2"),
        ("retention.ms", "abc"),
        ("retention.ms", ""),
        ("retention.ms", "1_000"),
        ("retention.ms", "\uff19"),
        ("retention.ms", str(2**63)),
        ("retention.ms", None),
        ("segment.bytes", "100"),
        ("max.message.bytes", str(2**31)),
        ("message.timestamp.type", "createtime"),
        ("cleanup.policy", "compact"),
        ("cleanup.policy", "compact,delete"),
        ("cleanup.policy", ""),
        ("compression.type", "gzip"),
        ("unclean.leader.election.enable", "true"),
        ("min.insync.replicas", "0"),
        ("min.cleanable.dirty.ratio", "1.5"),
        ("leader.replication.throttled.replicas", "x" * 1000),
    ],
)
def test_values_that_promise_what_is_not_so_are_refused(name, value) -> None:
    assert code_of({name: value}) == ErrorCode.INVALID_CONFIG


def test_a_refusal_says_why() -> None:
    with pytest.raises(Invalid, match=r"cleanup\.policy.*compacted topics are not supported"):
        validated({"cleanup.policy": "compact"})


def test_unset_settings_come_from_the_broker() -> None:
    config = effective({}, Settings(log_retention_ms=5, message_max_bytes=99))
    assert (config.retention_ms, config.max_message_bytes, config.segment_bytes) == (5, 99, DEFAULT_SEGMENT_BYTES)
    assert not config.log_append_time


def test_what_a_topic_sets_wins_over_the_broker() -> None:
    configs = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime", "retention.bytes": " +7 "}
    config = effective(configs, Settings(log_retention_ms=5))
    assert (config.retention_ms, config.retention_bytes, config.log_append_time) == (-1, 7, True)


def test_a_setting_of_a_newer_version_does_not_break_a_partition() -> None:
    assert effective({"a.setting.of.tomorrow": "x"}, Settings()) == effective({}, Settings())


def test_operations_change_what_they_name_and_nothing_else() -> None:
    before = {"retention.ms": "1", "segment.ms": "2", "leader.replication.throttled.replicas": "0:1"}
    after = altered(
        before,
        [
            ConfigOp("retention.ms", Operation.DELETE, None),
            ConfigOp("max.message.bytes", Operation.SET, "9"),
            ConfigOp("leader.replication.throttled.replicas", Operation.APPEND, "0:2, 0:1"),
        ],
    )
    assert after == {"segment.ms": "2", "max.message.bytes": "9", "leader.replication.throttled.replicas": "0:1,0:2"}
    assert before["retention.ms"] == "1"
    less = altered(after, [ConfigOp("leader.replication.throttled.replicas", Operation.SUBTRACT, "0:1,9:9")])
    assert less["leader.replication.throttled.replicas"] == "0:2"


@pytest.mark.parametrize(
    ("ops", "code"),
    [
        ([("retention.ms", 0, "1"), ("retention.ms", 1, None)], ErrorCode.INVALID_REQUEST),
        ([("retention.ms", 2, "1")], ErrorCode.INVALID_CONFIG),
        ([("retention.ms", 3, "1")], ErrorCode.INVALID_CONFIG),
        ([("retention.ms", 4, "1")], ErrorCode.INVALID_REQUEST),
        ([("retention.ms", 0, None)], ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", 2, "compact")], ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", 3, "delete")], ErrorCode.INVALID_CONFIG),
        ([(f"x{n}", 1, None) for n in range(300)], ErrorCode.INVALID_REQUEST),
    ],
)
def test_operations_that_make_no_sense_are_refused(ops, code) -> None:
    with pytest.raises(Invalid) as caught:
        altered({}, [ConfigOp(*op) for op in ops])
    assert caught.value.code == code


def test_a_description_names_where_each_value_came_from() -> None:
    entries = {e.name: e for e in describe({"retention.ms": "7"}, Settings(log_retention_ms=5, message_max_bytes=8))}
    retention = entries["retention.ms"]
    assert (retention.value, retention.source, retention.type, retention.is_default) == ("7", 1, ConfigType.LONG, False)
    assert [(s.name, s.value, s.source) for s in retention.synonyms] == [
        ("retention.ms", "7", ConfigSource.DYNAMIC_TOPIC_CONFIG),
        ("log.retention.ms", "5", ConfigSource.STATIC_BROKER_CONFIG),
        ("log.retention.ms", "604800000", ConfigSource.DEFAULT_CONFIG),
    ]
    assert (entries["max.message.bytes"].value, entries["max.message.bytes"].source) == ("8", 4)
    assert (entries["segment.ms"].source, entries["segment.ms"].is_default) == (5, True)
    assert list(entries) == NAMES


def test_a_description_of_named_settings_leaves_out_the_unknown() -> None:
    assert [e.name for e in describe({}, Settings(), ["segment.ms", "nonsense"])] == ["segment.ms"]


def test_a_setting_without_effect_says_so() -> None:
    assert all(("Without effect" in s.documentation) == (s.effect == Effect.NONE) for s in DECLARED)
