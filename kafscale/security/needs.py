"""What can be needed: each thing that requests ask for, in Kafka's words and in KafScale's.

Kafka's side is an operation on a kind of resource. KafScale's documents know six actions, so its side says which of
them grant the same thing, and how. Which API needs what is said in `workers/authorization.py`; this file knows no API.
The numbers of operations and actions are also the numbers of bits in the masks that the snapshot keeps.

KafScale v1.5 asks for less than Kafka does. Where it asks, the same action is asked for here. What it leaves open is
closed without giving anybody a right that he had not:

- A topic is shown to whoever may produce to it, fetch from it or administer it; a group is found by whoever has any
  right to it. A topic may be made by use by whoever may produce to it, or administer it.
- Topics are administered by `admin` on the cluster, as in KafScale, or on the topic by its name, if the rule says
  `admin` in so many words: a rule for the action `*` on topics still gives no more than produce and fetch. A deny rule
  that matches either stops it.
- Nothing in a document makes a client a broker (CLUSTER_ACTION).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final

from kafscale.protocol.acls import Operation, ResourceType


class Action(IntEnum):
    """KafScale's actions, as bits. TOPIC_ADMIN is none that a document names: it is `admin`, where a rule says so and
    not `*`, on topics."""

    PRODUCE = 0
    FETCH = 1
    GROUP_READ = 2
    GROUP_WRITE = 3
    GROUP_ADMIN = 4
    ADMIN = 5
    TOPIC_ADMIN = 6


ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {action.name.lower(): action for action in Action if action is not Action.TOPIC_ADMIN}
)
# KafScale knows the first three; a rule may name the fourth too, and one for any resource includes it.
RESOURCES: Final[Mapping[str, ResourceType]] = MappingProxyType(
    {
        kind.name.lower(): kind
        for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.CLUSTER, ResourceType.TRANSACTIONAL_ID)
    }
)


def bits(*numbers: int) -> int:
    """The mask with these bits."""
    return sum(1 << number for number in numbers)


ANY_ACTION: Final = bits(*ACTIONS.values())
ALL_OPERATIONS: Final = 1 << Operation.ALL

_IMPLIED_BY: Final = {
    Operation.DESCRIBE: bits(Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER),
    Operation.DESCRIBE_CONFIGS: bits(Operation.ALTER_CONFIGS),
}


def granting(operation: int) -> int:
    """The operations any of which an ALLOW must name to allow `operation` (StandardAuthorizerData)."""
    return 1 << operation | ALL_OPERATIONS | _IMPLIED_BY.get(Operation(operation), 0)


def denying(operation: int) -> int:
    """The operations any of which a DENY must name to deny `operation`: nothing is implied there."""
    return 1 << operation | ALL_OPERATIONS


class Grant(Enum):
    """How KafScale's actions grant a need."""

    ANY = "any"  # One of the actions on the resource.
    ADMIN = "admin"  # Administration: of the cluster, or of the topic by name; a deny of either counts.
    NEVER = "never"  # Nothing that a document says.


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """An operation on a kind of resource. Compared by identity: there is one of each."""

    index: int
    label: str
    operation: Operation
    resource: ResourceType
    # Kafka's side: an operation on the cluster that will do as well.
    or_cluster: Operation | None
    # KafScale's side: which actions on the resource, and whether administration will do as well.
    grant: Grant
    actions: int
    or_admin: bool
    # How it is counted: KafScale's name of the action, or Kafka's of the operation where there is none.
    action_label: str
    grants: int
    denies: int
    grants_on_cluster: int
    denies_on_cluster: int

    def __str__(self) -> str:
        return f"{self.operation.name} on {self.resource.name}"


class _Declaring:
    """Numbers the needs while this file is read."""

    def __init__(self) -> None:
        self.declared: list[Need] = []

    def __call__(
        self,
        operation: Operation,
        resource: ResourceType,
        *actions: Action,
        grant: Grant = Grant.ANY,
        or_cluster: Operation | None = None,
        or_admin: bool = False,
        label: str = "",
    ) -> Need:
        action_label = operation.name.lower() if grant is Grant.NEVER else "admin"
        if actions:
            action_label = actions[0].name.lower()
        need = Need(
            index=len(self.declared),
            label=label or f"{operation.name.lower()}_{resource.name.lower()}",
            operation=operation,
            resource=resource,
            or_cluster=or_cluster,
            grant=grant,
            actions=bits(*actions),
            or_admin=or_admin,
            action_label=action_label,
            grants=granting(operation),
            denies=denying(operation),
            grants_on_cluster=0 if or_cluster is None else granting(or_cluster),
            denies_on_cluster=0 if or_cluster is None else denying(or_cluster),
        )
        self.declared.append(need)
        return need


_need = _Declaring()
_TOPIC, _GROUP, _CLUSTER = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.CLUSTER
_TRANSACTION = ResourceType.TRANSACTIONAL_ID

READ_TOPIC: Final = _need(Operation.READ, _TOPIC, Action.FETCH)
WRITE_TOPIC: Final = _need(Operation.WRITE, _TOPIC, Action.PRODUCE)
DESCRIBE_TOPIC: Final = _need(Operation.DESCRIBE, _TOPIC, Action.FETCH, Action.PRODUCE, or_admin=True)
# KafScale lets only readers ask for offsets. A broker may ask for the epochs of every topic.
DESCRIBE_OFFSETS: Final = _need(Operation.DESCRIBE, _TOPIC, Action.FETCH, label="describe_offsets")
DESCRIBE_EPOCHS: Final = _need(
    Operation.DESCRIBE, _TOPIC, Action.FETCH, or_cluster=Operation.CLUSTER_ACTION, label="describe_epochs"
)
CREATE_TOPIC: Final = _need(Operation.CREATE, _TOPIC, grant=Grant.ADMIN)
CREATE_ANY_TOPIC: Final = _need(
    Operation.CREATE, _TOPIC, grant=Grant.ADMIN, or_cluster=Operation.CREATE, label="create_topic_or_cluster"
)
# By use: the topic that a producer asks for and that isn't there.
CREATE_BY_USE: Final = _need(
    Operation.CREATE, _TOPIC, Action.PRODUCE, or_admin=True, or_cluster=Operation.CREATE, label="create_topic_by_use"
)
DELETE_TOPIC: Final = _need(Operation.DELETE, _TOPIC, grant=Grant.ADMIN)
DELETE_ANY_TOPIC: Final = _need(
    Operation.DELETE, _TOPIC, grant=Grant.ADMIN, or_cluster=Operation.DELETE, label="delete_topic_or_cluster"
)
ALTER_TOPIC: Final = _need(Operation.ALTER, _TOPIC, grant=Grant.ADMIN)
DESCRIBE_CONFIGS_OF_TOPIC: Final = _need(Operation.DESCRIBE_CONFIGS, _TOPIC, Action.FETCH)
ALTER_CONFIGS_OF_TOPIC: Final = _need(Operation.ALTER_CONFIGS, _TOPIC, grant=Grant.ADMIN)

READ_GROUP: Final = _need(Operation.READ, _GROUP, Action.GROUP_WRITE)
DESCRIBE_GROUP: Final = _need(Operation.DESCRIBE, _GROUP, Action.GROUP_READ)
FIND_GROUP: Final = _need(
    Operation.DESCRIBE, _GROUP, Action.GROUP_READ, Action.GROUP_WRITE, Action.GROUP_ADMIN, label="find_group"
)
LIST_GROUP: Final = _need(
    Operation.DESCRIBE, _GROUP, Action.GROUP_READ, or_cluster=Operation.DESCRIBE, label="list_group"
)
DELETE_GROUP: Final = _need(Operation.DELETE, _GROUP, Action.GROUP_ADMIN)
DESCRIBE_CONFIGS_OF_GROUP: Final = _need(Operation.DESCRIBE_CONFIGS, _GROUP, Action.GROUP_READ)
ALTER_CONFIGS_OF_GROUP: Final = _need(Operation.ALTER_CONFIGS, _GROUP, Action.GROUP_ADMIN)

CREATE_CLUSTER: Final = _need(Operation.CREATE, _CLUSTER, Action.ADMIN)
ALTER_CLUSTER: Final = _need(Operation.ALTER, _CLUSTER, Action.ADMIN)
DESCRIBE_CLUSTER: Final = _need(Operation.DESCRIBE, _CLUSTER, Action.ADMIN)
DESCRIBE_CONFIGS_OF_CLUSTER: Final = _need(Operation.DESCRIBE_CONFIGS, _CLUSTER, Action.ADMIN)
ALTER_CONFIGS_OF_CLUSTER: Final = _need(Operation.ALTER_CONFIGS, _CLUSTER, Action.ADMIN)
CLUSTER_ACTION: Final = _need(Operation.CLUSTER_ACTION, _CLUSTER, grant=Grant.NEVER)
IDEMPOTENT_WRITE: Final = _need(Operation.IDEMPOTENT_WRITE, _CLUSTER, grant=Grant.NEVER)

WRITE_TRANSACTION: Final = _need(Operation.WRITE, _TRANSACTION, Action.PRODUCE)
DESCRIBE_TRANSACTION: Final = _need(Operation.DESCRIBE, _TRANSACTION, Action.PRODUCE)

NEEDS: Final[tuple[Need, ...]] = tuple(_need.declared)
del _need

# The need that stands for each operation on each kind of resource, and so for a bit of the fields in which clients are
# told what they may do (KIP-430, AclEntry.supportedOperations).
SUPPORTED: Final[Mapping[ResourceType, tuple[Need, ...]]] = MappingProxyType(
    {
        _TOPIC: (
            READ_TOPIC,
            WRITE_TOPIC,
            CREATE_TOPIC,
            DELETE_TOPIC,
            ALTER_TOPIC,
            DESCRIBE_TOPIC,
            DESCRIBE_CONFIGS_OF_TOPIC,
            ALTER_CONFIGS_OF_TOPIC,
        ),
        _GROUP: (READ_GROUP, DELETE_GROUP, DESCRIBE_GROUP, DESCRIBE_CONFIGS_OF_GROUP, ALTER_CONFIGS_OF_GROUP),
        _CLUSTER: (
            CREATE_CLUSTER,
            ALTER_CLUSTER,
            DESCRIBE_CLUSTER,
            CLUSTER_ACTION,
            DESCRIBE_CONFIGS_OF_CLUSTER,
            ALTER_CONFIGS_OF_CLUSTER,
            IDEMPOTENT_WRITE,
        ),
        _TRANSACTION: (WRITE_TRANSACTION, DESCRIBE_TRANSACTION),
    }
)
# All of them, for who may do everything.
SUPPORTED_BITS: Final[Mapping[ResourceType, int]] = MappingProxyType(
    {resource: bits(*(need.operation for need in needs)) for resource, needs in SUPPORTED.items()}
)
