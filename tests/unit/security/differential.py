"""The compiled rules against a naive reading of them, on random rules and questions. As a program it runs a million:
`python -m tests.unit.security.differential --decisions 1000000` (make test-acls)."""

from __future__ import annotations

import argparse
import random

import msgspec

from kafscale.protocol.acls import CLUSTER_NAME, Operation, ResourceType, normal_host
from kafscale.security.access import ANONYMOUS, SnapshotAccess
from kafscale.security.acl_rules import RuleSet
from kafscale.security.needs import NEEDS
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from tests.unit.security import naive
from tests.unit.security.random_rules import HOSTS, PRINCIPALS, name_of, rule_set_of

QUESTIONS_PER_SET = 400


def expected(rules: RuleSet, principal: str, host: str, need: str, name: str) -> bool:
    """The decision by the naive reading."""
    if principal in rules.super_users:
        return True
    kafka = document = None
    if rules.bindings is not None:
        bindings = rules.bindings
        kafka = naive.kafka_says_of_need(bindings, principal, host, need, name, rules.allow_everyone_if_no_acl_found)
    if rules.document is not None:
        document = naive.document_says_of_need(rules.document, document_principal(principal), need, name)
    return naive.decision(kafka, document)


def expected_somewhere(rules: RuleSet, principal: str, host: str) -> bool:
    """Whether the principal may have a producer id."""
    if principal in rules.super_users:
        return True
    kafka = document = None
    if rules.bindings is not None:
        everyone = rules.allow_everyone_if_no_acl_found
        about_cluster = naive.kafka_says_of_need(
            rules.bindings, principal, host, "idempotent_write_cluster", CLUSTER_NAME, everyone
        )
        somewhere = naive.kafka_says_somewhere(
            rules.bindings, principal, host, Operation.WRITE, ResourceType.TOPIC, everyone
        )
        kafka = naive.in_either_place(about_cluster, somewhere)
    if rules.document is not None:
        document = naive.document_says_somewhere(rules.document, document_principal(principal))
    return naive.decision(kafka, document)


def document_principal(principal: str) -> str:
    return "anonymous" if principal == ANONYMOUS else principal.removeprefix("User:")


def with_normal_hosts(rules: RuleSet) -> RuleSet:
    """The rules with addresses spelt as peers' are: the naive reading compares texts."""
    if rules.bindings is None:
        return rules
    bindings = [msgspec.structs.replace(binding, host=normal_host(binding.host)) for binding in rules.bindings]
    return RuleSet(
        rules.document, rules.document_source, bindings, rules.allow_everyone_if_no_acl_found, rules.super_users
    )


def compare(seed: int, questions: int = QUESTIONS_PER_SET) -> int:
    """Ask `questions` questions about one random set of rules. Returns how many were asked; AssertionError names the
    first that was answered differently."""
    source = random.Random(seed)
    rules = rule_set_of(source)
    snapshot = Snapshot(compile_snapshot(rules, seed + 1))
    plain = with_normal_hosts(rules)
    for number in range(questions):
        principal, host = source.choice(PRINCIPALS), source.choice(HOSTS[:3])
        need = source.choice(NEEDS)
        name = CLUSTER_NAME if need.resource is ResourceType.CLUSTER else name_of(source)
        access = SnapshotAccess(snapshot, principal, host)
        wanted = expected(plain, principal, host, need.label, name)
        question = f"seed {seed}, question {number}: may {principal} from {host} {need.label} {name!r}?"
        assert access.allows(need, name) is wanted, question
        assert access.allows(need, name) is wanted, f"{question} (asked again)"
        explanation = access.explain(need, name)
        assert explanation.is_allowed is wanted, f"{question} ({explanation})"
        if number % 8 == 0:
            wanted = expected_somewhere(plain, principal, host)
            assert access.writes_somewhere() is wanted, f"seed {seed}: may {principal} from {host} write somewhere?"
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    asked, seed = 0, arguments.seed
    while asked < arguments.decisions:
        asked += compare(seed)
        seed += 1
    print(f"{asked} decisions on {seed - arguments.seed} sets of up to 200 rules: no difference")


if __name__ == "__main__":
    main()
