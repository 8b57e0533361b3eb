"""Decisions in words: what was decided, by which rule, and where that rule stands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kafscale.protocol.acls import ResourceType
from kafscale.security.needs import ACTIONS, ANY_ACTION, RESOURCES
from kafscale.security.snapshot import MatchedRule, Snapshot, binding_of
from kafscale.security.snapshot_format import ANY_NAME, DOCUMENT_SUBJECT, KAFKA_SUBJECT, PREFIX
from kafscale.security.verdicts import Verdict

BINDINGS_SOURCE = "Kafka's ACLs in the cluster's catalogue"
SUPER_USERS_SOURCE = "the setting super_users"


class Explanation(NamedTuple):
    """`rule` is the one that decided, as its source has it; "" where none did. `reason` says so in words."""

    is_allowed: bool
    reason: str
    rule: str
    source: str


def of_super_user(principal: str) -> Explanation:
    return Explanation(True, f"{principal} is a super user", "", SUPER_USERS_SOURCE)


def of_broken_document(snapshot: Snapshot) -> Explanation:
    reason = f"the document can't be read, so nothing is allowed: {snapshot.broken}"
    return Explanation(False, reason, "", snapshot.document_source)


def explain(
    snapshot: Snapshot,
    kafka: Verdict | None,
    document: Verdict | None,
    is_allowed: bool,
    bearing: Iterable[MatchedRule],
) -> Explanation:
    """Why the verdicts of the sources came to this decision. `bearing`: the rules that match and bear on the need."""
    rules = list(bearing)
    wanted = Verdict.ALLOW if is_allowed else Verdict.DENY
    for verdict, kind in ((kafka, KAFKA_SUBJECT), (document, DOCUMENT_SUBJECT)):
        if verdict == wanted:
            rule = _first(rules, kind, denies=not is_allowed)
            if rule is not None:
                source = BINDINGS_SOURCE if kind == KAFKA_SUBJECT else snapshot.document_source
                verb = "allows" if is_allowed else "denies"
                return Explanation(is_allowed, f"a rule {verb} it", text_of(rule), source)
    reasons = [_default(snapshot, verdict, kind) for verdict, kind in ((kafka, "kafka"), (document, "document"))]
    said = [reason for reason in reasons if reason]
    return Explanation(is_allowed, "; ".join(said) or "no rules are in force", "", _sources(snapshot))


def _first(rules: Sequence[MatchedRule], kind: bytes, denies: bool) -> MatchedRule | None:
    return next((rule for rule in rules if rule.kind == kind and rule.denies == denies), None)


def _default(snapshot: Snapshot, verdict: Verdict | None, kind: str) -> str:
    if verdict is None:
        return ""
    if kind == "document":
        return f"no rule matches, and the document's default policy is {'allow' if verdict >= Verdict.OPEN else 'deny'}"
    if verdict == Verdict.OPEN:
        return "no ACL names the resource, and allow_everyone_if_no_acl_found is set"
    if snapshot.allows_if_none:
        return "no ACL allows it, and some name the resource"
    return "no ACL allows it"


def _sources(snapshot: Snapshot) -> str:
    sources = []
    if snapshot.has_kafka:
        sources.append(BINDINGS_SOURCE)
    if snapshot.has_document:
        sources.append(snapshot.document_source)
    return " and ".join(sources)


def text_of(rule: MatchedRule) -> str:
    """The rule as its source has it."""
    if rule.kind == KAFKA_SUBJECT:
        return str(binding_of(rule))
    verb = "deny" if rule.denies else "allow"
    name = {PREFIX: f"{rule.name}*", ANY_NAME: "*"}.get(rule.pattern_kind, rule.name)
    resources = {number: text for text, number in RESOURCES.items()}
    return (
        f"principals[{rule.principal_position}].{verb}[{rule.position}] of {rule.principal!r}: "
        f"{verb} {_action(rule.subject)} on {resources[ResourceType(rule.resource)]} {name!r}"
    )


def _action(mask: int) -> str:
    if mask & ANY_ACTION == ANY_ACTION:
        return "*"
    return next(text for text, action in ACTIONS.items() if mask & 1 << action)
