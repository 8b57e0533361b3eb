"""What a request needs in order to be served, for every API, and who decides whether it has it.

The table follows Kafka's KafkaApis and ControllerApis. Where an API is about the cluster as a whole, dispatch asks
before anything of the handler runs. Where it names topics, groups or transactional ids, the handler asks for each of
them, by `request.access`, before it does or tells anything about it: what may not is answered with the row's code, or
left out of what nobody asked for by name, and all else is served. An API without a row is denied. Knows no connection
and no message; decisions are made by `kafscale.security.access`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kafscale.clock import Clock
from kafscale.logs import RateLimited
from kafscale.metrics import DENIALS, MetricsBlock
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.security import needs
from kafscale.security.access import Access, Budget, FullAccess, NoAccess, SnapshotAccess
from kafscale.security.needs import Need
from kafscale.security.snapshot import Snapshot

log = logging.getLogger(__name__)

# Principals, each with a host, whose decisions are kept at the same time.
ACCESSES_MAX: Final = 4096
# A denial of the same thing to the same principal is logged once in so long, as KafScale does; and of all of them so
# many at most, whatever is asked for.
DENIAL_INTERVAL_SECONDS: Final = 60.0
DENIALS_PER_SECOND_MAX: Final = 50
# What is repeated of a name or principal in a log line.
SHOWN_MAX: Final = 256

# What a field of authorized operations says where it was not asked for (KIP-430).
NOT_ASKED_FOR: Final = -(2**31)


class Open:
    """The row of an API that anyone may call."""


@dataclass(frozen=True, slots=True)
class OnCluster:
    """The row of an API about the cluster as a whole. `denied` is what a request that may not is told."""

    need: Need
    denied: ErrorCode = ErrorCode.CLUSTER_AUTHORIZATION_FAILED


@dataclass(frozen=True, slots=True)
class PerItem:
    """The row of an API whose handler asks for each thing that the request names. `denied` is what is said of one that
    may not, where nothing more particular is; `needs` is what may be asked for."""

    denied: ErrorCode
    needs: tuple[Need, ...]


Row = Open | OnCluster | PerItem

_TOPIC: Final = ErrorCode.TOPIC_AUTHORIZATION_FAILED
_GROUP: Final = ErrorCode.GROUP_AUTHORIZATION_FAILED
_CLUSTER: Final = ErrorCode.CLUSTER_AUTHORIZATION_FAILED
_TRANSACTION: Final = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


def _rows() -> dict[int, Row]:
    key = ApiKey
    # fmt: off
    return {
        key.PRODUCE: PerItem(_TOPIC, (needs.WRITE_TOPIC, needs.WRITE_TRANSACTION)),
        # Who says that he is a broker (a replica id) needs CLUSTER_ACTION, and is told that he may not of every
        # partition (CVE-2018-1288).
        key.FETCH: PerItem(_TOPIC, (needs.READ_TOPIC, needs.CLUSTER_ACTION)),
        key.LIST_OFFSETS: PerItem(_TOPIC, (needs.DESCRIBE_OFFSETS,)),
        key.METADATA: PerItem(_TOPIC, (needs.DESCRIBE_TOPIC, needs.CREATE_BY_USE)),
        key.OFFSET_COMMIT: PerItem(_GROUP, (needs.READ_GROUP, needs.READ_TOPIC)),
        key.OFFSET_FETCH: PerItem(_GROUP, (needs.DESCRIBE_GROUP, needs.DESCRIBE_TOPIC)),
        key.FIND_COORDINATOR: PerItem(_GROUP, (needs.FIND_GROUP, needs.DESCRIBE_TRANSACTION, needs.CLUSTER_ACTION)),
        key.JOIN_GROUP: PerItem(_GROUP, (needs.READ_GROUP,)),
        key.HEARTBEAT: PerItem(_GROUP, (needs.READ_GROUP,)),
        key.LEAVE_GROUP: PerItem(_GROUP, (needs.READ_GROUP,)),
        key.SYNC_GROUP: PerItem(_GROUP, (needs.READ_GROUP,)),
        key.DESCRIBE_GROUPS: PerItem(_GROUP, (needs.DESCRIBE_GROUP,)),
        # Never an error: what may not be seen is left out.
        key.LIST_GROUPS: PerItem(_GROUP, (needs.LIST_GROUP,)),
        key.SASL_HANDSHAKE: Open(),
        key.API_VERSIONS: Open(),
        key.CREATE_TOPICS: PerItem(_TOPIC, (needs.CREATE_ANY_TOPIC, needs.DESCRIBE_CONFIGS_OF_TOPIC)),
        key.DELETE_TOPICS: PerItem(_TOPIC, (needs.DELETE_ANY_TOPIC, needs.DESCRIBE_TOPIC)),
        key.DELETE_RECORDS: PerItem(_TOPIC, (needs.DELETE_TOPIC,)),
        # `Access.writes_somewhere`: to write idempotently, or to write to any topic at all (KIP-679).
        key.INIT_PRODUCER_ID: PerItem(_CLUSTER, (needs.IDEMPOTENT_WRITE, needs.WRITE_TRANSACTION)),
        key.OFFSET_FOR_LEADER_EPOCH: PerItem(_TOPIC, (needs.DESCRIBE_EPOCHS,)),
        key.DESCRIBE_ACLS: OnCluster(needs.DESCRIBE_CLUSTER),
        key.CREATE_ACLS: OnCluster(needs.ALTER_CLUSTER),
        key.DELETE_ACLS: OnCluster(needs.ALTER_CLUSTER),
        key.DESCRIBE_CONFIGS: PerItem(
            _TOPIC,
            (needs.DESCRIBE_CONFIGS_OF_TOPIC, needs.DESCRIBE_CONFIGS_OF_GROUP, needs.DESCRIBE_CONFIGS_OF_CLUSTER),
        ),
        key.ALTER_CONFIGS: PerItem(
            _TOPIC, (needs.ALTER_CONFIGS_OF_TOPIC, needs.ALTER_CONFIGS_OF_GROUP, needs.ALTER_CONFIGS_OF_CLUSTER)
        ),
        key.DESCRIBE_LOG_DIRS: OnCluster(needs.DESCRIBE_CLUSTER),
        key.SASL_AUTHENTICATE: Open(),
        key.CREATE_PARTITIONS: PerItem(_TOPIC, (needs.ALTER_TOPIC,)),
        key.DELETE_GROUPS: PerItem(_GROUP, (needs.DELETE_GROUP,)),
        key.INCREMENTAL_ALTER_CONFIGS: PerItem(
            _TOPIC, (needs.ALTER_CONFIGS_OF_TOPIC, needs.ALTER_CONFIGS_OF_GROUP, needs.ALTER_CONFIGS_OF_CLUSTER)
        ),
        key.OFFSET_DELETE: PerItem(_GROUP, (needs.DELETE_GROUP, needs.READ_TOPIC)),
        key.DESCRIBE_CLIENT_QUOTAS: OnCluster(needs.DESCRIBE_CONFIGS_OF_CLUSTER),
        key.ALTER_CLIENT_QUOTAS: OnCluster(needs.ALTER_CONFIGS_OF_CLUSTER),
        key.DESCRIBE_USER_SCRAM_CREDENTIALS: OnCluster(needs.DESCRIBE_CLUSTER),
        key.ALTER_USER_SCRAM_CREDENTIALS: OnCluster(needs.ALTER_CLUSTER),
        # Open in Kafka's code, though its documentation says Describe Cluster; brokers are told to anyone anyway. What
        # the client may do to the cluster is told only to who may describe it.
        key.DESCRIBE_CLUSTER: Open(),
    }
    # fmt: on


REQUIREMENTS: Final[Mapping[int, Row]] = MappingProxyType(_rows())
"""By the number of the API."""


class Authority:
    """The rules in force at this worker, and the decisions made by them.

    Until the first snapshot comes nobody may anything, unless authorization is off. `rules` changes its identity when
    other rules come into force: an `Access` whose `rules` is another is to be asked for anew.
    """

    def __init__(self, clock: Clock, metrics: MetricsBlock, *, is_on: bool) -> None:
        self.is_on = is_on
        self.snapshot: Snapshot | None = None
        self.rules: object = object()
        self._cells = metrics.cells
        self._clock = clock
        self._denials = RateLimited(clock, DENIAL_INTERVAL_SECONDS)
        # Logged in the second that began then, and held back in it.
        self._second_began = clock.monotonic()
        self._logged = 0
        self._held_back = 0
        self._accesses: dict[tuple[str, str], Access] = {}
        self._budget = Budget(self._forget)

    @property
    def generation(self) -> int:
        """Of the snapshot in force; 0 before the first."""
        return 0 if self.snapshot is None else self.snapshot.generation

    def replace(self, snapshot: Snapshot) -> None:
        """From now on, for every connection, these are the rules."""
        self.snapshot = snapshot
        self._forget()

    def access(self, principal: str, host: str) -> Access:
        """What the principal may do from this host."""
        if not self.is_on:
            host = ""
        found = self._accesses.get((principal, host))
        if found is not None:
            return found
        if len(self._accesses) >= ACCESSES_MAX:
            self._forget()
        self._budget.spend(principal)
        access: Access
        if self.snapshot is not None:
            access = SnapshotAccess(self.snapshot, principal, host, self._denied, self.rules, self._budget)
        elif self.is_on:
            access = NoAccess(principal, host, self.rules)
        else:
            access = FullAccess(principal, host, self.rules)
        self._accesses[principal, host] = access
        return access

    def renewed(self, access: Access) -> Access:
        """The same client's access by the rules that are in force now."""
        if access.rules is self.rules:
            return access
        return access.over(self.access(access.principal, access.host))

    def _forget(self) -> None:
        """Have every decision made anew."""
        self.rules = object()
        self._accesses = {}
        self._budget = Budget(self._forget)

    def _denied(self, access: Access, need: Need, name: str) -> None:
        self._cells[DENIALS.at(need.action_label, need.resource.name.lower())] += 1
        now = self._clock.monotonic()
        if now >= self._second_began + 1:
            self._second_began, self._logged = now, 0
        if self._logged >= DENIALS_PER_SECOND_MAX:
            self._held_back += 1
            return
        shown = access.principal[:SHOWN_MAX], name[:SHOWN_MAX]
        held = self._denials.permit((need.index, *shown))
        if held is None:
            return
        self._logged += 1
        held, self._held_back = held + self._held_back, 0
        log.warning(
            "denied",
            extra={
                "principal": shown[0],
                "client": access.host,
                "operation": need.operation.name,
                "resource": need.resource.name,
                "name_asked_for": shown[1],
                "generation": self.generation,
                "held_back": held,
            },
        )
