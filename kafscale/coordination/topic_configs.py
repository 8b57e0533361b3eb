"""Settings of a topic: which exist, what they may be, what they mean when unset. Pure; knows no topic and no protocol.

One line of `DECLARED` per setting. `effect` says what it does here: ACTS (a partition obeys it), ONE_VALUE (only the
value that describes what Kafscale does anyway; another is refused, since accepting it would promise something), or NONE
(kept and shown, so that tools written for Kafka go on working, and without effect because nothing here corresponds to
it). A name that is not declared is refused. Names, types and defaults are those of Kafka 4's TopicConfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

import msgspec

from kafscale.config import Settings
from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
DEFAULT_SEGMENT_BYTES = 128 << 20
MAX_VALUE_CHARS = 256
MAX_OPS = 256
CREATE_TIME = "CreateTime"
LOG_APPEND_TIME = "LogAppendTime"

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?")


class ConfigType(IntEnum):
    """How DescribeConfigs names a type (Kafka's DescribeConfigsResponse.ConfigType)."""

    UNKNOWN = 0
    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7


class ConfigSource(IntEnum):
    """How DescribeConfigs names where a value came from (Kafka's DescribeConfigsResponse.ConfigSource)."""

    DYNAMIC_TOPIC_CONFIG = 1
    STATIC_BROKER_CONFIG = 4
    DEFAULT_CONFIG = 5


class Operation(IntEnum):
    """What IncrementalAlterConfigs does with one setting (Kafka's AlterConfigOp.OpType, KIP-339)."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


class Effect(IntEnum):
    """What a setting does here; see the head of this file."""

    ACTS = 0
    ONE_VALUE = 1
    NONE = 2


class ConfigOp(msgspec.Struct, frozen=True, array_like=True):
    """One change of one setting. `operation` is an `Operation`, as sent, so perhaps out of range."""

    name: str
    operation: int
    value: str | None = None


class TopicConfig(msgspec.Struct, frozen=True):
    """What a partition obeys. -1 stands for no limit in `retention_ms` and `retention_bytes`."""

    retention_ms: int
    retention_bytes: int
    segment_bytes: int
    max_message_bytes: int
    log_append_time: bool
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int


class ConfigSynonym(msgspec.Struct, frozen=True):
    """One of the places that could give a value, strongest first."""

    name: str
    value: str
    source: ConfigSource


class ConfigEntry(msgspec.Struct, frozen=True):
    """A setting of a topic as DescribeConfigs shows it. None is read-only, none is a secret."""

    name: str
    value: str
    source: ConfigSource
    type: ConfigType
    documentation: str
    synonyms: Sequence[ConfigSynonym]

    @property
    def is_default(self) -> bool:
        return self.source != ConfigSource.DYNAMIC_TOPIC_CONFIG


class TopicSetting(msgspec.Struct, frozen=True):
    """A declared setting. `low` and `high` bound numbers; `choices` are all texts allowed; `broker_name` is Kafka's
    name of the broker's default; `setting` the field of `Settings` that gives it."""

    name: str
    type: ConfigType
    default: str
    effect: Effect
    documentation: str
    low: int = 0
    high: int = INT64_MAX
    choices: tuple[str, ...] = ()
    broker_name: str = ""
    setting: str = ""
    refusal: str = ""

    def value_error(self, value: str) -> str | None:
        """Why `value` is none for this setting, or None."""
        text = value.strip()
        if len(value) > MAX_VALUE_CHARS:
            return f"a value has at most {MAX_VALUE_CHARS} characters, this one has {len(value)}"
        match self.type:
            case ConfigType.INT | ConfigType.LONG:
                if not _INTEGER.fullmatch(text):
                    return f"{value!r} is no number"
                if not self.low <= int(text) <= self.high:
                    return f"{text} is not between {self.low} and {self.high}"
            case ConfigType.DOUBLE:
                if not _DECIMAL.fullmatch(text) or not self.low <= float(text) <= self.high:
                    return f"{value!r} is no number between {self.low} and {self.high}"
            case ConfigType.LIST:
                items = split_list(value)
                if self.choices and (not items or not set(items) <= set(self.choices)):
                    return self._choices_error(value)
            case _:
                if self.choices and text not in self.choices:
                    return self._choices_error(value)
        return None

    def _choices_error(self, value: str) -> str:
        return f"{value!r} is not {' or '.join(self.choices)}" + (f": {self.refusal}" if self.refusal else "")


_INT, _LONG, _LIST = ConfigType.INT, ConfigType.LONG, ConfigType.LIST
_ACTS, _ONE, _NONE = Effect.ACTS, Effect.ONE_VALUE, Effect.NONE

DECLARED: tuple[TopicSetting, ...] = (
    TopicSetting(
        "retention.ms",
        _LONG,
        "604800000",
        _ACTS,
        "Age at which records are deleted, in milliseconds; -1 for never.",
        low=-1,
        broker_name="log.retention.ms",
        setting="log_retention_ms",
    ),
    TopicSetting(
        "retention.bytes",
        _LONG,
        "-1",
        _ACTS,
        "Size in bytes above which a partition loses its oldest records; -1 for no limit.",
        low=-1,
        broker_name="log.retention.bytes",
        setting="log_retention_bytes",
    ),
    TopicSetting(
        "segment.bytes",
        _INT,
        str(DEFAULT_SEGMENT_BYTES),
        _ACTS,
        "Size in bytes at which a partition's segment object is complete.",
        low=1 << 20,
        high=INT32_MAX,
        broker_name="log.segment.bytes",
    ),
    TopicSetting(
        "max.message.bytes",
        _INT,
        "1048588",
        _ACTS,
        "Largest record batch accepted, in bytes.",
        high=INT32_MAX,
        broker_name="message.max.bytes",
        setting="message_max_bytes",
    ),
    TopicSetting(
        "message.timestamp.type",
        ConfigType.STRING,
        CREATE_TIME,
        _ACTS,
        "Whether a record keeps the time its producer gave or gets the time of its arrival.",
        choices=(CREATE_TIME, LOG_APPEND_TIME),
        broker_name="log.message.timestamp.type",
    ),
    TopicSetting(
        "message.timestamp.before.max.ms",
        _LONG,
        str(INT64_MAX),
        _ACTS,
        "How far a record's time may lie before the broker's, with CreateTime.",
        broker_name="log.message.timestamp.before.max.ms",
    ),
    TopicSetting(
        "message.timestamp.after.max.ms",
        _LONG,
        "3600000",
        _ACTS,
        "How far a record's time may lie after the broker's, with CreateTime.",
        broker_name="log.message.timestamp.after.max.ms",
    ),
    TopicSetting(
        "cleanup.policy",
        _LIST,
        "delete",
        _ONE,
        "What is done with old records: they are deleted.",
        choices=("delete",),
        broker_name="log.cleanup.policy",
        refusal="compacted topics are not supported yet",
    ),
    TopicSetting(
        "compression.type",
        ConfigType.STRING,
        "producer",
        _ONE,
        "Batches are kept as the producer compressed them.",
        choices=("producer",),
        broker_name="compression.type",
        refusal="batches are kept as they were sent, so set the compression in the producer",
    ),
    TopicSetting(
        "unclean.leader.election.enable",
        ConfigType.BOOLEAN,
        "false",
        _ONE,
        "An owner always has every acknowledged record; there is no unclean election.",
        choices=("false",),
        broker_name="unclean.leader.election.enable",
    ),
    TopicSetting(
        "preallocate",
        ConfigType.BOOLEAN,
        "false",
        _ONE,
        "There are no files to preallocate.",
        choices=("false",),
        broker_name="log.preallocate",
    ),
    TopicSetting(
        "min.insync.replicas",
        _INT,
        "1",
        _NONE,
        "Without effect: an acknowledged record is durable in the object store.",
        low=1,
        high=INT32_MAX,
        broker_name="min.insync.replicas",
    ),
    TopicSetting(
        "segment.ms",
        _LONG,
        "604800000",
        _NONE,
        "Without effect: retention does not wait for a segment to be rolled.",
        low=1,
        broker_name="log.roll.ms",
    ),
    TopicSetting(
        "segment.jitter.ms",
        _LONG,
        "0",
        _NONE,
        "Without effect: segments are not rolled by time.",
        broker_name="log.roll.jitter.ms",
    ),
    TopicSetting(
        "segment.index.bytes",
        _INT,
        "10485760",
        _NONE,
        "Without effect: an index has the size it needs.",
        low=4,
        high=INT32_MAX,
        broker_name="log.index.size.max.bytes",
    ),
    TopicSetting(
        "index.interval.bytes",
        _INT,
        "4096",
        _NONE,
        "Without effect: every batch is indexed.",
        high=INT32_MAX,
        broker_name="log.index.interval.bytes",
    ),
    TopicSetting(
        "flush.messages",
        _LONG,
        str(INT64_MAX),
        _NONE,
        "Without effect: every record is durable before it is acknowledged.",
        low=1,
        broker_name="log.flush.interval.messages",
    ),
    TopicSetting(
        "flush.ms",
        _LONG,
        str(INT64_MAX),
        _NONE,
        "Without effect: every record is durable before it is acknowledged.",
        broker_name="log.flush.interval.ms",
    ),
    TopicSetting(
        "delete.retention.ms",
        _LONG,
        "86400000",
        _NONE,
        "Without effect: it concerns compacted topics.",
        broker_name="log.cleaner.delete.retention.ms",
    ),
    TopicSetting(
        "min.compaction.lag.ms",
        _LONG,
        "0",
        _NONE,
        "Without effect: it concerns compacted topics.",
        broker_name="log.cleaner.min.compaction.lag.ms",
    ),
    TopicSetting(
        "max.compaction.lag.ms",
        _LONG,
        str(INT64_MAX),
        _NONE,
        "Without effect: it concerns compacted topics.",
        low=1,
        broker_name="log.cleaner.max.compaction.lag.ms",
    ),
    TopicSetting(
        "min.cleanable.dirty.ratio",
        ConfigType.DOUBLE,
        "0.5",
        _NONE,
        "Without effect: it concerns compacted topics.",
        high=1,
        broker_name="log.cleaner.min.cleanable.ratio",
    ),
    TopicSetting(
        "file.delete.delay.ms",
        _LONG,
        "60000",
        _NONE,
        "Without effect: what may be deleted is decided by what manifests name.",
        broker_name="log.segment.delete.delay.ms",
    ),
    TopicSetting(
        "leader.replication.throttled.replicas",
        _LIST,
        "",
        _NONE,
        "Without effect: nothing is replicated between brokers.",
    ),
    TopicSetting(
        "follower.replication.throttled.replicas",
        _LIST,
        "",
        _NONE,
        "Without effect: nothing is replicated between brokers.",
    ),
)

BY_NAME: Mapping[str, TopicSetting] = {setting.name: setting for setting in DECLARED}


def split_list(value: str) -> list[str]:
    """The items of a LIST value: separated by commas, trimmed, none empty."""
    return [item for item in (part.strip() for part in value.split(",")) if item]


def effective(configs: Mapping[str, str], settings: Settings) -> TopicConfig:
    """What a partition of a topic with these `configs` obeys on a broker with these settings."""

    def number(name: str) -> int:
        return int(_value(BY_NAME[name], configs, settings))

    return TopicConfig(
        retention_ms=number("retention.ms"),
        retention_bytes=number("retention.bytes"),
        segment_bytes=number("segment.bytes"),
        max_message_bytes=number("max.message.bytes"),
        log_append_time=_value(BY_NAME["message.timestamp.type"], configs, settings).strip() == LOG_APPEND_TIME,
        timestamp_before_max_ms=number("message.timestamp.before.max.ms"),
        timestamp_after_max_ms=number("message.timestamp.after.max.ms"),
    )


def validated(configs: Mapping[str, str | None]) -> dict[str, str]:
    """A full set of settings, checked. Raises Invalid(INVALID_CONFIG)."""
    for name, value in configs.items():
        _check(name, value)
    return {name: value for name, value in configs.items() if value is not None}


def altered(configs: Mapping[str, str], ops: Sequence[ConfigOp]) -> dict[str, str]:
    """`configs` after the operations of one IncrementalAlterConfigs resource. Raises Invalid."""
    names = [op.name for op in ops]
    if len(names) > MAX_OPS:
        raise Invalid(ErrorCode.INVALID_REQUEST, f"a topic has no {len(names)} settings to change")
    if len(set(names)) != len(names):
        raise Invalid(ErrorCode.INVALID_REQUEST, "a setting is named twice in one request")
    result = dict(configs)
    for op in ops:
        if op.operation == Operation.DELETE:
            _declared(op.name)
            result.pop(op.name, None)
            continue
        if op.operation == Operation.SET:
            value = op.value
        elif op.operation in (Operation.APPEND, Operation.SUBTRACT):
            value = _changed_list(op, result)
        else:
            raise Invalid(ErrorCode.INVALID_REQUEST, f"there is no operation {op.operation} on a setting")
        result[op.name] = _check(op.name, value)
    return result


def describe(configs: Mapping[str, str], settings: Settings, names: Iterable[str] | None = None) -> list[ConfigEntry]:
    """Settings of a topic as DescribeConfigs shows them: all, or those of `names` that exist."""
    wanted = DECLARED if names is None else [BY_NAME[name] for name in names if name in BY_NAME]
    return [_entry(setting, configs, settings) for setting in wanted]


def _entry(setting: TopicSetting, configs: Mapping[str, str], settings: Settings) -> ConfigEntry:
    synonyms = []
    if setting.name in configs:
        synonyms.append(ConfigSynonym(setting.name, configs[setting.name], ConfigSource.DYNAMIC_TOPIC_CONFIG))
    broker_name = setting.broker_name or setting.name
    if setting.setting and (given := str(getattr(settings, setting.setting))) != setting.default:
        synonyms.append(ConfigSynonym(broker_name, given, ConfigSource.STATIC_BROKER_CONFIG))
    synonyms.append(ConfigSynonym(broker_name, setting.default, ConfigSource.DEFAULT_CONFIG))
    strongest = synonyms[0]
    return ConfigEntry(
        setting.name, strongest.value, strongest.source, setting.type, setting.documentation, tuple(synonyms)
    )


def _value(setting: TopicSetting, configs: Mapping[str, str], settings: Settings) -> str:
    given = configs.get(setting.name)
    if given is not None:
        return given
    return str(getattr(settings, setting.setting)) if setting.setting else setting.default


def _declared(name: str) -> TopicSetting:
    setting = BY_NAME.get(name)
    if setting is None:
        raise Invalid(ErrorCode.INVALID_CONFIG, f"unknown topic setting {name[:249]!r}")
    return setting


def _check(name: str, value: str | None) -> str:
    setting = _declared(name)
    if value is None:
        raise Invalid(ErrorCode.INVALID_CONFIG, f"topic setting {name} can't be null")
    complaint = setting.value_error(value)
    if complaint is not None:
        raise Invalid(ErrorCode.INVALID_CONFIG, f"topic setting {name}: {complaint}")
    return value


def _changed_list(op: ConfigOp, configs: Mapping[str, str]) -> str:
    setting = _declared(op.name)
    verb = Operation(op.operation).name
    if setting.type != ConfigType.LIST:
        raise Invalid(ErrorCode.INVALID_CONFIG, f"topic setting {op.name} is no list, so {verb} does not apply")
    if op.value is None:
        raise Invalid(ErrorCode.INVALID_CONFIG, f"topic setting {op.name} can't be null")
    items = split_list(configs.get(op.name, setting.default))
    named = split_list(op.value)
    if op.operation == Operation.APPEND:
        items += [item for item in dict.fromkeys(named) if item not in items]
    else:
        items = [item for item in items if item not in named]
    return ",".join(items)
