"""What a request needs in order to be served, for every API, and who decides whether it has it.

The table follows Kafka's (KafkaApis and ControllerApis; the protocol guide's list of operations and resources).
Dispatch asks once per request, before a handler runs; an API without a row is denied. Knows no connection, no message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode

if TYPE_CHECKING:
    from workers.context import Request


class Operation(IntEnum):
    """Kafka's AclOperation, with its numbers."""

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


class ResourceType(IntEnum):
    """Kafka's ResourceType, with its numbers."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5


@dataclass(frozen=True, slots=True)
class Requirement:
    """An operation on a kind of resource. `denied` is the error code of a request that may not."""

    operation: Operation
    resource: ResourceType
    denied: ErrorCode


class Open:
    """The row of an API that anyone may call."""


Row = Requirement | Open

_CODE_OF: Final = {
    ResourceType.TOPIC: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
    ResourceType.GROUP: ErrorCode.GROUP_AUTHORIZATION_FAILED,
    ResourceType.CLUSTER: ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
    ResourceType.TRANSACTIONAL_ID: ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}


def _needs(operation: Operation, resource: ResourceType) -> Requirement:
    return Requirement(operation, resource, _CODE_OF[resource])


def _rows() -> dict[ApiKey, Row]:
    topic, group, cluster = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.CLUSTER
    return {
        ApiKey.PRODUCE: _needs(Operation.WRITE, topic),
        ApiKey.FETCH: _needs(Operation.READ, topic),
        ApiKey.LIST_OFFSETS: _needs(Operation.DESCRIBE, topic),
        ApiKey.METADATA: _needs(Operation.DESCRIBE, topic),
        ApiKey.OFFSET_COMMIT: _needs(Operation.READ, group),
        ApiKey.OFFSET_FETCH: _needs(Operation.DESCRIBE, group),
        ApiKey.FIND_COORDINATOR: _needs(Operation.DESCRIBE, group),
        ApiKey.JOIN_GROUP: _needs(Operation.READ, group),
        ApiKey.HEARTBEAT: _needs(Operation.READ, group),
        ApiKey.LEAVE_GROUP: _needs(Operation.READ, group),
        ApiKey.SYNC_GROUP: _needs(Operation.READ, group),
        ApiKey.DESCRIBE_GROUPS: _needs(Operation.DESCRIBE, group),
        ApiKey.LIST_GROUPS: _needs(Operation.DESCRIBE, cluster),
        ApiKey.SASL_HANDSHAKE: Open(),
        ApiKey.API_VERSIONS: Open(),
        ApiKey.CREATE_TOPICS: _needs(Operation.CREATE, topic),
        ApiKey.DELETE_TOPICS: _needs(Operation.DELETE, topic),
        ApiKey.DELETE_RECORDS: _needs(Operation.DELETE, topic),
        ApiKey.INIT_PRODUCER_ID: _needs(Operation.IDEMPOTENT_WRITE, cluster),
        ApiKey.OFFSET_FOR_LEADER_EPOCH: _needs(Operation.DESCRIBE, topic),
        ApiKey.DESCRIBE_CONFIGS: _needs(Operation.DESCRIBE_CONFIGS, topic),
        ApiKey.ALTER_CONFIGS: _needs(Operation.ALTER_CONFIGS, topic),
        ApiKey.DESCRIBE_LOG_DIRS: _needs(Operation.DESCRIBE, cluster),
        ApiKey.SASL_AUTHENTICATE: Open(),
        ApiKey.CREATE_PARTITIONS: _needs(Operation.ALTER, topic),
        ApiKey.DELETE_GROUPS: _needs(Operation.DELETE, group),
        ApiKey.INCREMENTAL_ALTER_CONFIGS: _needs(Operation.ALTER_CONFIGS, topic),
        ApiKey.OFFSET_DELETE: _needs(Operation.DELETE, group),
        # Open in Kafka's code, though its documentation says Describe Cluster; brokers are told to anyone anyway.
        ApiKey.DESCRIBE_CLUSTER: Open(),
    }


REQUIREMENTS: Final[Mapping[ApiKey, Row]] = MappingProxyType(_rows())


def _bits(*operations: Operation) -> int:
    return sum(1 << operation for operation in operations)


# What can be done to each kind of resource, as the bit field in which clients are told what they may do (KIP-430).
SUPPORTED_OPERATIONS: Final[Mapping[ResourceType, int]] = MappingProxyType(
    {
        ResourceType.TOPIC: _bits(
            Operation.READ,
            Operation.WRITE,
            Operation.CREATE,
            Operation.DELETE,
            Operation.ALTER,
            Operation.DESCRIBE,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
        ),
        ResourceType.GROUP: _bits(
            Operation.READ,
            Operation.DELETE,
            Operation.DESCRIBE,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
        ),
        ResourceType.CLUSTER: _bits(
            Operation.CREATE,
            Operation.ALTER,
            Operation.DESCRIBE,
            Operation.CLUSTER_ACTION,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
            Operation.IDEMPOTENT_WRITE,
        ),
    }
)
# What that bit field says where it was not asked for.
NOT_ASKED_FOR: Final = -(2**31)


class Authorizer(Protocol):
    """Decides. Must not block and must not raise: what can't be decided is denied."""

    def allows(self, request: Request, requirement: Requirement) -> bool: ...


class AllowAll:
    """For a broker on which no authorization is set up."""

    def allows(self, request: Request, requirement: Requirement) -> bool:
        return True
