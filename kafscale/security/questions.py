"""Questions about what a principal may do, as people ask them: in KafScale's words or in Kafka's.

A KafScale action is asked literally, as KafScale's `Allows` is: whether a rule for just this action, resource and name
matches. A Kafka operation is asked as the broker does for a request that needs it. In both cases all rules that are in
force have their say. A question that makes no sense is a UsageError. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kafscale.errors import UsageError
from kafscale.protocol.acls import CLUSTER_NAME, Operation, ResourceType
from kafscale.security import explanations, kafscale_document
from kafscale.security.access import ANONYMOUS, SnapshotAccess
from kafscale.security.explanations import Explanation
from kafscale.security.needs import (
    ACTIONS,
    CREATE_ANY_TOPIC,
    DELETE_ANY_TOPIC,
    IDEMPOTENT_WRITE,
    RESOURCES,
    SUPPORTED,
    Action,
    Need,
    bits,
    denying,
    granting,
)
from kafscale.security.snapshot import MatchedRule, Snapshot
from kafscale.security.snapshot_format import DOCUMENT_SUBJECT, text_bytes
from kafscale.security.verdicts import Verdict, decide

USER: Final = "User:"
# What a KafScale action is called in Kafka, where the bindings have their say too.
_OPERATIONS: Final = {
    Action.PRODUCE: Operation.WRITE,
    Action.FETCH: Operation.READ,
    Action.GROUP_READ: Operation.DESCRIBE,
    Action.GROUP_WRITE: Operation.READ,
    Action.GROUP_ADMIN: Operation.DELETE,
    Action.ADMIN: Operation.ALTER,
}
_ASKED_OTHERWISE: Final = {
    (Operation.CREATE, ResourceType.TOPIC): CREATE_ANY_TOPIC,
    (Operation.DELETE, ResourceType.TOPIC): DELETE_ANY_TOPIC,
}


def ask(snapshot: Snapshot, principal: str, host: str, action: str, resource: str, name: str | None) -> Explanation:
    """What is decided, and by which rule. `name` may be left out for the cluster. Raises UsageError, a line that says
    what makes no sense."""
    kind = _resource(resource)
    word = _word(action)
    if name is None and kind is not ResourceType.CLUSTER:
        raise UsageError(f"--name is missing: which {resource}?")
    if word in ACTIONS:
        return _ask_literally(snapshot, principal, host, ACTIONS[word], kind, name)
    need = _need(word, action, kind)
    if kind is ResourceType.CLUSTER:
        if name not in (None, CLUSTER_NAME, kafscale_document.CLUSTER_NAME):
            raise UsageError(f"--name {name!r}: the cluster is called {CLUSTER_NAME}")
        name = CLUSTER_NAME
    if not name:
        raise UsageError(f"--name is empty: which {resource}?")
    access = SnapshotAccess(snapshot, kafka_principal(principal), host)
    explanation = access.explain(need, name)
    if need is IDEMPOTENT_WRITE and not explanation.is_allowed and access.writes_somewhere():
        return explanation._replace(is_allowed=True, reason="it may write to some topic, and that is enough (KIP-679)")
    return explanation


def is_action(action: str) -> bool:
    """Whether this is one of KafScale's words, not of Kafka's."""
    return _word(action) in ACTIONS


def kafka_principal(principal: str) -> str:
    """A principal as Kafka writes it: people leave out its type."""
    if not principal.strip():
        return ANONYMOUS
    return principal if ":" in principal else USER + principal


def _word(text: str) -> str:
    """`DescribeConfigs`, `DESCRIBE_CONFIGS` and `describe-configs` are the same."""
    spread = "".join(f"_{letter}" if letter.isupper() and not text.isupper() else letter for letter in text)
    return spread.replace("-", "_").strip("_").replace("__", "_").lower()


def _resource(text: str) -> ResourceType:
    known = RESOURCES.get(_word(text))
    if known is None:
        raise UsageError(f"--resource {text!r}: there is no such resource; it is one of {', '.join(RESOURCES)}")
    return known


def _need(word: str, action: str, kind: ResourceType) -> Need:
    try:
        operation = Operation[word.upper()]
    except KeyError:
        known = [operation.name.lower() for operation in Operation if operation > Operation.ALL]
        raise UsageError(
            f"--action {action!r}: there is no such action; it is one of KafScale's ({', '.join(ACTIONS)}) or one of "
            f"Kafka's operations ({', '.join(known)})"
        ) from None
    if (operation, kind) in _ASKED_OTHERWISE:
        return _ASKED_OTHERWISE[operation, kind]
    for need in SUPPORTED[kind]:
        if need.operation is operation:
            return need
    known = [need.operation.name.lower() for need in SUPPORTED[kind]]
    raise UsageError(
        f"--action {action!r}: no request needs {operation.name} on a {kind.name.lower()}; what can be needed there is "
        + ", ".join(known)
    )


def _ask_literally(
    snapshot: Snapshot, principal: str, host: str, action: Action, kind: ResourceType, name: str | None
) -> Explanation:
    access = SnapshotAccess(snapshot, kafka_principal(principal), host)
    if access.principal in snapshot.super_users:
        return explanations.of_super_user(access.principal)
    if snapshot.broken:
        return explanations.of_broken_document(snapshot)
    asked = kafscale_document.CLUSTER_NAME if name is None else name
    document = None
    if snapshot.has_document:
        rules = list(_document_rules(snapshot, principal, action, kind, asked))
        document = Verdict.OPEN if snapshot.allows_by_default else Verdict.CLOSED
        if rules:
            document = Verdict.DENY if any(rule.denies for rule in rules) else Verdict.ALLOW
    else:
        rules = []
    kafka = None
    if snapshot.has_kafka:
        operation = _OPERATIONS[action]
        in_kafka = CLUSTER_NAME if kind is ResourceType.CLUSTER else asked
        kafka = access.kafka_verdict(kind, in_kafka, granting(operation), denying(operation))
        rules += access.kafka_rules(kind, in_kafka, granting(operation), denying(operation))
    return explanations.explain(snapshot, kafka, document, decide(kafka, document), rules)


def _document_rules(
    snapshot: Snapshot, principal: str, action: Action, kind: ResourceType, name: str
) -> Iterator[MatchedRule]:
    groups = snapshot.groups(DOCUMENT_SUBJECT, kafscale_document.principal_name(principal))
    if groups is None or not groups[kind]:
        return
    for rule in snapshot.rules(groups[kind], text_bytes(name)):
        if rule.subject & bits(action):
            yield rule
