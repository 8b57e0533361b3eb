"""Kafka's words for authorization: operations, kinds of resources, patterns, and the bindings of them that are ACLs.

Numbers and rules are those of `org.apache.kafka.common.acl` and `common.resource`. This file says what a binding is,
whether one may be stored, and which of them a filter means. Who is allowed what is decided elsewhere.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import Final

import msgspec

WILDCARD: Final = "*"
CLUSTER_NAME: Final = "kafka-cluster"
"""The only name that a resource of type CLUSTER has."""

# Principals, hosts and names come from clients; what is kept of them must have a bound.
TEXT_BYTES_MAX: Final = 32_767


class Operation(IntEnum):
    """Kafka's AclOperation."""

    UNKNOWN = 0
    ANY = 1
    ALL = 2
    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    CLUSTER_ACTION = 9
    DESCRIBE_CONFIGS = 10
    ALTER_CONFIGS = 11
    IDEMPOTENT_WRITE = 12
    CREATE_TOKENS = 13
    DESCRIBE_TOKENS = 14
    TWO_PHASE_COMMIT = 15


class ResourceType(IntEnum):
    """Kafka's ResourceType."""

    UNKNOWN = 0
    ANY = 1
    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5
    DELEGATION_TOKEN = 6
    USER = 7


class PatternType(IntEnum):
    """Kafka's PatternType. Only LITERAL and PREFIXED can be stored; the others are for filters."""

    UNKNOWN = 0
    ANY = 1
    MATCH = 2
    LITERAL = 3
    PREFIXED = 4


class Permission(IntEnum):
    """Kafka's AclPermissionType."""

    UNKNOWN = 0
    ANY = 1
    DENY = 2
    ALLOW = 3


class AclBinding(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """One stored rule: may `principal`, from `host`, do `operation` on the resources of this pattern?"""

    resource_type: int
    pattern_type: int
    name: str
    principal: str
    host: str
    operation: int
    permission: int

    def __str__(self) -> str:
        permission, operation = Permission(self.permission).name, Operation(self.operation).name
        resource, pattern = ResourceType(self.resource_type).name, PatternType(self.pattern_type).name
        return f"{permission} {operation} on {resource}:{pattern}:{self.name} to {self.principal} from host {self.host}"


class AclFilter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which bindings are meant. None, and ANY, mean all; the pattern type MATCH all that apply to the name."""

    resource_type: int = ResourceType.ANY
    pattern_type: int = PatternType.ANY
    name: str | None = None
    principal: str | None = None
    host: str | None = None
    operation: int = Operation.ANY
    permission: int = Permission.ANY

    def matches(self, binding: AclBinding) -> bool:
        """Kafka's AclBindingFilter.matches."""
        return (
            self.resource_type in (ResourceType.ANY, binding.resource_type)
            and self._matches_pattern(binding)
            and self.principal in (None, binding.principal)
            and self.host in (None, binding.host)
            and self.operation in (Operation.ANY, binding.operation)
            and self.permission in (Permission.ANY, binding.permission)
        )

    def _matches_pattern(self, binding: AclBinding) -> bool:
        if self.pattern_type not in (PatternType.ANY, PatternType.MATCH, binding.pattern_type):
            return False
        if self.name is None:
            return True
        if self.pattern_type != PatternType.MATCH:
            return self.name == binding.name
        if binding.pattern_type == PatternType.PREFIXED:
            return self.name.startswith(binding.name)
        return binding.name in (self.name, WILDCARD)


_STORABLE_OPERATIONS: Final = frozenset(Operation) - {Operation.UNKNOWN, Operation.ANY}
_STORABLE_RESOURCES: Final = frozenset(ResourceType) - {ResourceType.UNKNOWN, ResourceType.ANY}
_FILTER_FIELDS: Final = (
    ("resource_type", frozenset(ResourceType) - {ResourceType.UNKNOWN}),
    ("pattern_type", frozenset(PatternType) - {PatternType.UNKNOWN}),
    ("operation", frozenset(Operation) - {Operation.UNKNOWN}),
    ("permission", frozenset(Permission) - {Permission.UNKNOWN}),
)


def binding_complaint(binding: AclBinding) -> str | None:
    """Why the binding may not be stored (AclControlManager.validateNewAcl and AclApis say the same), or None."""
    if binding.resource_type not in _STORABLE_RESOURCES:
        return f"Invalid resource type {binding.resource_type}"
    if binding.pattern_type not in (PatternType.LITERAL, PatternType.PREFIXED):
        return f"Invalid pattern type {binding.pattern_type}"
    if binding.operation not in _STORABLE_OPERATIONS:
        return f"Invalid operation {binding.operation}"
    if binding.permission not in (Permission.ALLOW, Permission.DENY):
        return f"Invalid permission type {binding.permission}"
    if not binding.name:
        return "Invalid empty resource name"
    if binding.resource_type == ResourceType.CLUSTER and binding.name != CLUSTER_NAME:
        return f"The only valid name for the CLUSTER resource is {CLUSTER_NAME}"
    if ":" not in binding.principal:
        return (
            f"Could not parse principal from `{binding.principal[:80]}` (a colon must separate the principal's type "
            "from its name, as in User:alice)"
        )
    if max(len(binding.name), len(binding.principal), len(binding.host)) > TEXT_BYTES_MAX:
        return f"A name, principal or host may have {TEXT_BYTES_MAX} characters at most"
    return None


def filter_complaint(wanted: AclFilter) -> str | None:
    """Why the filter means nothing, or None."""
    for field, known in _FILTER_FIELDS:
        value = getattr(wanted, field)
        if value not in known:
            return f"The filter contains an unknown {field.replace('_', ' ')}, {value}"
    return None


def normal_host(host: str) -> str:
    """The one spelling of an address that rules and peers are compared in: IPv6 in its short form, and an IPv4 address
    that came in through an IPv6 socket as IPv4. What is no address stays as it is, and matches nobody."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or address)
