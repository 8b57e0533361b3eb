"""Goal: rules make of a distinguished name what Kafka's would, never a name out of half a value, and in little time."""

from __future__ import annotations

import time

import pytest

from kafscale.security.principal_rules import PrincipalRules


@pytest.mark.parametrize(
    ("rules", "name", "principal"),
    [
        # KIP-371's own examples.
        ("RULE:^CN=(.*?),OU=ServiceUsers.*$/$1/", "CN=serviceuser,OU=ServiceUsers,O=Unknown", "serviceuser"),
        (
            "RULE:^CN=(.*?),OU=(.*?),O=(.*?),L=(.*?),ST=(.*?),C=(.*?)$/$1@$2/L",
            "CN=adminUser,OU=Admin,O=Unknown,L=Unknown,ST=Unknown,C=Unknown",
            "adminuser@admin",
        ),
        ("RULE:^.*[Cc][Nn]=([a-zA-Z0-9.]*).*$/$1/U", "O=x,CN=kafka.user", "KAFKA.USER"),
        ("RULE:^OU=(.*)$/$1/,\n  RULE:^CN=(.*)$/$1/, DEFAULT", "CN=alice", "alice"),
        ("RULE:^OU=(.*)$/$1/,DEFAULT", "CN=alice", "CN=alice"),
        ("DEFAULT", "CN=alice,O=x", "CN=alice,O=x"),
        # The whole name must match; what refers to no group is literal.
        ("RULE:CN=(.*)/$1/", "O=x,CN=alice", None),
        ("RULE:CN=(\\w+)/$1$2$9-$/", "CN=alice", "alice$2$9-$"),
        ("RULE:CN=(\\w+)/$0/", "CN=alice", "CN=alice"),
        ("RULE:CN=(a)?(b)?/x$1$2/", "CN=b", "xb"),
        ("RULE:CN=(.*)/$1/L", "CN=JÜRGEN", "jürgen"),
        ("RULE:CN=a\\/(.*)/$1/", "CN=a/b", "b"),
        # An empty result is nobody's name.
        ("RULE:CN=(x?).*/$1/", "CN=alice", None),
        ("DEFAULT", "", None),
    ],
)
def test_rules(rules: str, name: str, principal: str | None) -> None:
    assert PrincipalRules(rules).name_of(name) == principal


@pytest.mark.parametrize(
    "rules",
    [
        r"RULE:^CN=(.*?),OU=.*$/$1/",
        r"RULE:^CN=([^,]+),?.*$/$1/",
        r"RULE:^CN=(\w+).*$/$1/L",
        r"RULE:^CN=(.{5}).*$/$1/",
    ],
)
def test_half_a_value_is_nobody(rules: str) -> None:
    """The one value "admin,OU=x" is not `admin`, however loosely a rule is written."""
    assert PrincipalRules(rules).name_of(r"CN=admin\,OU\=x") is None
    assert PrincipalRules(rules).name_of("CN=admin,OU=x") == "admin"


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "admin",
        "RULE:a",
        "RULE:a/b",
        "RULE:a/b/X",
        "RULE:(/b/",
        "RULE:(?=a)/b/",
        r"RULE:(a)\1/b/",
        "RULE:a/b/ DEFAULT",
        "DEFAULTS",
        ",".join(["DEFAULT"] * 65),
        "RULE:" + "a" * 1100 + "/b/",
    ],
)
def test_rules_that_are_refused(rules: str) -> None:
    """What can't be read, or not be matched in bounded time, stops the start."""
    with pytest.raises(ValueError, match=r"rule|pattern"):
        PrincipalRules(rules)


def test_time_is_bounded() -> None:
    """Patterns that take other engines for ever take this one milliseconds, on the longest name there may be."""
    rules = PrincipalRules(r"RULE:^CN=(.*),OU=(.*),OU=(.*),OU=(.*),OU=(.*),O=z$/$1/,RULE:^(C*)*(N|=)*$/$1/")
    began = time.process_time()
    assert rules.name_of(("CN=" + ",OU=" * 900)[:4096]) is None
    assert time.process_time() - began < 0.5
    assert rules.name_of("CN=" + "a" * 5000) is None
