"""What an administrator's request names, and what came of each thing: read off its message and its answer.

One function for each API that changes something. They name topics, groups and the like, with settings as they were to
be; values of settings whose names speak of secrets are left out, and no credential is ever read. Pure.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from kafscale.protocol.acls import CLUSTER_NAME, Operation, PatternType, Permission, ResourceType
from kafscale.protocol.api import ApiKey
from kafscale.security.audit_event import RESOURCES_MAX, Resource

# More than are shown, so that the number left out is known without making them all.
Read = Callable[[Any, Any], Iterable[Resource]]

_SECRET: Final = re.compile(r"(?i)password|secret|token|credential|(^|[._])key$")
_CONFIG_KINDS: Final = {2: "topic", 4: "broker", 8: "broker_logger", 16: "client_metrics", 32: "group"}
_CONFIG_VERBS: Final = {0: "set", 1: "delete", 2: "append", 3: "subtract"}


def resources_of(key: int, message: Any, response: Any) -> tuple[list[Resource], int]:
    """Up to RESOURCES_MAX things that the request names, and how many more there are. Of an API without a function
    here: none."""
    read = READERS.get(key)
    if read is None or response is None:
        return [], 0
    found = iter(read(message, response))
    shown = list(itertools.islice(found, RESOURCES_MAX))
    return shown, sum(1 for _ in found)


def _setting(name: str, value: object, verb: str = "") -> str:
    shown = "…" if value is not None and _SECRET.search(name) else value
    return f"{verb}{' ' if verb else ''}{name}" if value is None else f"{verb}{' ' if verb else ''}{name}={shown}"


def _settings(configs: Sequence[Any], verbs: bool = False) -> str:
    parts = []
    for config in configs[:16]:
        operation = getattr(config, "config_operation", 0)
        verb = _CONFIG_VERBS.get(operation, str(operation)) if verbs else ""
        parts.append(_setting(config.name, config.value, verb))
    if len(configs) > 16:
        parts.append(f"and {len(configs) - 16} more")
    return ", ".join(parts)


def _create_topics(message: Any, response: Any) -> Iterable[Resource]:
    wanted = {topic.name: topic for topic in message.topics}
    for result in response.topics:
        topic = wanted.get(result.name)
        detail = ""
        if topic is not None:
            parts = [f"partitions={topic.num_partitions}", _settings(topic.configs)]
            detail = ", ".join(part for part in parts if part)
        yield Resource("topic", result.name, detail, result.error_code)


def _delete_topics(message: Any, response: Any) -> Iterable[Resource]:
    for result in response.responses:
        name = result.name if result.name is not None else result.topic_id.hex()
        yield Resource("topic", name, error_code=result.error_code)


def _delete_records(message: Any, response: Any) -> Iterable[Resource]:
    offsets = {
        (topic.name, partition.partition_index): partition.offset
        for topic in message.topics
        for partition in topic.partitions
    }
    for topic in response.topics:
        for partition in topic.partitions:
            offset = offsets.get((topic.name, partition.partition_index))
            name = f"{topic.name}-{partition.partition_index}"
            yield Resource("partition", name, f"records before offset {offset}", partition.error_code)


def _create_partitions(message: Any, response: Any) -> Iterable[Resource]:
    counts = {topic.name: topic.count for topic in message.topics}
    for result in response.results:
        yield Resource("topic", result.name, f"partitions={counts.get(result.name)}", result.error_code)


def _alter_configs(message: Any, response: Any) -> Iterable[Resource]:
    codes = {(one.resource_type, one.resource_name): one.error_code for one in response.responses}
    for wanted in message.resources:
        is_incremental = bool(wanted.configs) and hasattr(wanted.configs[0], "config_operation")
        kind = _CONFIG_KINDS.get(wanted.resource_type, str(wanted.resource_type))
        code = codes.get((wanted.resource_type, wanted.resource_name), 0)
        yield Resource(kind, wanted.resource_name, _settings(wanted.configs, is_incremental), code)


def _name(kinds: type[Any], number: int) -> str:
    try:
        return str(kinds(number).name)
    except ValueError:
        return str(number)


def _acl(of: Any) -> str:
    return (
        f"{_name(Permission, of.permission_type)} {_name(Operation, of.operation)} to {of.principal} from {of.host}, "
        f"{_name(PatternType, getattr(of, 'resource_pattern_type', getattr(of, 'pattern_type', 0)))}"
    )


def _create_acls(message: Any, response: Any) -> Iterable[Resource]:
    for wanted, result in zip(message.creations, response.results, strict=False):
        kind = _name(ResourceType, wanted.resource_type).lower()
        yield Resource(kind, wanted.resource_name, f"created: {_acl(wanted)}", result.error_code)


def _delete_acls(message: Any, response: Any) -> Iterable[Resource]:
    for result in response.filter_results:
        if result.error_code:
            yield Resource("cluster", CLUSTER_NAME, "a filter", result.error_code)
        for deleted in result.matching_acls:
            kind = _name(ResourceType, deleted.resource_type).lower()
            yield Resource(kind, deleted.resource_name, f"deleted: {_acl(deleted)}", deleted.error_code)


def _delete_groups(message: Any, response: Any) -> Iterable[Resource]:
    for result in response.results:
        yield Resource("group", result.group_id, error_code=result.error_code)


def _offset_delete(message: Any, response: Any) -> Iterable[Resource]:
    yield Resource("group", message.group_id, "committed offsets", response.error_code)
    for topic in response.topics:
        for partition in topic.partitions:
            yield Resource("partition", f"{topic.name}-{partition.partition_index}", error_code=partition.error_code)


def _alter_client_quotas(message: Any, response: Any) -> Iterable[Resource]:
    for wanted, result in zip(message.entries, response.entries, strict=False):
        name = ", ".join(
            f"{part.entity_type} {'<default>' if part.entity_name is None else part.entity_name}"
            for part in wanted.entity
        )
        changes = (f"remove {op.key}" if op.remove else f"{op.key}={op.value:g}" for op in wanted.ops[:16])
        yield Resource("quota", name, ", ".join(changes), result.error_code)


def _alter_scram_credentials(message: Any, response: Any) -> Iterable[Resource]:
    wanted = {one.name: f"delete {_mechanism(one.mechanism)}" for one in message.deletions}
    wanted |= {one.name: f"set {_mechanism(one.mechanism)}, {one.iterations} iterations" for one in message.upsertions}
    for result in response.results:
        yield Resource("user", result.user, wanted.get(result.user, ""), result.error_code)


def _mechanism(number: int) -> str:
    return {1: "SCRAM-SHA-256", 2: "SCRAM-SHA-512"}.get(number, f"mechanism {number}")


READERS: Final[Mapping[int, Read]] = MappingProxyType(
    {
        ApiKey.CREATE_TOPICS: _create_topics,
        ApiKey.DELETE_TOPICS: _delete_topics,
        ApiKey.DELETE_RECORDS: _delete_records,
        ApiKey.CREATE_PARTITIONS: _create_partitions,
        ApiKey.ALTER_CONFIGS: _alter_configs,
        ApiKey.INCREMENTAL_ALTER_CONFIGS: _alter_configs,
        ApiKey.CREATE_ACLS: _create_acls,
        ApiKey.DELETE_ACLS: _delete_acls,
        ApiKey.DELETE_GROUPS: _delete_groups,
        ApiKey.OFFSET_DELETE: _offset_delete,
        ApiKey.ALTER_CLIENT_QUOTAS: _alter_client_quotas,
        ApiKey.ALTER_USER_SCRAM_CREDENTIALS: _alter_scram_credentials,
    }
)
