"""What one source of rules says, and how what two say becomes one decision (`acl_rules.py` states the rules). Pure."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """What one source says."""

    CLOSED = 0  # No rule matches, and the default denies.
    DENY = 1  # A rule denies.
    OPEN = 2  # No rule matches, and the default allows.
    ALLOW = 3  # A rule allows.


def decide(kafka: Verdict | None, document: Verdict | None) -> bool:
    """One decision of what the sources say; None is said by one that is off."""
    if kafka is None or document is None:
        only = document if kafka is None else kafka
        return only is not None and only >= Verdict.OPEN
    if kafka == Verdict.DENY or document == Verdict.DENY:
        return False
    if kafka == Verdict.ALLOW or document == Verdict.ALLOW:
        return True
    return kafka == Verdict.OPEN and document == Verdict.OPEN


def in_either_place(one: Verdict, other: Verdict) -> Verdict:
    """Of Kafka's bindings, where the same operation on the resource or on the cluster will do. A DENY of one of them
    stands, unless the other allows."""
    return max(one, other)


def in_either_way(one: Verdict, other: Verdict) -> Verdict:
    """Of a document, where either of two actions will do. Only who is denied both is denied."""
    if Verdict.ALLOW in (one, other):
        return Verdict.ALLOW
    return other if one == Verdict.DENY else one
