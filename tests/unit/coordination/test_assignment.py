"""Goal: slots are spread evenly with few moves, and no list loses an entry that may still hold a slot's manifest."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.coordination.assignment import (
    FIRST_EPOCH,
    EndedLog,
    Incarnation,
    balance,
    hand_over,
    named_logs,
    owners_of,
    replace,
    shorten,
    spread,
    start,
    unsettled_logs,
)
from kafscale.coordination.cluster import Assignment, ClusterState, Version, apply


def state(slots: list[list[Assignment]]) -> ClusterState:
    return ClusterState(version=1, cluster_id="c", slot_count=len(slots), slots=slots)


def applied(before: ClusterState, change) -> ClusterState:
    return apply(before, Version(before.version + 1, "w", 0, [change]))


def ended(log_id: str, *, empty: bool = False, epochs: dict[int, int] | None = None) -> EndedLog:
    return EndedLog(log_id, empty, epochs or {})


@given(
    st.integers(1, 300),
    st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True),
    st.data(),
)
def test_a_spread_is_even_and_moves_as_few_slots_as_can_be(slot_count, nodes, data) -> None:
    owners = data.draw(st.dictionaries(st.integers(0, slot_count - 1), st.integers(0, 20)))
    moves = spread(range(slot_count), nodes, owners)
    after = {slot: moves.get(slot, owners.get(slot)) for slot in range(slot_count)}
    loads = Counter(after.values())
    assert set(loads) <= set(nodes)
    assert max(loads[node] for node in nodes) - min(loads[node] for node in nodes) <= 1
    assert all(owners.get(slot) != node for slot, node in moves.items())
    # The fewest: every homeless slot, and what nodes hold above their share, the larger shares going to the fullest.
    homeless = sum(owners.get(slot) not in nodes for slot in range(slot_count))
    held = sorted((sum(owners.get(s) == node for s in range(slot_count)) for node in nodes), reverse=True)
    base, extra = divmod(slot_count, len(nodes))
    surplus = sum(max(0, count - base - (position < extra)) for position, count in enumerate(held))
    assert len(moves) == homeless + surplus
    assert spread(range(slot_count), nodes, after) == {}


def test_the_partitions_of_a_topic_lie_on_different_nodes() -> None:
    """Neighbouring slots of a fresh cluster alternate."""
    moves = spread(range(8), [0, 1], {})
    assert [moves[slot] for slot in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]


def test_no_nodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="no nodes"):
        spread(range(8), [], {})


def test_a_first_start_begins_every_list() -> None:
    fresh = state([[] for _ in range(4)])
    after = applied(fresh, start(fresh, [Incarnation(0, "a"), Incarnation(1, "b")], {}))
    assert after.slots[0] == [Assignment(FIRST_EPOCH, 0, "a")]
    assert owners_of(after) == {0: 0, 1: 1, 2: 0, 3: 1} and named_logs(after) == {"a", "b"}


def test_a_restart_raises_every_epoch_and_moves_nothing() -> None:
    before = state([[Assignment(1, 0, "a")], [Assignment(3, 1, "b")]])
    after = applied(
        before, start(before, [Incarnation(0, "c"), Incarnation(1, "d")], {"a": ended("a"), "b": ended("b")})
    )
    assert after.slots == [
        [Assignment(1, 0, "a"), Assignment(2, 0, "c")],
        [Assignment(3, 1, "b"), Assignment(4, 1, "d")],
    ]


def test_fewer_workers_share_all_slots() -> None:
    before = state([[Assignment(1, n % 2, "ab"[n % 2])] for n in range(4)])
    after = applied(before, start(before, [Incarnation(0, "c")], {"a": ended("a"), "b": ended("b")}))
    assert {entries[-1] for entries in after.slots} == {Assignment(2, 0, "c")}


def test_a_log_that_was_not_ended_is_not_replaced() -> None:
    before = state([[Assignment(1, 0, "a")]])
    with pytest.raises(ValueError, match="has not been ended"):
        start(before, [Incarnation(0, "b")], {})


def test_a_checkpoint_that_names_the_slot_shortens_its_list() -> None:
    before = state([[Assignment(1, 0, "a"), Assignment(2, 0, "b")], [Assignment(1, 0, "a"), Assignment(2, 0, "b")]])
    change = replace(before, Incarnation(0, "c"), ended("b", epochs={0: 2}))
    assert applied(before, change).slots == [
        [Assignment(2, 0, "b"), Assignment(3, 0, "c")],
        [Assignment(1, 0, "a"), Assignment(2, 0, "b"), Assignment(3, 0, "c")],
    ]


def test_a_checkpoint_of_another_epoch_shortens_nothing() -> None:
    before = state([[Assignment(1, 0, "a"), Assignment(2, 1, "b"), Assignment(5, 0, "a")]])
    change = replace(before, Incarnation(0, "c"), ended("a", epochs={0: 1}))
    assert applied(before, change).slots[0][:-1] == before.slots[0]


def test_empty_logs_do_not_lengthen_a_list() -> None:
    """A worker in a crash loop that never writes anything leaves two entries, however often it dies."""
    now = state([[Assignment(1, 0, "l0")]])
    for life in range(50):
        change = replace(now, Incarnation(0, f"l{life + 1}"), ended(f"l{life}", empty=True))
        now = applied(now, change)
    assert now.slots == [[Assignment(1, 0, "l0"), Assignment(51, 0, "l50")]]


def test_only_the_slots_of_the_ended_log_are_replaced() -> None:
    before = state([[Assignment(1, 0, "a")], [Assignment(1, 1, "b")], [Assignment(1, 0, "a"), Assignment(2, 1, "b")]])
    change = replace(before, Incarnation(0, "c"), ended("a"))
    assert set(change.slots) == {0}
    assert replace(before, Incarnation(0, "c"), ended("nobody's")) is None


@settings(max_examples=200)
@given(st.data())
def test_a_list_always_reaches_back_to_the_newest_manifest(data) -> None:
    """Over any history of lives: the last log whose checkpoint names the slot stays in its list, or the first entry
    while there is none; epochs rise by one; every log that holds something after that manifest stays too."""
    slots = 3
    now = state([[] for _ in range(slots)])
    now = applied(now, start(now, [Incarnation(0, "l0")], {}))
    newest: list[str | None] = [None] * slots
    since: list[set[str]] = [set() for _ in range(slots)]
    for life in range(data.draw(st.integers(1, 12))):
        log_id = f"l{life}"
        empty = data.draw(st.booleans())
        named = set() if empty else data.draw(st.sets(st.integers(0, slots - 1)))
        epochs = {slot: now.slots[slot][-1].epoch for slot in named}
        for slot in range(slots):
            if slot in named:
                newest[slot], since[slot] = log_id, {log_id}
            elif not empty:
                since[slot].add(log_id)
        before = now
        now = applied(now, replace(now, Incarnation(0, f"l{life + 1}"), EndedLog(log_id, empty, epochs)))
        for slot, entries in enumerate(now.slots):
            assert entries[-1].epoch == before.slots[slot][-1].epoch + 1 and entries[-1].log_id == f"l{life + 1}"
            assert [e.epoch for e in entries] == sorted({e.epoch for e in entries})
            assert since[slot] <= {e.log_id for e in entries}
            if newest[slot] is None:
                assert entries[0].epoch == FIRST_EPOCH
            else:
                assert entries[0].log_id == newest[slot]


def workers(*names: str) -> list[Incarnation]:
    """Incarnations of logs like "3a": node 3, life a."""
    return [Incarnation(int(name[:-1]), name) for name in names]


def settled(before: ClusterState) -> ClusterState:
    """Every owner has taken its slots over, and its checkpoint was read."""
    for log_id, slots in unsettled_logs(before).items():
        epochs = {slot: before.slots[slot][-1].epoch for slot in slots}
        change = shorten(before, log_id, epochs)
        assert change is not None
        before = applied(before, change)
    assert unsettled_logs(before) == {}
    return before


def loads(of: ClusterState) -> Counter[str]:
    return Counter(entries[-1].log_id for entries in of.slots)


NODES = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True)


@given(st.integers(1, 120), NODES, st.lists(st.tuples(NODES, st.booleans()), min_size=1, max_size=5))
def test_brokers_that_come_and_go_leave_even_shares_and_few_moves(slot_count, first, steps) -> None:
    """Workers join, leave and are lost in any order: settled slots end up within one of even, each step moves no more
    slots than it must, and nothing moves when nothing changed."""
    now = {node: f"{node}a" for node in first}
    fresh = state([[] for _ in range(slot_count)])
    current = settled(applied(fresh, start(fresh, [Incarnation(n, name) for n, name in now.items()], {})))
    for life, (nodes, lost) in enumerate(steps):
        before = current
        gone = [Incarnation(n, name) for n, name in now.items() if n not in nodes]
        now = {node: now.get(node, f"{node}{chr(98 + life)}") for node in nodes}
        stay = [Incarnation(n, name) for n, name in now.items()]
        if lost:
            change = hand_over(current, stay, {worker.log_id: ended(worker.log_id) for worker in gone})
            if change is not None:
                assert {current.slots[slot][-1].log_id for slot in change.slots} <= {w.log_id for w in gone}
                current = settled(applied(current, change))
            assert not loads(current).keys() & {worker.log_id for worker in gone}
        change = balance(current, stay, [] if lost else gone)
        if change is not None:
            current = settled(applied(current, change))
        counts = [loads(current)[worker.log_id] for worker in stay]
        assert sum(counts) == slot_count and max(counts) - min(counts) <= 1
        assert balance(current, stay, []) is None
        homeless = sum(loads(before)[worker.log_id] for worker in gone)
        held = sorted((loads(before)[worker.log_id] for worker in stay), reverse=True)
        base, extra = divmod(slot_count, len(stay))
        must = homeless + sum(max(0, count - base - (position < extra)) for position, count in enumerate(held))
        moved = sum(a[-1].log_id != b[-1].log_id for a, b in zip(before.slots, current.slots, strict=True))
        assert moved == must
        assert all(b[-1].epoch >= a[-1].epoch for a, b in zip(before.slots, current.slots, strict=True))


def test_a_planned_move_forgets_no_log() -> None:
    before = state([[Assignment(4, 1, "1a")], [Assignment(2, 1, "1a")]])
    after = applied(before, balance(before, workers("1a", "2a"), []))
    (moved,) = [entries for entries in after.slots if entries[-1].node_id == 2]
    assert [entry.log_id for entry in moved] == ["1a", "2a"] and moved[1].epoch == moved[0].epoch + 1


def test_a_slot_with_a_move_in_progress_is_moved_only_if_it_must() -> None:
    moving = [Assignment(1, 0, "0a"), Assignment(2, 1, "1a")]
    before = state([list(moving) for _ in range(4)])
    assert balance(before, workers("1a", "2a"), []) is None
    after = applied(before, balance(before, workers("2a"), workers("1a")))
    assert [[entry.log_id for entry in entries] for entries in after.slots] == [["0a", "1a", "2a"]] * 4


def test_slots_of_a_worker_that_is_being_replaced_stay_with_its_node() -> None:
    """Its log is nobody's that is listed; another is about to be."""
    before = state([[Assignment(1, 0, "0a")], [Assignment(1, 1, "1a")], [Assignment(1, 0, "0a")]])
    assert balance(before, workers("1a"), []) is None
    assert balance(before, workers("0b", "1a"), []) is None


def test_with_nobody_who_stays_nothing_moves() -> None:
    before = state([[Assignment(1, 0, "0a")]])
    assert balance(before, [], workers("0a")) is None
    assert hand_over(before, [], {"0a": ended("0a")}) is None


def test_nothing_is_taken_from_a_log_that_lives() -> None:
    before = state([[Assignment(1, 0, "0a")], [Assignment(1, 1, "1a")], [Assignment(1, 2, "2a")]])
    change = hand_over(before, workers("1a"), {"0a": ended("0a")})
    assert change is not None and list(change.slots) == [0]


def test_nothing_is_given_to_a_log_that_has_ended() -> None:
    """A broker that was lost may be registered again before its workers know that their logs were ended."""
    before = state([[Assignment(1, 0, "0a")], [Assignment(1, 1, "1a")], [Assignment(1, 0, "0a")]])
    change = hand_over(before, workers("0a", "1a"), {"0a": ended("0a")})
    assert change is not None and {entries[-1].log_id for entries in change.slots.values()} == {"1a"}
    assert hand_over(before, workers("0a"), {"0a": ended("0a")}) is None


def test_a_list_is_shortened_to_what_a_checkpoint_names_and_no_further() -> None:
    entries = [Assignment(1, 0, "a"), Assignment(2, 1, "b"), Assignment(3, 2, "c")]
    before = state([entries, entries, entries])
    change = shorten(before, "b", {0: 2, 1: 1})
    assert change is not None and change.slots == {0: entries[1:]}
    assert shorten(before, "c", {0: 2}) is None and shorten(before, "a", {0: 1, 1: 1, 2: 1}) is None


def test_a_list_that_grew_meanwhile_keeps_what_came_after() -> None:
    before = state([[Assignment(1, 0, "a"), Assignment(2, 1, "b"), Assignment(3, 0, "a")]])
    change = shorten(before, "b", {0: 2})
    assert change is not None and [entry.epoch for entry in change.slots[0]] == [2, 3]
