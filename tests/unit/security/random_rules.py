"""Random rules of both kinds, and random questions about them: few words, so that rules meet each other and the
questions all the time. Everything follows from the random source given."""

from __future__ import annotations

import json
import random

from kafscale.protocol.acls import CLUSTER_NAME, AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.security.acl_rules import RuleSet
from kafscale.security.kafscale_document import parse_document

# The empty one and blanks are of KafScale's; those with a colon in them look like Kafka's.
PRINCIPALS = ("User:a", "User:b", "User:*", "Group:a", "User:User:a", "User:ANONYMOUS", "User: a ", "User:é")
HOSTS = ("10.0.0.1", "10.0.0.2", "::1", "*")
RULE_HOSTS = (*HOSTS, "*", "*", "0:0:0:0:0:0:0:1", "::ffff:10.0.0.1", "localhost")
LETTERS = "ab-é*"
RULES_MAX = 200

DOCUMENT_PRINCIPALS = ("a", "b", "anonymous", " a ", "User:a", "*", "", "\u00a0b\u2003", "é", "Group:a")
ACTIONS = (
    *("produce", "fetch", "group_read", "group_write", "group_admin", "admin"),
    *("produce", "fetch", "*", "", "FETCH", "Admin", "group_wr\u0131te", "fetch ", "\u017f", "alter"),
)
RESOURCES = (
    "topic",
    "topic",
    "group",
    "cluster",
    "*",
    "",
    "TOPIC",
    "clu\u017fter",
    " topic",
    "user",
    "transactional_id",
)
STORABLE_OPERATIONS = [operation for operation in Operation if operation >= Operation.ALL]
_COMMON_OPERATIONS = (Operation.READ, Operation.WRITE, Operation.WRITE, Operation.ALL)
STORABLE_RESOURCES = [kind for kind in ResourceType if kind >= ResourceType.TOPIC]


def name_of(source: random.Random) -> str:
    """A short name of few letters."""
    return "".join(source.choice(LETTERS) for _ in range(source.choice((1, 1, 2, 2, 3, 5))))


def binding_of(source: random.Random) -> AclBinding:
    resource = source.choice((2, 2, 2, 3, 4, 5, source.choice(STORABLE_RESOURCES)))
    name = CLUSTER_NAME if resource == ResourceType.CLUSTER else source.choice(("*", name_of(source), name_of(source)))
    return AclBinding(
        resource_type=resource,
        pattern_type=source.choice((PatternType.LITERAL, PatternType.PREFIXED)),
        name=name,
        principal=source.choice(PRINCIPALS),
        host=source.choice(RULE_HOSTS),
        operation=source.choice((*_COMMON_OPERATIONS, source.choice(STORABLE_OPERATIONS))),
        permission=source.choice((Permission.ALLOW, Permission.ALLOW, Permission.ALLOW, Permission.DENY)),
    )


def document_text(source: random.Random, rules: int) -> str:
    """A document of about so many rules, with principals that are there twice."""
    principals = []
    while rules > 0:
        count = min(rules, source.randrange(1, 12))
        rules -= count
        entry: dict[str, object] = {"name": source.choice(DOCUMENT_PRINCIPALS)}
        entry["allow"] = [_rule(source) for _ in range(count)]
        entry["deny"] = [_rule(source) for _ in range(source.choice((0, 0, 1, 2, count)))]
        principals.append(entry)
    return json.dumps({"default_policy": source.choice(("deny", "allow", " ALLOW ", "")), "principals": principals})


def _rule(source: random.Random) -> dict[str, str]:
    rule = {
        "action": source.choice(ACTIONS),
        "resource": source.choice(RESOURCES),
        "name": source.choice(("*", "", "cluster", " " + name_of(source), name_of(source), name_of(source) + "*")),
    }
    for field in list(rule):
        if source.random() < 0.1:
            del rule[field]
    return rule


def rule_set_of(source: random.Random, rules_max: int = RULES_MAX) -> RuleSet:
    """A set of up to so many rules, of one source or both."""
    which = source.choice(("kafka", "document", "both"))
    count = source.choice((0, 1, 3, 10, 40, rules_max))
    bindings = [binding_of(source) for _ in range(count)] if which != "document" else None
    document = parse_document(document_text(source, count)) if which != "kafka" else None
    return RuleSet(
        document=document,
        document_source="a test",
        bindings=bindings,
        allow_everyone_if_no_acl_found=source.random() < 0.5,
        super_users=frozenset(source.sample(PRINCIPALS, source.choice((0, 0, 0, 1)))),
    )
