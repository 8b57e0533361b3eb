"""A naive reading of both kinds of rules, to compare the compiled one with: every rule is looked at, every time.

Kafka's is a literal port of StandardAuthorizerData and of Authorizer.authorizeByResourceType; KafScale's of `Allows` in
v1.5. Neither shares a line with what is compiled, but for the words (numbers of operations, the document as read).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from kafscale.protocol.acls import AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.security.kafscale_document import Document, Rule

Said = Literal["allow", "deny", "open", "closed"]


# Kafka


def _matches_resource(binding: AclBinding, resource: int, name: str) -> bool:
    if binding.resource_type != resource:
        return False
    if binding.pattern_type == PatternType.PREFIXED:
        return name.startswith(binding.name)
    return binding.name in (name, "*")


def _matches_operation(binding: AclBinding, operation: int) -> bool:
    if binding.operation in (operation, Operation.ALL):
        return True
    if binding.permission != Permission.ALLOW:
        return False
    if operation == Operation.DESCRIBE:
        return binding.operation in (Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER)
    return operation == Operation.DESCRIBE_CONFIGS and binding.operation == Operation.ALTER_CONFIGS


def _matches_client(binding: AclBinding, principal: str, host: str) -> bool:
    return binding.principal in (principal, "User:*") and binding.host in (host, "*")


def kafka_says(
    bindings: Iterable[AclBinding],
    principal: str,
    host: str,
    operation: int,
    resource: int,
    name: str,
    allow_everyone: bool,
) -> Said:
    """What Kafka's authorizer decides, super users aside."""
    on_resource = [binding for binding in bindings if _matches_resource(binding, resource, name)]
    if not on_resource:
        return "open" if allow_everyone else "closed"
    matching = [
        binding
        for binding in on_resource
        if _matches_client(binding, principal, host) and _matches_operation(binding, operation)
    ]
    if any(binding.permission == Permission.DENY for binding in matching):
        return "deny"
    return "allow" if matching else "closed"


def kafka_says_somewhere(
    bindings: Sequence[AclBinding], principal: str, host: str, operation: int, resource: int, allow_everyone: bool
) -> Said:
    """authorizeByResourceType, which knows only yes ("allow", "open") and no: "deny" is a no to everything."""
    default = kafka_says(bindings, principal, host, operation, resource, "hardcode", allow_everyone)
    if default == "allow":
        return default
    allowed: dict[int, set[str]] = {PatternType.LITERAL: set(), PatternType.PREFIXED: set()}
    denied: dict[int, set[str]] = {PatternType.LITERAL: set(), PatternType.PREFIXED: set()}
    has_wildcard = False
    for binding in bindings:
        if binding.resource_type != resource or not _matches_client(binding, principal, host):
            continue
        if binding.operation not in (operation, Operation.ALL):
            continue
        is_wildcard = binding.pattern_type == PatternType.LITERAL and binding.name == "*"
        if binding.permission == Permission.DENY:
            if is_wildcard:
                return "deny"
            denied[binding.pattern_type].add(binding.name)
        elif is_wildcard:
            has_wildcard = True
        else:
            allowed[binding.pattern_type].add(binding.name)
    if has_wildcard or _any_left(allowed[PatternType.LITERAL], allowed[PatternType.PREFIXED], *denied.values()):
        return "allow"
    return "open" if default == "open" else "closed"


def _any_left(literals: set[str], prefixes: set[str], denied_literals: set[str], denied_prefixes: set[str]) -> bool:
    """Whether a name or prefix is left that no deny dominates."""
    return any(
        not any(name[:end] in denied_prefixes for end in range(1, len(name) + 1))
        for name in (literals - denied_literals) | prefixes
    )


# KafScale


def _equal_fold(one: str, other: str) -> bool:
    """Go's strings.EqualFold against an ASCII constant: each letter's other case, the long s and the Kelvin sign."""
    alike = {"s": "sS\u017f", "k": "kK\u212a"}
    return len(one) == len(other) and all(
        letter in alike.get(wanted, wanted + wanted.upper()) for letter, wanted in zip(one, other, strict=True)
    )


def _matches_word(written: str, asked: str) -> bool:
    return written in ("", "*") or _equal_fold(written, asked)


def _go_trimmed(text: str) -> str:
    space = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
    return re.sub(rf"^{space}(.*?){space}$", r"\1", text, flags=re.DOTALL)


def _matches_name(written: str, asked: str) -> bool:
    written = _go_trimmed(written)
    if written in ("", "*"):
        return True
    if written.endswith("*"):
        return asked.startswith(written[:-1])
    return written == asked


def _matches_rule(rule: Rule, action: str, resource: str, name: str) -> bool:
    return (
        _matches_word(rule.action, action) and _matches_word(rule.resource, resource) and _matches_name(rule.name, name)
    )


def document_says(document: Document, principal: str, action: str, resource: str, name: str) -> Said:
    """What KafScale's authorizer decides."""
    principal = principal.strip() or "anonymous"
    for entry in document.principals:
        if entry.name == principal:
            if any(_matches_rule(rule, action, resource, name) for rule in entry.deny):
                return "deny"
            if any(_matches_rule(rule, action, resource, name) for rule in entry.allow):
                return "allow"
    return "open" if document.allows_by_default else "closed"


def names_admin(rule: Rule) -> bool:
    """Whether a rule speaks of `admin` in so many words."""
    return _equal_fold(rule.action, "admin")


def rules_of(document: Document, principal: str, denies: bool) -> list[Rule]:
    for entry in document.principals:
        if entry.name == (principal.strip() or "anonymous"):
            return entry.deny if denies else entry.allow
    return []


def _admin_says(document: Document, principal: str, topic: str) -> Said:
    """What is said of administering a topic: see `needs.py`."""
    for rule in rules_of(document, principal, denies=True):
        if _matches_rule(rule, "admin", "topic", topic) or _matches_rule(rule, "admin", "cluster", "cluster"):
            return "deny"
    for rule in rules_of(document, principal, denies=False):
        on_topic = names_admin(rule) and _matches_rule(rule, "admin", "topic", topic)
        if on_topic or _matches_rule(rule, "admin", "cluster", "cluster"):
            return "allow"
    return "open" if document.allows_by_default else "closed"


def best(said: Sequence[Said]) -> Said:
    """Of several actions each of which will do: only who is denied all of them is denied."""
    if "allow" in said:
        return "allow"
    undecided = [word for word in said if word in ("open", "closed")]
    return undecided[0] if undecided else "deny"


def document_says_somewhere(document: Document, principal: str) -> Said:
    """Whether the principal may produce to some topic, by the same rule."""
    literals: dict[bool, set[str]] = {False: set(), True: set()}
    prefixes: dict[bool, set[str]] = {False: set(), True: set()}
    wildcards = set()
    for denies in (False, True):
        for rule in rules_of(document, principal, denies):
            if not (_matches_word(rule.action, "produce") and _matches_word(rule.resource, "topic")):
                continue
            name = _go_trimmed(rule.name)
            if name in ("", "*"):
                wildcards.add(denies)
            elif name.endswith("*"):
                prefixes[denies].add(name[:-1])
            else:
                literals[denies].add(name)
    if True in wildcards:
        return "deny"
    if False in wildcards or _any_left(literals[False], prefixes[False], literals[True], prefixes[True]):
        return "allow"
    return "open" if document.allows_by_default else "closed"


# What each need is in both sources' words: (Kafka's operation, kind of resource, which one on the cluster will do too,
# KafScale's actions any of which will do, whether administration will do). Written out, not taken from the code.
_OP, _KIND = Operation, ResourceType
NEEDS: dict[str, tuple[Operation, ResourceType, Operation | None, tuple[str, ...], bool]] = {
    "read_topic": (_OP.READ, _KIND.TOPIC, None, ("fetch",), False),
    "write_topic": (_OP.WRITE, _KIND.TOPIC, None, ("produce",), False),
    "describe_topic": (_OP.DESCRIBE, _KIND.TOPIC, None, ("fetch", "produce"), True),
    "describe_offsets": (_OP.DESCRIBE, _KIND.TOPIC, None, ("fetch",), False),
    "describe_epochs": (_OP.DESCRIBE, _KIND.TOPIC, _OP.CLUSTER_ACTION, ("fetch",), False),
    "create_topic": (_OP.CREATE, _KIND.TOPIC, None, (), True),
    "create_topic_or_cluster": (_OP.CREATE, _KIND.TOPIC, _OP.CREATE, (), True),
    "create_topic_by_use": (_OP.CREATE, _KIND.TOPIC, _OP.CREATE, ("produce",), True),
    "delete_topic": (_OP.DELETE, _KIND.TOPIC, None, (), True),
    "delete_topic_or_cluster": (_OP.DELETE, _KIND.TOPIC, _OP.DELETE, (), True),
    "alter_topic": (_OP.ALTER, _KIND.TOPIC, None, (), True),
    "describe_configs_topic": (_OP.DESCRIBE_CONFIGS, _KIND.TOPIC, None, ("fetch",), False),
    "alter_configs_topic": (_OP.ALTER_CONFIGS, _KIND.TOPIC, None, (), True),
    "read_group": (_OP.READ, _KIND.GROUP, None, ("group_write",), False),
    "describe_group": (_OP.DESCRIBE, _KIND.GROUP, None, ("group_read",), False),
    "find_group": (_OP.DESCRIBE, _KIND.GROUP, None, ("group_read", "group_write", "group_admin"), False),
    "list_group": (_OP.DESCRIBE, _KIND.GROUP, _OP.DESCRIBE, ("group_read",), False),
    "delete_group": (_OP.DELETE, _KIND.GROUP, None, ("group_admin",), False),
    "describe_configs_group": (_OP.DESCRIBE_CONFIGS, _KIND.GROUP, None, ("group_read",), False),
    "alter_configs_group": (_OP.ALTER_CONFIGS, _KIND.GROUP, None, ("group_admin",), False),
    "create_cluster": (_OP.CREATE, _KIND.CLUSTER, None, ("admin",), False),
    "alter_cluster": (_OP.ALTER, _KIND.CLUSTER, None, ("admin",), False),
    "describe_cluster": (_OP.DESCRIBE, _KIND.CLUSTER, None, ("admin",), False),
    "describe_configs_cluster": (_OP.DESCRIBE_CONFIGS, _KIND.CLUSTER, None, ("admin",), False),
    "alter_configs_cluster": (_OP.ALTER_CONFIGS, _KIND.CLUSTER, None, ("admin",), False),
    "cluster_action_cluster": (_OP.CLUSTER_ACTION, _KIND.CLUSTER, None, (), False),
    "idempotent_write_cluster": (_OP.IDEMPOTENT_WRITE, _KIND.CLUSTER, None, (), False),
    "write_transactional_id": (_OP.WRITE, _KIND.TRANSACTIONAL_ID, None, ("produce",), False),
    "describe_transactional_id": (_OP.DESCRIBE, _KIND.TRANSACTIONAL_ID, None, ("produce",), False),
}


def document_says_of_need(document: Document, principal: str, need: str, name: str) -> Said:
    _, kind, _, actions, or_admin = NEEDS[need]
    if not actions and not or_admin:
        return "closed"
    asked = "cluster" if kind is ResourceType.CLUSTER else name
    said = [document_says(document, principal, action, kind.name.lower(), asked) for action in actions]
    if or_admin:
        said.append(_admin_says(document, principal, name))
    return best(said)


def kafka_says_of_need(
    bindings: Sequence[AclBinding], principal: str, host: str, need: str, name: str, allow_everyone: bool
) -> Said:
    operation, kind, or_cluster, _, _ = NEEDS[need]
    on_resource = kafka_says(bindings, principal, host, operation, kind, name, allow_everyone)
    if or_cluster is None:
        return on_resource
    on_cluster = kafka_says(
        bindings, principal, host, or_cluster, ResourceType.CLUSTER, "kafka-cluster", allow_everyone
    )
    return in_either_place(on_resource, on_cluster)


def in_either_place(one: Said, other: Said) -> Said:
    """Where Kafka takes the operation on the resource or on the cluster: a deny is more than no word at all."""
    order: tuple[Said, ...] = ("allow", "open", "deny", "closed")
    return min(one, other, key=order.index)


def decision(kafka: Said | None, document: Said | None) -> bool:
    """What follows from what the sources say that are on: a deny in either wins."""
    said = [word for word in (kafka, document) if word is not None]
    if "deny" in said:
        return False
    if "allow" in said:
        return True
    return bool(said) and all(word == "open" for word in said)
