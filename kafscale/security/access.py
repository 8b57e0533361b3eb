"""What one client may do: decisions for a principal from a host, made once for each need and name and then remembered.

An `Access` belongs to one snapshot: whoever holds it asks for another when that is replaced. It makes decisions of what
the snapshot says matches, by the rules that `acl_rules.py` states, and explains them. It must not raise: what can't be
decided is denied. It knows no connection and no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from kafscale.protocol.acls import CLUSTER_NAME, ResourceType, normal_host
from kafscale.security import explanations, kafscale_document
from kafscale.security.acl_rules import ANY_HOST, ANYONE
from kafscale.security.explanations import Explanation
from kafscale.security.needs import (
    IDEMPOTENT_WRITE,
    NEEDS,
    SUPPORTED,
    SUPPORTED_BITS,
    WRITE_TOPIC,
    Action,
    Grant,
    Need,
    bits,
)
from kafscale.security.snapshot import MatchedRule, Snapshot
from kafscale.security.snapshot_format import ANYBODY, DOCUMENT_SUBJECT, KAFKA_SUBJECT, text_bytes
from kafscale.security.verdicts import Verdict, decide, in_either_place, in_either_way

log = logging.getLogger(__name__)

# Decisions remembered by all `Access`es of a worker together; a name that is long counts as several.
DECISIONS_MAX: Final = 262_144
# For so many characters of a name or principal, one more.
CHARACTERS_SHIFT: Final = 6
# A name that Kafka's authorizeByResourceType asks about, so that what is allowed by default counts.
_HARDCODE: Final = b"hardcode"
_USER: Final = "User:"
ANONYMOUS: Final = "User:ANONYMOUS"
"""Who a client is whose listener knows no names (Kafka's KafkaPrincipal.ANONYMOUS)."""


class Budget:
    """How many more decisions may be remembered; `on_spent` is called when there are none left, and then as many more
    may be."""

    __slots__ = ("_on_spent", "left")

    def __init__(self, on_spent: Callable[[], None] | None = None) -> None:
        self.left = DECISIONS_MAX
        self._on_spent = on_spent

    def spend(self, text: str) -> bool:
        """For something remembered under this text. False where all that was is to be forgotten first."""
        self.left -= 1 + (len(text) >> CHARACTERS_SHIFT)
        if self.left >= 0:
            return True
        self.left = DECISIONS_MAX
        if self._on_spent is not None:
            self._on_spent()
        return False


class Access(Protocol):
    """What handlers ask. A `need` is of `needs.py`; the name of the cluster is `kafka-cluster`. `rules` is the same for
    as long as the same rules are in force, and `scope` for all who may do the same by them."""

    @property
    def principal(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def rules(self) -> object: ...

    @property
    def scope(self) -> object: ...

    def allows(self, need: Need, name: str) -> bool:
        """Whether the client may. For what was asked for: a denial is counted and logged."""

    def shows(self, need: Need, name: str) -> bool:
        """The same, silently: for filtering what nobody asked for by name."""

    def allows_cluster(self, need: Need) -> bool:
        """`allows` for a need of the cluster."""

    def writes_somewhere(self) -> bool:
        """Whether the client may have a producer id: it may write idempotently, or to some topic (KIP-679)."""

    def operations(self, resource: ResourceType, name: str) -> int:
        """What the client may do to the resource, as Kafka's bit field (KIP-430)."""

    def over(self, fresh: Access) -> Access:
        """What takes this one's place when other rules are in force, by which `fresh` decides."""


class _SameForAll:
    """One answer for whoever asks for whatever."""

    __slots__ = ("host", "principal", "rules")

    def __init__(self, principal: str, host: str, rules: object = None) -> None:
        self.principal = principal
        self.host = host
        self.rules = rules

    @property
    def scope(self) -> object:
        return ""

    def over(self, fresh: Access) -> Access:
        return fresh


class FullAccess(_SameForAll):
    """For a broker on which no authorization is set up: everything is allowed."""

    __slots__ = ()

    def allows(self, need: Need, name: str) -> bool:
        return True

    shows = allows

    def allows_cluster(self, need: Need) -> bool:
        return True

    def writes_somewhere(self) -> bool:
        return True

    def operations(self, resource: ResourceType, name: str) -> int:
        return SUPPORTED_BITS[resource]


class NoAccess(_SameForAll):
    """For a broker that has no rules yet."""

    __slots__ = ()

    def allows(self, need: Need, name: str) -> bool:
        return False

    shows = allows

    def allows_cluster(self, need: Need) -> bool:
        return False

    def writes_somewhere(self) -> bool:
        return False

    def operations(self, resource: ResourceType, name: str) -> int:
        return 0


OnDenied = Callable[[Access, Need, str], None]


class SnapshotAccess:
    """The decisions of one principal and host on one snapshot."""

    __slots__ = (
        "_budget",
        "_decisions",
        "_document",
        "_is_broken",
        "_is_super",
        "_kafka",
        "_on_denied",
        "host",
        "principal",
        "rules",
        "snapshot",
    )

    def __init__(
        self,
        snapshot: Snapshot,
        principal: str,
        host: str,
        on_denied: OnDenied | None = None,
        rules: object = None,
        budget: Budget | None = None,
    ) -> None:
        """`rules` is only kept; `budget` is shared with others."""
        self.snapshot = snapshot
        self.rules = rules
        self.principal = principal
        self.host = normal_host(host)
        self._on_denied = on_denied
        self._is_super = principal in snapshot.super_users
        self._is_broken = bool(snapshot.broken)
        self._kafka: tuple[Sequence[int], ...] = ()
        if snapshot.has_kafka:
            hosts = (ANY_HOST, self.host) if snapshot.has_hosts and self.host != ANY_HOST else (ANY_HOST,)
            principals = (principal,) if principal == ANYONE else (principal, ANYONE)
            found = (snapshot.groups(KAFKA_SUBJECT, who, where) for who in principals for where in hosts)
            self._kafka = tuple(groups for groups in found if groups is not None)
        self._document = None
        if snapshot.has_document:
            self._document = snapshot.groups(DOCUMENT_SUBJECT, document_name(principal))
        # By need and name; dictionaries of their own only for what was asked for.
        self._decisions: list[dict[str, bool]] = [_NOTHING] * len(NEEDS)
        self._budget = budget or Budget()

    @property
    def scope(self) -> object:
        return (self.principal, self.host) if self.snapshot.has_hosts else self.principal

    def allows(self, need: Need, name: str) -> bool:
        decision = self._decisions[need.index].get(name)
        if decision is None:
            decision = self._decide(need, name)
        if not decision and self._on_denied is not None:
            self._on_denied(self, need, name)
        return decision

    def shows(self, need: Need, name: str) -> bool:
        decision = self._decisions[need.index].get(name)
        return self._decide(need, name) if decision is None else decision

    def allows_cluster(self, need: Need) -> bool:
        return self.allows(need, CLUSTER_NAME)

    def operations(self, resource: ResourceType, name: str) -> int:
        return sum(1 << need.operation for need in SUPPORTED[resource] if self.shows(need, name))

    def over(self, fresh: Access) -> Access:
        return fresh

    def writes_somewhere(self) -> bool:
        # Remembered under the name that no topic has.
        decision = self._decisions[IDEMPOTENT_WRITE.index].get("")
        if decision is None:
            decision = self._remember(IDEMPOTENT_WRITE, "", self._decide_somewhere())
        if not decision and self._on_denied is not None:
            self._on_denied(self, IDEMPOTENT_WRITE, CLUSTER_NAME)
        return decision

    def explain(self, need: Need, name: str) -> Explanation:
        """The decision, and the rule that made it. Not remembered."""
        if self._is_super:
            return explanations.of_super_user(self.principal)
        if self._is_broken:
            return explanations.of_broken_document(self.snapshot)
        kafka, document = self._verdicts(need, text_bytes(name))
        bearing = self._bearing_rules(need, name)
        return explanations.explain(self.snapshot, kafka, document, decide(kafka, document), bearing)

    # Deciding

    def _decide(self, need: Need, name: str) -> bool:
        try:
            if self._is_super or self._is_broken:
                decision = self._is_super
            else:
                decision = decide(*self._verdicts(need, text_bytes(name)))
        except Exception:
            log.exception("a request could not be authorized, and is denied", extra={"principal": self.principal})
            decision = False
        return self._remember(need, name, decision)

    def _remember(self, need: Need, name: str, decision: bool) -> bool:
        if not self._budget.spend(name):
            self._decisions = [_NOTHING] * len(NEEDS)
        decisions = self._decisions[need.index]
        if decisions is _NOTHING:
            decisions = self._decisions[need.index] = {}
        decisions[name] = decision
        return decision

    def _verdicts(self, need: Need, name: bytes) -> tuple[Verdict | None, Verdict | None]:
        snapshot = self.snapshot
        kafka = self._kafka_verdict(need, name) if snapshot.has_kafka else None
        document = self._document_verdict(need, name) if snapshot.has_document else None
        return kafka, document

    # Kafka's bindings

    def _kafka_verdict(self, need: Need, name: bytes) -> Verdict:
        verdict = self._kafka_verdict_on(need.resource, name, need.grants, need.denies)
        if need.or_cluster is not None and verdict is not Verdict.ALLOW:
            masks = need.grants_on_cluster, need.denies_on_cluster
            return in_either_place(verdict, self._kafka_verdict_on(ResourceType.CLUSTER, _CLUSTER_BYTES, *masks))
        return verdict

    def kafka_verdict(self, resource: int, name: str, grants: int, denies: int) -> Verdict:
        """What Kafka's bindings say of an operation, given as the masks of what grants and what denies it."""
        return self._kafka_verdict_on(resource, text_bytes(name), grants, denies)

    def kafka_rules(self, resource: int, name: str, grants: int, denies: int) -> Iterator[MatchedRule]:
        """The bindings that say so."""
        for groups in self._kafka:
            if groups[resource]:
                for rule in self.snapshot.rules(groups[resource], text_bytes(name)):
                    if 1 << rule.subject & (denies if rule.denies else grants):
                        yield rule

    def _kafka_verdict_on(self, resource: int, name: bytes, grants: int, denies: int) -> Verdict:
        allow = deny = 0
        masks = self.snapshot.masks
        for groups in self._kafka:
            group = groups[resource]
            if group:
                allowed, denied = masks(group, name)
                allow |= allowed
                deny |= denied
        if deny & denies:
            return Verdict.DENY
        if allow & grants:
            return Verdict.ALLOW
        return self._kafka_default(resource, name)

    def _kafka_default(self, resource: int, name: bytes) -> Verdict:
        """What is so where no binding decides: open only if there is none for the resource, of anybody at all."""
        snapshot = self.snapshot
        if not snapshot.allows_if_none:
            return Verdict.CLOSED
        groups = snapshot.groups(ANYBODY)
        if groups is not None and groups[resource] and snapshot.masks(groups[resource], name)[0]:
            return Verdict.CLOSED
        return Verdict.OPEN

    # The document's rules

    def _document_verdict(self, need: Need, name: bytes) -> Verdict:
        match need.grant:
            case Grant.NEVER:
                return Verdict.CLOSED
            case Grant.ADMIN:
                return self._admin_verdict(name)
            case _ if need.resource == ResourceType.CLUSTER:
                return self._any_of(need.actions, need.resource, _DOCUMENT_CLUSTER_BYTES)
        verdict = self._any_of(need.actions, need.resource, name)
        if need.or_admin and verdict is not Verdict.ALLOW:
            return in_either_way(verdict, self._admin_verdict(name))
        return verdict

    def _any_of(self, actions: int, resource: int, name: bytes) -> Verdict:
        """What is said of one of the actions, the best for the client."""
        allow, deny = self._document_masks(resource, name)
        left = actions & ~deny
        if allow & left:
            return Verdict.ALLOW
        return self._document_default if left else Verdict.DENY

    def _admin_verdict(self, topic: bytes) -> Verdict:
        """What is said of administering a topic: a deny on the cluster or on the topic counts, and an allow on either,
        on the topic only where the rule says `admin` itself."""
        allow, deny = self._document_masks(ResourceType.TOPIC, topic)
        allow_all, deny_all = self._document_masks(ResourceType.CLUSTER, _DOCUMENT_CLUSTER_BYTES)
        if (deny | deny_all) & _ADMIN:
            return Verdict.DENY
        if allow & _TOPIC_ADMIN or allow_all & _ADMIN:
            return Verdict.ALLOW
        return self._document_default

    def _document_masks(self, resource: int, name: bytes) -> tuple[int, int]:
        if self._document is None:
            return 0, 0
        group = self._document[resource]
        return self.snapshot.masks(group, name) if group else (0, 0)

    @property
    def _document_default(self) -> Verdict:
        return Verdict.OPEN if self.snapshot.allows_by_default else Verdict.CLOSED

    # Somewhere

    def _decide_somewhere(self) -> bool:
        if self._is_super or self._is_broken:
            return self._is_super
        try:
            snapshot = self.snapshot
            kafka = document = None
            if snapshot.has_kafka:
                kafka = in_either_place(self._kafka_verdict(IDEMPOTENT_WRITE, _CLUSTER_BYTES), self._kafka_somewhere())
            if snapshot.has_document:
                groups = () if self._document is None else (self._document[ResourceType.TOPIC],)
                document = self._somewhere(groups, _PRODUCE, self._document_default)
            return decide(kafka, document)
        except Exception:
            log.exception("a producer could not be authorized, and is denied", extra={"principal": self.principal})
            return False

    def _kafka_somewhere(self) -> Verdict:
        groups = [groups[ResourceType.TOPIC] for groups in self._kafka]
        default = self._kafka_verdict(WRITE_TOPIC, _HARDCODE)
        # From a deny of that very name nothing follows for others.
        return self._somewhere(groups, WRITE_TOPIC.grants, Verdict.CLOSED if default == Verdict.DENY else default)

    def _somewhere(self, groups: Sequence[int], mask: int, default: Verdict) -> Verdict:
        own = [group for group in groups if group]
        if self.snapshot.allows_somewhere(own, mask):
            return Verdict.ALLOW
        return Verdict.DENY if self.snapshot.denies_everywhere(own, mask) else default

    # Explaining

    def _bearing_rules(self, need: Need, name: str) -> Iterator[MatchedRule]:
        """Every rule that matches and bears on the need, Kafka's first, the most particular of a source first."""
        snapshot = self.snapshot
        yield from self.kafka_rules(need.resource, name, need.grants, need.denies)
        if need.or_cluster is not None:
            masks = need.grants_on_cluster, need.denies_on_cluster
            yield from self.kafka_rules(ResourceType.CLUSTER, CLUSTER_NAME, *masks)
        if self._document is None:
            return
        is_cluster = need.resource == ResourceType.CLUSTER
        places = [(need.resource, kafscale_document.CLUSTER_NAME if is_cluster else name)]
        if need.or_admin or need.grant is Grant.ADMIN:
            places.append((ResourceType.CLUSTER, kafscale_document.CLUSTER_NAME))
        for resource, asked in places:
            if self._document[resource]:
                for rule in snapshot.rules(self._document[resource], text_bytes(asked)):
                    if rule.subject & _bearing(need, resource, rule.denies):
                        yield rule


def _bearing(need: Need, resource: int, denies: bool) -> int:
    """The actions that bear on a need, in a document's rule on this kind of resource."""
    mask = need.actions if resource == need.resource else 0
    if need.or_admin or need.grant is Grant.ADMIN:
        mask |= _ADMIN if denies or resource == ResourceType.CLUSTER else _TOPIC_ADMIN
    return mask


def document_name(principal: str) -> str:
    """The name under which a document speaks of one of Kafka's principals: without its type, if that is User, and
    `anonymous` for a client without a name."""
    if principal == ANONYMOUS:
        return kafscale_document.ANONYMOUS_NAME
    return kafscale_document.principal_name(principal.removeprefix(_USER))


_NOTHING: Final[dict[str, bool]] = {}
_PRODUCE: Final = bits(Action.PRODUCE)
_ADMIN: Final = bits(Action.ADMIN)
_TOPIC_ADMIN: Final = bits(Action.TOPIC_ADMIN)
_CLUSTER_BYTES: Final = CLUSTER_NAME.encode()
_DOCUMENT_CLUSTER_BYTES: Final = kafscale_document.CLUSTER_NAME.encode()
