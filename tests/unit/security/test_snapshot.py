"""Goal: what is compiled decides as the rules say, says which rule decided, and is refused where it is not whole."""

from __future__ import annotations

import os
import random

import pytest

from kafscale.errors import Corrupt, UsageError
from kafscale.protocol.acls import CLUSTER_NAME, AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.security import needs
from kafscale.security.access import DECISIONS_MAX, Budget, FullAccess, NoAccess, SnapshotAccess
from kafscale.security.acl_rules import RuleSet, parse_super_users
from kafscale.security.kafscale_document import parse_document
from kafscale.security.needs import Need
from kafscale.security.questions import ask
from kafscale.security.sealed_memory import open_sealed, seal
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from kafscale.security.snapshot_format import CHECKED_FROM, FORMAT_VERSION, HEADER
from tests.unit.security import differential, naive
from tests.unit.security.random_rules import rule_set_of

HERE = "10.0.0.1"
ALICE = "User:alice"
_KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.CLUSTER}


def binding(text: str, principal: str = ALICE, host: str = "*") -> AclBinding:
    """`allow read topic t`, `deny all topic p*` (a prefix), `allow read topic *` (any)."""
    permission, operation, resource, name = text.split()
    is_prefix = name.endswith("*") and name != "*"
    return AclBinding(
        resource_type=_KINDS[resource],
        pattern_type=PatternType.PREFIXED if is_prefix else PatternType.LITERAL,
        name=name.removesuffix("*") if is_prefix else name,
        principal=principal,
        host=host,
        operation=Operation[operation.upper()],
        permission=Permission[permission.upper()],
    )


def snapshot(
    *bindings: AclBinding | str, document: str | None = None, everyone: bool = False, super_users: str = ""
) -> Snapshot:
    """Of Kafka's bindings, unless there is only a document."""
    bound = [binding(item) if isinstance(item, str) else item for item in bindings]
    rules = RuleSet(
        document=None if document is None else parse_document(document),
        document_source="acl.json",
        bindings=bound if bound or document is None else None,
        allow_everyone_if_no_acl_found=everyone,
        super_users=parse_super_users(super_users),
    )
    return Snapshot(compile_snapshot(rules, 7))


def access(rules: Snapshot, principal: str = ALICE, host: str = HERE) -> SnapshotAccess:
    return SnapshotAccess(rules, principal, host)


# Differences


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_compiled_rules_decide_as_a_naive_reading_does(first: int) -> None:
    """Random sets of up to 200 rules of one source or both: the same decision, cached, uncached and explained."""
    for seed in range(first, first + 20):
        differential.compare(seed)


def test_every_need_is_in_the_naive_reading() -> None:
    """The table that decisions are compared with is written out, and has an entry for each need."""
    assert {need.label for need in needs.NEEDS} == naive.NEEDS.keys()
    for need in needs.NEEDS:
        operation, resource, or_cluster, _, _ = naive.NEEDS[need.label]
        assert (need.operation, need.resource, need.or_cluster) == (operation, resource, or_cluster)


# Kafka


@pytest.mark.parametrize("pattern", ["t", "t*", "*"])
@pytest.mark.parametrize("principal", [ALICE, "User:*"])
def test_deny_beats_allow_at_every_pattern(pattern: str, principal: str) -> None:
    """However particular the allow and however general the deny."""
    rules = snapshot("allow all topic t", binding(f"deny read topic {pattern}", principal))
    assert not access(rules).allows(needs.READ_TOPIC, "t")
    assert access(rules).allows(needs.WRITE_TOPIC, "t")


def test_a_deny_of_one_operation_keeps_what_it_does_not_name() -> None:
    """DENY Read keeps Describe, which ALLOW Read gives; DENY All takes everything."""
    rules = snapshot("allow read topic *", "deny read topic t", "deny all topic u")
    assert access(rules).allows(needs.DESCRIBE_TOPIC, "t")
    assert not access(rules).allows(needs.DESCRIBE_TOPIC, "u")
    assert access(rules).allows(needs.READ_TOPIC, "v")


def test_super_users_ignore_every_rule() -> None:
    """A super user may do what is denied to him by name, and what no rule speaks of; others of like name may not."""
    rules = snapshot(
        binding("deny all topic *", "User:*"),
        document='{"principals":[{"name":"alice","deny":[{}]}]}',
        super_users=ALICE,
    )
    assert access(rules).allows(needs.WRITE_TOPIC, "t") and access(rules).writes_somewhere()
    assert access(rules).allows(needs.CLUSTER_ACTION, CLUSTER_NAME)
    for other in ("User:Alice", "alice", "Group:alice"):
        assert not access(rules, other).allows(needs.WRITE_TOPIC, "t")


@pytest.mark.parametrize(
    ("rule_host", "peer", "is_allowed"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.10", False),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("fe80::1", "FE80::0001", True),
        ("::1", "10.0.0.1", False),
        ("localhost", "127.0.0.1", False),
        ("10.0.0.0/8", "10.0.0.1", False),
    ],
)
def test_hosts_are_addresses_however_they_are_spelt(rule_host: str, peer: str, is_allowed: bool) -> None:
    """An IPv4 address in IPv6's dress is that address, for peers and for rules; names and networks match nobody."""
    rules = snapshot(binding("allow read topic t", host=rule_host))
    assert access(rules, host=peer).allows(needs.READ_TOPIC, "t") is is_allowed
    denied = snapshot("allow read topic t", binding("deny read topic t", host=rule_host))
    assert access(denied, host=peer).allows(needs.READ_TOPIC, "t") is not is_allowed


def test_open_to_everyone_only_where_no_acl_is() -> None:
    """Any binding of anybody closes its resource, a prefix all that it covers, `*` all of its kind."""
    rules = snapshot(
        binding("allow read topic a", "User:bob"), binding("deny write topic p*", "User:bob"), everyone=True
    )
    assert access(rules).allows(needs.WRITE_TOPIC, "b") and access(rules).allows(needs.READ_GROUP, "a")
    assert not access(rules).allows(needs.READ_TOPIC, "a") and not access(rules).allows(needs.READ_TOPIC, "pq")
    assert not access(snapshot(binding("allow read topic *", "User:bob"), everyone=True)).allows(needs.READ_TOPIC, "b")


@pytest.mark.parametrize(
    ("rules", "is_allowed"),
    [
        (("allow write topic t",), True),
        (("allow write topic t", "deny write topic t"), False),
        (("allow write topic t*", "deny write topic t"), True),
        (("allow write topic t", "deny all topic *"), False),
        (("allow write topic tu", "deny write topic t*"), False),
        (("allow write topic *", "deny write topic t*"), True),
        # A prefix that is not about writing hides nothing that is.
        (("allow read topic a*", "allow write topic ab"), True),
        (("deny read topic a*", "allow write topic ab"), True),
        (("allow read topic t",), False),
        (("allow idempotent_write cluster kafka-cluster",), True),
        (("allow all cluster kafka-cluster",), True),
    ],
)
def test_who_may_write_somewhere_may_have_a_producer_id(rules: tuple[str, ...], is_allowed: bool) -> None:
    """KIP-679: some allowed name or prefix must be left that no deny covers."""
    assert access(snapshot(*rules)).writes_somewhere() is is_allowed


def test_denies_of_others_count_for_everybody() -> None:
    """A deny to User:* covers what alice alone is allowed, a thousand names as well as one."""
    allowed = [f"allow write topic team-{number}" for number in range(3000)]
    rules = snapshot(*allowed, binding("deny write topic team-*", "User:*"))
    assert not access(rules).writes_somewhere()
    assert access(
        snapshot(*allowed, "allow write topic z", binding("deny write topic team-*", "User:*"))
    ).writes_somewhere()


# KafScale


def document(allow: str = "", deny: str = "", default: str = "deny") -> str:
    return f'{{"default_policy":"{default}","principals":[{{"name":"alice","allow":[{allow}],"deny":[{deny}]}}]}}'


def rule(action: str, resource: str, name: str = "*") -> str:
    return f'{{"action":"{action}","resource":"{resource}","name":"{name}"}}'


def test_administration_of_topics_takes_the_cluster_or_the_word() -> None:
    """`admin` on the cluster, or on the topic in so many words; `*` on topics is no more than in KafScale."""
    by_cluster = access(snapshot(document=document(rule("admin", "cluster"))))
    by_topic = access(snapshot(document=document(rule("admin", "topic", "t*"))))
    by_star = access(snapshot(document=document(rule("*", "topic"))))
    assert by_cluster.allows(needs.DELETE_ANY_TOPIC, "t")
    assert by_topic.allows(needs.DELETE_ANY_TOPIC, "t") and not by_topic.allows(needs.DELETE_ANY_TOPIC, "u")
    assert by_star.allows(needs.READ_TOPIC, "t") and not by_star.allows(needs.DELETE_ANY_TOPIC, "t")


def test_a_deny_on_a_topic_stops_its_administrators() -> None:
    """Who administers the cluster still may not touch a topic that is denied to him, nor see it."""
    for denied in (rule("*", "topic", "secret*"), rule("admin", "topic", "secret*")):
        who = access(snapshot(document=document(rule("admin", "cluster"), denied)))
        assert who.allows(needs.ALTER_TOPIC, "t") and not who.allows(needs.ALTER_TOPIC, "secret-1")
        assert who.shows(needs.DESCRIBE_TOPIC, "t") and not who.shows(needs.DESCRIBE_TOPIC, "secret-1")


@pytest.mark.parametrize("action", ["produce", "fetch"])
def test_a_topic_is_shown_to_whoever_uses_it(action: str) -> None:
    """Metadata asks for a right that KafScale has no word for: any use of the topic gives it."""
    who = access(snapshot(document=document(rule(action, "topic", "t"))))
    assert who.shows(needs.DESCRIBE_TOPIC, "t") and not who.shows(needs.DESCRIBE_TOPIC, "u")
    assert who.allows(needs.CREATE_BY_USE, "t") is (action == "produce")


def test_no_document_makes_a_broker() -> None:
    """Not even one that allows everything to everybody."""
    who = access(snapshot(document=document(rule("*", "*"), default="allow")))
    assert not who.allows(needs.CLUSTER_ACTION, CLUSTER_NAME)


def test_names_of_principals_come_without_their_type() -> None:
    """User:alice is `alice`, who has no name is `anonymous`, and other types keep theirs."""
    rules = snapshot(document='{"principals":[{"name":"anonymous","allow":[{}]},{"name":"Group:a","allow":[{}]}]}')
    for principal in ("User:ANONYMOUS", "User:", "User:  ", "Group:a"):
        assert access(rules, principal).allows(needs.READ_TOPIC, "t"), principal
    assert not access(rules, "User:a").allows(needs.READ_TOPIC, "t")


# Both


@pytest.mark.parametrize(
    ("bindings", "in_document", "is_allowed"),
    [
        (["allow read topic t"], document(deny=rule("fetch", "topic", "t")), False),
        (["deny read topic t"], document(rule("fetch", "topic", "t")), False),
        (["allow read topic t"], document(), True),
        (["allow read topic u"], document(rule("fetch", "topic", "t")), True),
        (["allow read topic u"], document(), False),
        (["allow read topic u"], document(default="allow"), False),
        (["allow read topic t"], document(default="allow"), True),
        # Of two ways to the same right one is denied, the other not spoken of: that is no deny.
        (["allow read topic t"], document(deny=rule("produce", "topic", "t")), True),
    ],
)
def test_with_both_sources_a_deny_in_either_wins(bindings: list[str], in_document: str, is_allowed: bool) -> None:
    """Else an allow in either allows, and where no rule matches both must be open by default."""
    assert access(snapshot(*bindings, document=in_document)).allows(needs.READ_TOPIC, "t") is is_allowed


def test_what_is_denied_one_way_is_not_denied_the_other() -> None:
    """Whom the document forbids to fetch and to produce may still be an administrator, of whom it says nothing: so an
    ALLOW of Kafka's to describe the topic stands. Forbidden that as well, he is shown nothing."""
    denies = f"{rule('fetch', 'topic', 't')},{rule('produce', 'topic', 't')}"
    rules = snapshot("allow describe topic t", document=document(deny=denies))
    assert access(rules).shows(needs.DESCRIBE_TOPIC, "t")
    rules = snapshot("allow describe topic t", document=document(deny=f"{denies},{rule('admin', 'cluster')}"))
    assert not access(rules).shows(needs.DESCRIBE_TOPIC, "t")


def test_open_defaults_of_both_open() -> None:
    """`default_policy: allow` and allow_everyone_if_no_acl_found, and no rule: allowed."""
    rules = snapshot(binding("allow read topic u", "User:bob"), document=document(default="allow"), everyone=True)
    assert access(rules).allows(needs.READ_TOPIC, "t")
    assert not access(rules).allows(needs.READ_TOPIC, "u")
    shut = snapshot(binding("allow read topic u", "User:bob"), document=document(), everyone=True)
    assert not access(shut).allows(needs.READ_TOPIC, "t")


def test_a_broken_document_denies_all_but_super_users() -> None:
    """Whatever Kafka's bindings allow, since nobody knows what the document would deny."""
    rules = RuleSet(
        bindings=[binding("allow all topic *")],
        document_source="acl.json",
        broken="it is no JSON",
        super_users=frozenset({"User:root"}),
    )
    found = Snapshot(compile_snapshot(rules, 1))
    assert not access(found).allows(needs.READ_TOPIC, "t") and not access(found).writes_somewhere()
    assert access(found, "User:root").allows(needs.READ_TOPIC, "t")
    assert "no JSON" in access(found).explain(needs.READ_TOPIC, "t").reason


# What clients are told, and what is remembered


def test_operations_are_told_as_bits() -> None:
    """KIP-430: each operation that is allowed on this very topic, what is implied included."""
    who = access(snapshot("allow read topic t", "allow alter_configs topic t"))
    expected = needs.bits(Operation.READ, Operation.DESCRIBE, Operation.ALTER_CONFIGS, Operation.DESCRIBE_CONFIGS)
    assert who.operations(ResourceType.TOPIC, "t") == expected
    assert who.operations(ResourceType.TOPIC, "u") == 0
    assert NoAccess(ALICE, HERE).operations(ResourceType.TOPIC, "t") == 0
    assert FullAccess(ALICE, HERE).operations(ResourceType.GROUP, "g") == needs.SUPPORTED_BITS[ResourceType.GROUP]


def test_denials_are_reported_each_time_and_filtering_never() -> None:
    """A decision that is remembered is still reported; what nobody asked for by name is not."""
    reported: list[tuple[Need, str]] = []
    who = SnapshotAccess(
        snapshot("allow read topic t"), ALICE, HERE, lambda asking, need, name: reported.append((need, name))
    )
    for _ in range(2):
        who.allows(needs.WRITE_TOPIC, "t")
        who.allows(needs.READ_TOPIC, "t")
        who.shows(needs.DESCRIBE_TOPIC, "u")
    assert reported == [(needs.WRITE_TOPIC, "t")] * 2


def test_memory_of_decisions_is_bounded() -> None:
    """A client that asks about a million names costs no more than one that asks about some thousand."""
    budget = Budget()
    budget.left = 100
    rules = snapshot("allow read topic t*")
    who = SnapshotAccess(rules, ALICE, HERE, budget=budget)
    for number in range(300):
        assert who.shows(needs.READ_TOPIC, f"t{number}")
        assert not who.shows(needs.READ_TOPIC, f"u{number % 3}")
        if number == 90:
            assert budget.left < 10
    assert budget.left > DECISIONS_MAX - 300
    assert sum(map(len, who._decisions)) == DECISIONS_MAX - budget.left + 1


def test_a_defect_denies() -> None:
    """What can't be decided is denied, and nothing is raised."""
    who = access(snapshot("allow read topic t"))
    who.snapshot.masks = None  # type: ignore[method-assign, assignment]
    assert not who.allows(needs.READ_TOPIC, "t")


# Explanations


@pytest.mark.parametrize(
    ("question", "is_allowed", "words"),
    [
        (
            ("alice", "fetch", "topic", "t1"),
            True,
            ("principals[0].allow[0] of 'alice'", "fetch on topic 't*'", "acl.json"),
        ),
        (("alice", "fetch", "topic", "t9"), False, ("principals[0].deny[0]", "deny * on topic 't9'", "acl.json")),
        (("alice", "READ", "topic", "t1"), True, ("allow[0]",)),
        (("alice", "Write", "Topic", "k"), True, ("ALLOW WRITE on TOPIC:PREFIXED:k to User:alice", "catalogue")),
        (("bob", "Describe", "group", "g"), False, ("no ACL allows it; no rule matches", "default policy is deny")),
        (("User:root", "ClusterAction", "cluster", None), True, ("User:root is a super user",)),
        (("alice", "IdempotentWrite", "cluster", None), True, ("may write to some topic",)),
        (("alice", "alter-configs", "cluster", "kafka-cluster"), False, ("no ACL allows it",)),
    ],
)
def test_a_decision_names_its_rule_and_where_that_is(
    question: tuple[str, str, str, str | None], is_allowed: bool, words: tuple[str, ...]
) -> None:
    """Which rule decided, in its source's words, and where to look for it; or that none did, and why."""
    rules = snapshot(
        "allow write topic k*",
        document=document(rule("fetch", "topic", "t*"), rule("*", "topic", "t9")),
        super_users="User:root",
    )
    principal, action, resource, name = question
    found = ask(rules, principal, HERE, action, resource, name)
    assert found.is_allowed is is_allowed
    text = f"{found.reason} {found.rule} {found.source}"
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("action", "resource", "name", "complaint"),
    [
        ("juggle", "topic", "t", "there is no such action"),
        ("fetch", "planet", "t", "there is no such resource"),
        ("read", "cluster", "kafka-cluster", "no request needs READ on a cluster"),
        ("all", "topic", "t", "no request needs ALL"),
        ("read", "topic", None, "--name is missing"),
        ("read", "topic", "", "--name is empty"),
        ("alter", "cluster", "prod", "the cluster is called kafka-cluster"),
    ],
)
def test_questions_that_make_no_sense_are_refused(action: str, resource: str, name: str | None, complaint: str) -> None:
    """With a line that says what is wrong and what there is instead."""
    with pytest.raises(UsageError, match=complaint):
        ask(snapshot("allow read topic t"), "alice", HERE, action, resource, name)


def test_bindings_come_back_as_they_were_given() -> None:
    """DescribeAcls reads them out of the snapshot: all of them, once each."""
    given = [
        binding("allow read topic t"),
        binding("deny read topic t", "User:*"),
        binding("allow write topic t*", host="10.0.0.9"),
        binding("allow alter cluster kafka-cluster", "Group:é"),
        binding("allow all group *"),
    ]
    rules = snapshot(*given, document=document(rule("fetch", "topic")), everyone=True)
    assert sorted(rules.bindings()) == sorted(given)


# Soundness


def test_a_snapshot_that_is_cut_off_anywhere_is_refused() -> None:
    """Every length but the right one."""
    data = compile_snapshot(RuleSet(bindings=[binding("allow read topic t"), binding("deny all topic p*")]), 1)
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            Snapshot(data[:length])
    with pytest.raises(Corrupt):
        Snapshot(data + b"\0")


def test_a_snapshot_with_a_flipped_byte_is_refused() -> None:
    """Any byte, header and checksum included."""
    data = compile_snapshot(RuleSet(bindings=[binding("allow read topic t"), binding("deny all topic p*")]), 1)
    for position in range(len(data)):
        data[position] ^= 0x40
        with pytest.raises(Corrupt):
            Snapshot(data)
        data[position] ^= 0x40
    assert Snapshot(data).generation == 1


def test_a_snapshot_of_another_format_is_refused() -> None:
    """By its number, whatever else is in it."""
    data = compile_snapshot(RuleSet(), 1)
    data[8:12] = (FORMAT_VERSION + 1).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="is of format 2; this version reads 1"):
        Snapshot(data)
    assert HEADER.size > CHECKED_FROM


def test_sealed_memory_can_be_changed_by_nobody() -> None:
    """Not even by its maker; and memory that is not sealed is refused, whatever is in it."""
    data = compile_snapshot(RuleSet(bindings=[binding("allow read topic t")]), 3)
    fd = seal(data)
    with pytest.raises(OSError):
        os.write(fd, b"x")
    with pytest.raises(OSError):
        os.ftruncate(fd, 1)
    opened = open_sealed(os.dup(fd))
    os.close(fd)
    assert opened.generation == 3 and access(opened).allows(needs.READ_TOPIC, "t")
    unsealed = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(unsealed, data)
    with pytest.raises(Corrupt, match="not sealed"):
        open_sealed(unsealed)
    with pytest.raises(Corrupt, match="empty"):
        open_sealed(seal(b""))


def test_random_snapshots_survive_the_way_through_memory() -> None:
    """What is mapped says what was compiled."""
    for seed in range(20):
        rules = rule_set_of(random.Random(seed))
        opened = open_sealed(seal(compile_snapshot(rules, seed)))
        assert (opened.generation, opened.rule_count) == (seed, rules.rule_count)


@pytest.mark.parametrize("text", ["alice", "User:", ":alice", "User:a;bob"])
def test_super_users_are_written_with_their_type(text: str) -> None:
    """Kafka ignores such a one silently; here the start does not go on."""
    with pytest.raises(ValueError, match="is no principal"):
        parse_super_users(text)
    assert parse_super_users(" User:a ; Group:b;;") == {"User:a", "Group:b"}
