"""Goal: the catalogue's ACLs are what was created and not deleted, each once, however many commands and versions lie
between; and they are bounded.
"""

from __future__ import annotations

import random

import msgspec
import pytest

from kafscale.coordination import acl_draft
from kafscale.coordination.acl_draft import AclDraft
from kafscale.coordination.cluster import (
    Change,
    ClusterState,
    Version,
    apply,
    decode_state,
    decode_version,
    decode_version_without_acls,
    encode_state,
    encode_state_without_acls,
    encode_version,
)
from kafscale.coordination.commands import (
    Command,
    CommandResult,
    CreateAcls,
    CreateTopic,
    DeleteAcls,
    Draft,
    decide_all,
    decode_commands,
    decode_results,
    encode_commands,
    encode_results,
)
from kafscale.errors import Invalid
from kafscale.protocol.acls import AclBinding, AclFilter
from kafscale.protocol.error_codes import ErrorCode

NAMES = ("a", "ab", "abc", "*", "b")


def binding_of(source: random.Random) -> AclBinding:
    return AclBinding(
        source.choice((2, 3)),
        source.choice((3, 4)),
        source.choice(NAMES),
        source.choice(("User:x", "User:*")),
        source.choice(("*", "10.0.0.1")),
        source.choice((2, 3, 4)),
        source.choice((2, 3)),
    )


def filter_of(source: random.Random) -> AclFilter:
    return AclFilter(
        source.choice((1, 2, 3)),
        source.choice((1, 2, 3, 4)),
        source.choice((None, *NAMES)),
        source.choice((None, "User:x")),
        source.choice((None, "*")),
        source.choice((1, 3)),
        source.choice((1, 3)),
    )


def matches(wanted: AclFilter, binding: AclBinding) -> bool:
    """What a filter means, by Kafka's ResourcePatternFilter and AccessControlEntryFilter, written out anew."""
    if wanted.resource_type not in (1, binding.resource_type) or wanted.operation not in (1, binding.operation):
        return False
    if wanted.permission not in (1, binding.permission) or wanted.principal not in (None, binding.principal):
        return False
    if wanted.host not in (None, binding.host) or wanted.pattern_type not in (1, 2, binding.pattern_type):
        return False
    if wanted.name is None or (wanted.name == binding.name and wanted.pattern_type != 2):
        return True
    if wanted.pattern_type != 2:
        return False
    if binding.pattern_type == 4:
        return wanted.name.startswith(binding.name)
    return binding.name in (wanted.name, "*")


class Catalogue:
    """Commands go in as bytes, and the state is what all versions made of the first one."""

    def __init__(self) -> None:
        self.state = ClusterState(version=1, cluster_id="c", slot_count=1, slots=[[]])
        # As a worker sees it.
        self.bare = decode_state(encode_state_without_acls(self.state))
        self.draft = Draft(self.state)

    def execute(self, *commands: Command) -> list[CommandResult]:
        changes, results = decide_all(
            self.draft, decode_commands(encode_commands(commands)), lambda: random.randbytes(16), 0
        )
        if changes:
            self.write(changes)
        return decode_results(encode_results(results))

    def write(self, changes: list[Change], *, with_snapshot: bool = False) -> None:
        version = Version(self.state.version + 1, "w", 0, changes)
        after = apply(self.state, decode_version(encode_version(version)))
        payload = encode_version(msgspec.structs.replace(version, snapshot=after if with_snapshot else None))
        self.state = decode_state(encode_state(after))
        self.bare = apply(self.bare, decode_version_without_acls(payload))


@pytest.mark.parametrize("seed", range(20))
def test_acls_are_what_was_created_and_not_deleted(seed: int) -> None:
    """Random creations and filters against a plain set; the draft lives on, or is made anew, as a controller does."""
    source = random.Random(seed)
    catalogue = Catalogue()
    expected: dict[AclBinding, None] = {}
    for _ in range(60):
        if source.random() < 0.2:
            catalogue.draft = Draft(catalogue.state)
        if source.random() < 0.6:
            created = [binding_of(source) for _ in range(source.randrange(1, 5))]
            expected.update(dict.fromkeys(created))
            assert catalogue.execute(CreateAcls(bindings=created)) == [CommandResult()]
        else:
            filters = [filter_of(source) for _ in range(source.randrange(1, 3))]
            results = catalogue.execute(*(DeleteAcls(filter=wanted) for wanted in filters))
            for wanted, result in zip(filters, results, strict=True):
                gone = [binding for binding in expected if matches(wanted, binding)]
                assert sorted(result.acls) == sorted(gone)
                for binding in gone:
                    del expected[binding]
        assert catalogue.state.acls == list(expected)
        assert catalogue.bare.acls == [] and catalogue.bare.version == catalogue.state.version


def test_workers_follow_versions_without_the_acls_in_them() -> None:
    """A version's snapshot too: topics come through, ACLs don't."""
    catalogue = Catalogue()
    catalogue.execute(CreateAcls(bindings=[binding_of(random.Random(1))]), CreateTopic(name="t"))
    catalogue.write([], with_snapshot=True)
    assert list(catalogue.bare.topics) == ["t"] and catalogue.bare.acls == []
    assert len(catalogue.state.acls) == 1


def test_their_number_and_size_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that would go beyond a bound is refused with POLICY_VIOLATION and adds nothing at all."""
    monkeypatch.setattr(acl_draft, "MAX_ACLS", 5)
    monkeypatch.setattr(acl_draft, "MAX_ACLS_PER_COMMAND", 4)
    monkeypatch.setattr(acl_draft, "MAX_ACL_BYTES", 400)
    draft = AclDraft([])

    def bindings(first: int, count: int, name: str = "t") -> list[AclBinding]:
        return [AclBinding(2, 3, f"{name}{number}", "User:a", "*", 3, 3) for number in range(first, first + count)]

    def refused(wanted: list[AclBinding], text: str) -> None:
        with pytest.raises(Invalid, match=text) as error:
            draft.create(wanted)
        assert error.value.code == ErrorCode.POLICY_VIOLATION

    refused(bindings(0, 5), "a request may create 4 ACLs at most, not 5")
    assert len(draft.create(bindings(0, 4))) == 4
    refused(bindings(3, 3), "the cluster may have 5 ACLs at most, and has 4")
    refused(bindings(9, 1, "x" * 90), "may take 400 bytes")
    assert draft.create(bindings(0, 4)) == []
    assert len(draft.delete(AclFilter(principal="User:a"))) == 4
    assert len(draft.create(bindings(0, 4))) == 4


def test_filters_of_one_request_are_bounded_by_the_work_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """One filter is always served; so are any number that can mean one binding only."""
    monkeypatch.setattr(acl_draft, "MAX_COMPARISONS", 25)
    catalogue = Catalogue()
    bindings = [AclBinding(2, 3, f"t{number}", "User:a", "*", 3, 3) for number in range(10)]
    catalogue.execute(CreateAcls(bindings=bindings))
    vague = DeleteAcls(filter=AclFilter(name="none"))
    exact = DeleteAcls(filter=AclFilter(2, 3, "t1", "User:a", "*", 3, 3))
    codes = [result.error_code for result in catalogue.execute(vague, vague, vague, exact, exact)]
    assert codes == [0, 0, ErrorCode.POLICY_VIOLATION, 0, 0]
    assert [result.error_code for result in catalogue.execute(vague)] == [0]
    assert len(catalogue.state.acls) == 9
