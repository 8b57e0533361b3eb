"""DescribeConfigs (key 32), v1-4: settings of topics and of this broker, where they come from, and what they mean.

A broker's settings are read-only and are shown twice: under Kafka's names where there is one with that meaning, for
tools that look for it, and all of them as `kafscale.…`. A secret's value is never shown. Only this broker's own
settings are known here; its workers are nodes of one broker. Left out: groups, client metrics, broker loggers;
changing a broker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from kafscale.config import DECLARATIONS, Declaration, Settings
from kafscale.coordination import topic_configs
from kafscale.coordination.assignment import NODES_PER_BROKER
from kafscale.coordination.cluster import topic_name_error
from kafscale.coordination.topic_configs import ConfigSource, ConfigType
from kafscale.errors import Invalid
from kafscale.protocol.acls import CLUSTER_NAME
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
)
from kafscale.security.needs import (
    DESCRIBE_CONFIGS_OF_CLUSTER,
    DESCRIBE_CONFIGS_OF_GROUP,
    DESCRIBE_CONFIGS_OF_TOPIC,
    Need,
)
from workers.context import Context, Request
from workers.errors import code_of
from workers.handlers.alter_configs import ConfigResourceType, denial

# Kafka's name of a broker's setting → ours. Those that are defaults of topics' settings are not repeated here.
KAFKA_NAMES: Final = {
    "auto.create.topics.enable": "auto_create_topics",
    "broker.id": "broker_id",
    "connections.max.idle.ms": "connections_idle_ms",
    "delete.topic.enable": "allow_admin_apis",
    "fetch.max.bytes": "fetch_max_bytes",
    "group.initial.rebalance.delay.ms": "group_initial_rebalance_delay_ms",
    "group.max.session.timeout.ms": "group_max_session_timeout_ms",
    "group.max.size": "group_max_size",
    "group.min.session.timeout.ms": "group_min_session_timeout_ms",
    "log.dirs": "data_dir",
    "max.connections": "connections_max",
    "num.partitions": "auto_create_partitions",
    "offsets.retention.minutes": "offsets_retention_minutes",
    "offsets.topic.num.partitions": "offsets_topic_partitions",
    "socket.request.max.bytes": "socket_request_max_bytes",
}
# What has no setting here and only one answer.
FIXED: Final = {
    "default.replication.factor": (ConfigType.INT, "1", "One replica: what is acknowledged is durable."),
    "offsets.topic.replication.factor": (ConfigType.SHORT, "1", "One replica: what is acknowledged is durable."),
}
NEEDS_TO_DESCRIBE: Final[Mapping[int, tuple[Need, str | None, ErrorCode]]] = MappingProxyType(
    {
        ConfigResourceType.TOPIC: (DESCRIBE_CONFIGS_OF_TOPIC, None, ErrorCode.TOPIC_AUTHORIZATION_FAILED),
        ConfigResourceType.GROUP: (DESCRIBE_CONFIGS_OF_GROUP, None, ErrorCode.GROUP_AUTHORIZATION_FAILED),
        **dict.fromkeys(
            (ConfigResourceType.BROKER, ConfigResourceType.BROKER_LOGGER, ConfigResourceType.CLIENT_METRICS),
            (DESCRIBE_CONFIGS_OF_CLUSTER, CLUSTER_NAME, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
        ),
    }
)
_TYPES: Final = {"int": ConfigType.LONG, "bool": ConfigType.BOOLEAN}


class _Entry(NamedTuple):
    """A broker's setting as it is shown."""

    name: str
    value: str | None
    source: ConfigSource
    type: ConfigType
    documentation: str
    is_sensitive: bool = False


def handle(context: Context, request: Request, message: DescribeConfigsRequest) -> DescribeConfigsResponse:
    # A request that names a resource a thousand times gets it once.
    wanted = {(resource.resource_type, resource.resource_name): resource for resource in message.resources}
    return DescribeConfigsResponse(
        results=[_described(context, request, message, resource) for resource in wanted.values()]
    )


def failed(message: DescribeConfigsRequest, code: int, text: str) -> DescribeConfigsResponse:
    """The error for every resource."""
    return DescribeConfigsResponse(results=[_refused(resource, code, text) for resource in message.resources])


def _described(
    context: Context, request: Request, message: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> DescribeConfigsResult:
    denied = denial(request, resource.resource_type, resource.resource_name, NEEDS_TO_DESCRIBE)
    if denied is not None:
        return _refused(resource, *denied)
    try:
        if resource.resource_type == ConfigResourceType.TOPIC:
            configs = _of_topic(context, message, resource)
        elif resource.resource_type == ConfigResourceType.BROKER:
            configs = _of_broker(context, message, resource)
        else:
            text = f"resources of type {resource.resource_type} have no settings here"
            raise Invalid(ErrorCode.INVALID_REQUEST, text)
    except Invalid as error:
        code, text = code_of(error)
        return _refused(resource, code, text)
    return DescribeConfigsResult(
        error_message=None,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
        configs=configs,
    )


def _refused(resource: DescribeConfigsResource, code: int, text: str | None) -> DescribeConfigsResult:
    return DescribeConfigsResult(
        error_code=code,
        error_message=text,
        resource_type=resource.resource_type,
        resource_name=resource.resource_name,
    )


def _of_topic(
    context: Context, message: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> list[DescribeConfigsResourceResult]:
    name = resource.resource_name
    topic = context.cluster.topic(name)
    if topic is None:
        complaint = topic_name_error(name)
        if complaint is not None:
            raise Invalid(ErrorCode.INVALID_TOPIC_EXCEPTION, complaint)
        raise Invalid(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
    # Null and none at all both ask for all.
    entries = topic_configs.describe(topic.configs, context.settings, resource.configuration_keys or None)
    return [
        DescribeConfigsResourceResult(
            name=entry.name,
            value=entry.value,
            config_source=entry.source,
            synonyms=[DescribeConfigsSynonym(name=s.name, value=s.value, source=s.source) for s in entry.synonyms]
            if message.include_synonyms
            else (),
            config_type=entry.type,
            documentation=entry.documentation if message.include_documentation else None,
        )
        for entry in entries
    ]


def _of_broker(
    context: Context, message: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> list[DescribeConfigsResourceResult]:
    name = resource.resource_name
    if not name:
        # Kafka's dynamic defaults for the whole cluster: there are none.
        return []
    own = range(context.settings.broker_id * NODES_PER_BROKER, (context.settings.broker_id + 1) * NODES_PER_BROKER)
    if not (name.isascii() and name.isdigit() and len(name) < 11 and int(name) in own):
        text = f"settings of node {name[:20]!r} are known to that node alone; this is node {context.cluster.node_id}"
        raise Invalid(ErrorCode.INVALID_REQUEST, text)
    keys = set(resource.configuration_keys or ())
    return [
        _broker_result(message, entry) for entry in _broker_entries(context.settings) if not keys or entry.name in keys
    ]


def _broker_result(message: DescribeConfigsRequest, entry: _Entry) -> DescribeConfigsResourceResult:
    synonyms: Sequence[DescribeConfigsSynonym] = ()
    if message.include_synonyms:
        synonyms = [DescribeConfigsSynonym(name=entry.name, value=entry.value, source=entry.source)]
    return DescribeConfigsResourceResult(
        name=entry.name,
        value=entry.value,
        read_only=True,
        config_source=entry.source,
        is_sensitive=entry.is_sensitive,
        synonyms=synonyms,
        config_type=entry.type,
        documentation=entry.documentation if message.include_documentation else None,
    )


def _broker_entries(settings: Settings) -> Iterator[_Entry]:
    own = {declaration.name: entry for declaration, entry in _own_entries(settings)}
    for kafka_name, name in KAFKA_NAMES.items():
        yield own[name]._replace(name=kafka_name)
    for kafka_name, (kind, value, documentation) in FIXED.items():
        yield _Entry(kafka_name, value, ConfigSource.DEFAULT_CONFIG, kind, documentation)
    for entry in topic_configs.describe({}, settings):
        strongest = entry.synonyms[0]
        if strongest.name not in KAFKA_NAMES:
            yield _Entry(strongest.name, strongest.value, strongest.source, entry.type, entry.documentation)
    for name, shown in own.items():
        yield shown._replace(name="kafscale." + name.replace("_", "."))


def _own_entries(settings: Settings) -> Iterator[tuple[Declaration, _Entry]]:
    for declaration in DECLARATIONS:
        value = getattr(settings, declaration.name)
        is_default = value == declaration.default
        is_secret = declaration.setting.secret
        yield (
            declaration,
            _Entry(
                declaration.name,
                None if is_secret or value is None else str(value).lower() if isinstance(value, bool) else str(value),
                ConfigSource.DEFAULT_CONFIG if is_default else ConfigSource.STATIC_BROKER_CONFIG,
                _TYPES.get(declaration.kind, ConfigType.STRING),
                declaration.setting.help,
                is_secret,
            ),
        )
