"""Goal: the quota that counts for a client is the one that Kafka would take, and what is no quota is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.coordination.cluster import ClusterState, SetQuota, Version, apply, decode_version, encode_version
from kafscale.coordination.commands import AlterQuota, Draft, decide_all
from kafscale.coordination.quotas import (
    FETCH_RATE,
    KEYS,
    PRODUCE_RATE,
    REQUEST_PERCENTAGE,
    ClientQuota,
    Component,
    QuotaEntity,
    QuotaRules,
    entity_complaint,
    filter_complaint,
    matching,
    value_complaint,
)
from kafscale.protocol.error_codes import ErrorCode

# As Kafka's documentation lists them: who is named, and how. The first that has a value counts.
ORDER = [
    {"user": "alice", "client_id": "app"},
    {"user": "alice", "client_id": None},
    {"user": "alice"},
    {"user": None, "client_id": "app"},
    {"user": None, "client_id": None},
    {"user": None},
    {"client_id": "app"},
    {"client_id": None},
]
ENTITIES = [QuotaEntity.of(**names) for names in ORDER]
OTHERS = [QuotaEntity.of(user="bob"), QuotaEntity.of(user="bob", client_id="app"), QuotaEntity.of(client_id="other")]


def rules(*quotas: tuple[QuotaEntity, dict[str, float]]) -> QuotaRules:
    return QuotaRules([ClientQuota(entity, values) for entity, values in quotas])


@given(st.sets(st.sampled_from(range(len(ORDER)))), st.sampled_from(sorted(KEYS)))
def test_the_nearest_quota_counts(there: set[int], key: str) -> None:
    """Of any set of quotas the first in Kafka's order; those of others, and other keys, count for nothing."""
    other_key = next(one for one in KEYS if one != key)
    found = rules(
        *((ENTITIES[number], {key: 100.0 + number}) for number in there),
        *((ENTITIES[number], {other_key: 1.0}) for number in range(len(ORDER)) if number not in there),
        *((entity, dict.fromkeys(KEYS, 2.0)) for entity in OTHERS),
    ).limits_of("alice", "app")
    limit = {PRODUCE_RATE: found.produce, FETCH_RATE: found.fetch, REQUEST_PERCENTAGE: found.request}[key]
    assert (None if limit is None else limit.rate) == (100.0 + min(there) if there else None)


def test_who_shares_a_quota() -> None:
    """A user's is shared by all its clients, a client id's by all users of it, one of both is each pair's own; a
    default makes as many quotas as there are names."""
    clients = [(user, client) for user in ("alice", "bob") for client in ("app", "etl")]
    expected = {"user": 2, "client_id": 2, "both": 4}
    for name, of in (("user", ["user"]), ("client_id", ["client_id"]), ("both", ["user", "client_id"])):
        found = rules((QuotaEntity.of(**dict.fromkeys(of)), {PRODUCE_RATE: 5.0}))
        limits = [found.limits_of(*client).produce for client in clients]
        assert all(limit is not None for limit in limits)
        assert len({limit.shared_by for limit in limits if limit is not None}) == expected[name]
    # Also where two users' names and client ids run together to the same text, and between kinds of quota.
    found = rules((QuotaEntity.of(user=None, client_id=None), dict.fromkeys(KEYS, 5.0)))
    several = [found.limits_of(*one) for one in (("a", "b', 'c"), ("a', 'b", "c"), ("", ""), ("None", "None"))]
    assert len({limit.shared_by for limits in several for limit in limits if limit is not None}) == 12


@pytest.mark.parametrize(
    ("key", "value", "is_fine"),
    [
        (PRODUCE_RATE, 1.0, True),
        (PRODUCE_RATE, 2.0**62, True),
        (PRODUCE_RATE, 1.5, False),
        (PRODUCE_RATE, 2.0**63, False),
        (FETCH_RATE, 0.0, False),
        (FETCH_RATE, -1.0, False),
        (REQUEST_PERCENTAGE, 0.5, True),
        (REQUEST_PERCENTAGE, math.nan, False),
        (REQUEST_PERCENTAGE, math.inf, False),
        ("controller_mutation_rate", 1.0, False),
        ("nonsense", 1.0, False),
    ],
)
def test_values(key: str, value: float, is_fine: bool) -> None:
    complaint = value_complaint(key, value)
    assert (complaint is None) == is_fine
    assert is_fine or key in str(complaint)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [("user", "a"), ("user", "b")],
        [("ip", "10.0.0.1")],
        [("group", "a")],
        [("user", "x" * 1025)],
        [("client-id", None), ("", "a")],
    ],
)
def test_what_can_have_no_quota(parts: list[tuple[str, str | None]]) -> None:
    assert entity_complaint(parts)


def test_filters_find_what_kafkas_do() -> None:
    """A component means a name, the default, or either; strictly, there is no other type; the rest is refused."""
    quotas = [ClientQuota(entity, {PRODUCE_RATE: 1.0}) for entity in ENTITIES + OTHERS]

    def found(*components: tuple[str, int, str | None], strict: bool = False) -> list[QuotaEntity]:
        return [quota.entity for quota in matching(quotas, [Component(*one) for one in components], strict)]

    assert found() == ENTITIES + OTHERS
    assert found(strict=True) == []
    assert found(("user", 0, "alice")) == ENTITIES[:3]
    assert found(("user", 0, "alice"), strict=True) == [ENTITIES[2]]
    assert found(("user", 1, None)) == ENTITIES[3:6]
    assert found(("client-id", 2, None), strict=True) == [*ENTITIES[6:], OTHERS[2]]
    assert found(("client-id", 0, "app"), ("user", 2, None)) == [ENTITIES[0], ENTITIES[3], OTHERS[1]]
    for wrong in (
        [("", 0, "a")],
        [("user", 0, None)],
        [("user", 1, "a")],
        [("user", 2, "a")],
        [("user", 3, None)],
        [("user", 0, "a"), ("user", 1, None)],
        [("ip", 0, "10.0.0.1"), ("user", 1, None)],
    ):
        assert filter_complaint([Component(*one) for one in wrong]), wrong


changes = st.lists(
    st.tuples(
        st.sampled_from(ENTITIES + OTHERS),
        st.dictionaries(st.sampled_from(sorted(KEYS)), st.none() | st.sampled_from([1.0, 2.0]), max_size=3),
    ),
    max_size=20,
)


@given(changes)
def test_the_catalogue_keeps_what_was_set(sent: list[tuple[QuotaEntity, dict[str, float | None]]]) -> None:
    """Through the bytes of the cluster log and of a snapshot: what was set last, and nothing that was taken away."""
    before = ClusterState(version=1, cluster_id="c", slot_count=1, slots=[[]])
    commands = [AlterQuota(entity=entity, changes=list(values.items())) for entity, values in sent]
    noted, results = decide_all(Draft(before), commands, lambda: b"", 0)
    assert not any(result.error_code for result in results)
    version = decode_version(encode_version(Version(2, "w", 0, noted)))
    after = apply(before, version)
    expected: dict[QuotaEntity, dict[str, float]] = {}
    for entity, values in sent:
        kept = expected.setdefault(entity, {}) | values
        expected[entity] = {key: value for key, value in kept.items() if value is not None}
    assert {quota.entity: quota.values for quota in after.quotas} == {k: v for k, v in expected.items() if v}
    assert before.quotas == []
    snapshot = decode_version(encode_version(Version(2, "w", 0, [], after)))
    assert snapshot.snapshot is not None and snapshot.snapshot.quotas == after.quotas


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused with a word; one that is there may still be changed, and another take the place of one."""
    monkeypatch.setattr("kafscale.coordination.commands.MAX_QUOTAS", 2)
    state = ClusterState(version=1, cluster_id="c", slot_count=1, slots=[[]])
    commands = [
        AlterQuota(entity=QuotaEntity.of(user=user), changes=[(PRODUCE_RATE, value)])
        for user, value in [("a", 1.0), ("b", 1.0), ("c", 1.0), ("a", 2.0), ("b", None), ("c", 1.0)]
    ]
    noted, results = decide_all(Draft(state), commands, lambda: b"", 0)
    assert [result.error_code for result in results] == [0, 0, ErrorCode.POLICY_VIOLATION, 0, 0, 0]
    assert noted[-1] == SetQuota(QuotaEntity.of(user="c"), {PRODUCE_RATE: 1.0})
