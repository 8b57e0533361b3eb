"""Goal: the checker finds every kind of violation in histories where it was planted, and nothing in clean ones."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.checker import check
from tests.sim.history import (
    Assigned,
    CommitAcknowledged,
    CommitInvoked,
    CommitRefused,
    Event,
    Fetched,
    FetchInvoked,
    FinalLog,
    History,
    OffsetFetched,
    OffsetFetchInvoked,
    PositionSet,
    ProduceAcknowledged,
    ProduceInvoked,
    ProduceRefused,
    RecordsDeleted,
)

T0 = ("t", 0)
T1 = ("t", 1)


def produced(op: int, *values: str, number: int | None = None, producer: str = "p", idempotent: bool = True) -> Event:
    return ProduceInvoked(op, producer, T0, op if number is None else number, values, idempotent)


def fetched(request: int, watermark: int, *records: tuple[int, str], reader: str = "r", epoch: int = -1) -> Event:
    return Fetched(request, reader, T0, watermark, records, epoch)


def log(*values: str, start: int = 0) -> FinalLog:
    return FinalLog(start, start + len(values), [(start + place, value) for place, value in enumerate(values)])


ABC: list[Event] = [
    produced(1, "a", "b"),
    ProduceAcknowledged(1, 0),
    produced(2, "c"),
    ProduceAcknowledged(2, 2),
]

PLANTED: list[tuple[str, list[Event], FinalLog]] = [
    ("two-members", [Assigned("g", 3, "m", (T0, T1)), Assigned("g", 3, "n", (T0,))], log()),
    ("lost", ABC, log("a", "b")),
    ("lost", ABC, log("a", "b", "x")),
    ("lost", [produced(1, "a"), ProduceAcknowledged(1, -1)], log()),
    ("lost", [produced(1, "a", idempotent=False), ProduceAcknowledged(1, 0)], log()),
    (
        "wrong-offset",
        [produced(1, "a", idempotent=False), produced(2, "b"), ProduceAcknowledged(1, 0), ProduceAcknowledged(1, 1)],
        log("a", "b"),
    ),
    ("duplicate", ABC, log("a", "b", "c", "c")),
    ("duplicate", [produced(1, "a"), produced(2, "b")], log("a", "b", "a")),
    ("two-records", [*ABC, fetched(1, 3, (1, "c"))], log("a", "b", "c")),
    (
        "two-records",
        [*ABC, fetched(1, 3, (0, "a"), reader="r"), fetched(2, 3, (0, "b"), reader="s")],
        log("a", "b", "c"),
    ),
    ("gap", ABC, FinalLog(0, 4, [(0, "a"), (1, "b"), (3, "c")])),
    ("gap", ABC, FinalLog(0, 4, [(0, "a"), (1, "b"), (2, "c")])),
    ("gap", ABC, FinalLog(0, 3, [(1, "b"), (2, "c")])),
    ("gap", [*ABC, PositionSet("r", T0, 0), fetched(1, 3, (0, "a"), (2, "c"))], log("a", "b", "c")),
    ("gap", [*ABC, PositionSet("r", T0, 0), fetched(1, 3, (1, "b"))], log("a", "b", "c")),
    ("poll-order", [*ABC, fetched(1, 3, (0, "a"), (1, "b")), fetched(2, 3, (1, "b"))], log("a", "b", "c")),
    ("poll-order", [*ABC, fetched(1, 3, (1, "b"), (0, "a"))], log("a", "b", "c")),
    ("high-watermark", [*ABC, fetched(1, 3), fetched(2, 2)], log("a", "b", "c")),
    ("high-watermark", [*ABC, fetched(1, 2, (2, "c"))], log("a", "b", "c")),
    (
        "high-watermark",
        [
            *ABC,
            FetchInvoked(1, "r"),
            fetched(1, 3, reader="r", epoch=5),
            FetchInvoked(2, "s"),
            fetched(2, 2, reader="s", epoch=5),
        ],
        log("a", "b", "c"),
    ),
    (
        "high-watermark",
        [*ABC, fetched(1, 2, reader="r", epoch=6), fetched(2, 3, reader="s", epoch=5)],
        log("a", "b", "c"),
    ),
    ("high-watermark", [*ABC, fetched(1, 4, epoch=5)], log("a", "b", "c")),
    ("not-durable", [*ABC, produced(3, "d"), fetched(1, 4, (3, "d"))], log("a", "b", "c")),
    ("wrong-offset", [produced(1, "a"), produced(2, "b"), ProduceAcknowledged(2, 0)], log("a", "b")),
    ("wrong-offset", [ProduceInvoked(1, "p", T1, 1, ("a",)), produced(2, "b")], log("a", "b")),
    ("answers-differ", [*ABC, ProduceAcknowledged(2, 1)], log("a", "b", "c")),
    ("producer-order", [produced(1, "a"), produced(2, "b")], log("b", "a")),
    ("producer-order", [produced(1, "a", "b")], log("b", "a")),
    ("refused-served", [produced(1, "a"), ProduceRefused(1)], log("a")),
    ("unknown-value", ABC, log("a", "b", "c", "z")),
    ("log-start", [*ABC, RecordsDeleted(T0, 2)], log("a", "b", "c")),
]


@pytest.mark.parametrize(("kind", "events", "final"), PLANTED)
def test_a_planted_violation_is_found_and_named(kind: str, events: list[Event], final: FinalLog) -> None:
    """Goal: each history that breaks a promise is found to, under the right name and on one line."""
    found = check(History(events, {T0: final}))
    assert kind in {violation.kind for violation in found}
    assert all("\n" not in str(violation) for violation in found)


def commit(op: int, offset: int) -> Event:
    return CommitInvoked(op, "g", T0, offset)


def read(op: int, offset: int) -> list[Event]:
    return [OffsetFetchInvoked(op, "g", T0), OffsetFetched(op, offset)]


@pytest.mark.parametrize(
    "events",
    [
        [commit(1, 5), CommitAcknowledged(1), *read(2, -1)],
        [commit(1, 5), CommitAcknowledged(1), *read(2, 6)],
        [commit(1, 5), CommitAcknowledged(1), commit(2, 7), CommitAcknowledged(2), *read(3, 5)],
        [commit(1, 5), CommitRefused(1), *read(2, 5)],
        [*read(1, 3), commit(2, 3)],
    ],
)
def test_a_committed_offset_that_is_lost_or_goes_back_is_found(events: list[Event]) -> None:
    """Goal: a read that no order of the commits explains is found."""
    assert [violation.kind for violation in check(History(events))] == ["committed-offset"]


@pytest.mark.parametrize(
    "events",
    [
        read(1, -1),
        [commit(1, 5), *read(2, -1), *read(3, 5), CommitAcknowledged(1), *read(4, 5)],
        # Without an answer it may take effect at any time, or never.
        [commit(1, 5), commit(2, 7), CommitAcknowledged(2), *read(3, 5), *read(4, 7)],
        # Overlapping commits may take effect in either order.
        [commit(1, 5), commit(2, 7), CommitAcknowledged(1), CommitAcknowledged(2), *read(3, 5)],
        # A read that overlaps a commit may miss it.
        [
            commit(1, 5),
            CommitAcknowledged(1),
            OffsetFetchInvoked(9, "g", T0),
            commit(2, 7),
            CommitAcknowledged(2),
            OffsetFetched(9, 5),
        ],
        # A replaced coordinator that can't know it.
        [
            commit(1, 5),
            CommitAcknowledged(1),
            commit(2, 7),
            CommitAcknowledged(2),
            OffsetFetchInvoked(3, "g", T0),
            OffsetFetched(3, 5, unwarned=True),
        ],
        # Going back on purpose.
        [commit(1, 7), CommitAcknowledged(1), commit(2, 5), CommitAcknowledged(2), *read(3, 5)],
    ],
)
def test_committed_offsets_that_some_order_explains_are_clean(events: list[Event]) -> None:
    """Goal: no false alarm over answers that never came or came out of order."""
    assert check(History(events)) == []


@pytest.mark.parametrize(
    ("events", "final"),
    [
        (ABC, log("a", "b", "c")),
        ([*ABC, ProduceAcknowledged(2, 2), ProduceAcknowledged(2, -1)], log("a", "b", "c")),
        # Not acknowledged: there or not there.
        ([*ABC, produced(3, "d")], log("a", "b", "c")),
        ([*ABC, produced(3, "d")], log("a", "b", "c", "d")),
        # Retention took the beginning.
        ([*ABC, PositionSet("r", T0, 0), fetched(1, 3, (2, "c"))], log("c", start=2)),
        # A rebalance sets a position back.
        (
            [*ABC, fetched(1, 3, (0, "a"), (1, "b")), PositionSet("r", T0, 0), fetched(2, 3, (0, "a"))],
            log("a", "b", "c"),
        ),
        # Two readers overlap.
        (
            [
                *ABC,
                FetchInvoked(1, "r"),
                FetchInvoked(2, "s"),
                fetched(2, 3, (0, "a"), reader="s", epoch=5),
                fetched(1, 2, (0, "a"), reader="r", epoch=5),
            ],
            log("a", "b", "c"),
        ),
        # Without idempotence a record may appear twice.
        ([produced(1, "a", idempotent=False), ProduceAcknowledged(1, 0)], log("a", "a")),
        (
            [produced(1, "a", idempotent=False), ProduceAcknowledged(1, 0), ProduceAcknowledged(1, 1)],
            log("a", "a"),
        ),
        ([produced(1, "a"), ProduceRefused(1)], log()),
        ([*ABC, RecordsDeleted(T0, 2), RecordsDeleted(T0, 1)], log("c", start=2)),
        # A member hears its part again; others have it in other generations and groups.
        (
            [
                Assigned("g", 3, "m", (T0,)),
                Assigned("g", 3, "m", (T0,)),
                Assigned("g", 3, "n", (T1,)),
                Assigned("g", 4, "n", (T0,)),
                Assigned("h", 3, "o", (T0,)),
            ],
            log(),
        ),
    ],
)
def test_a_clean_history_passes(events: list[Event], final: FinalLog) -> None:
    """Goal: what a right log may show raises no alarm."""
    assert check(History(events, {T0: final})) == []


def outdated(reader: str = "r", **answer: Any) -> list[Event]:
    """Told 3 by whoever leads, then 2 by log "old" in another answer, which `answer` describes."""
    return [
        *ABC,
        *[FetchInvoked(1, "r"), Fetched(1, "r", T0, 3, (), 2, "new")],
        *[FetchInvoked(2, reader), Fetched(2, reader, T0, 2, (), answered_by="old", **answer)],
    ]


def test_a_replaced_owner_that_could_not_be_warned_may_be_outdated() -> None:
    """Goal: a client that names no epoch may be told what was true, then and only then."""
    assert check(History(outdated(unwarned=True), {T0: log("a", "b", "c")})) == []


@pytest.mark.parametrize(
    "events",
    [
        # From a worker that leads, or could have known.
        outdated(),
        # The client said which epoch it knows.
        outdated(unwarned=True, leader_epoch=2),
        # What an incarnation said itself it may not take back, whoever asks.
        [*outdated(unwarned=True), FetchInvoked(3, "s"), Fetched(3, "s", T0, 1, (), answered_by="old", unwarned=True)],
        # What never was.
        [*ABC, FetchInvoked(1, "r"), Fetched(1, "r", T0, 4, (), answered_by="old", unwarned=True)],
    ],
)
def test_no_other_outdated_answer_is_overlooked(events: list[Event]) -> None:
    """Goal: the leniency towards replaced owners covers no fault beside it."""
    assert {violation.kind for violation in check(History(events, {T0: log("a", "b", "c")}))} == {"high-watermark"}


def random_run(choices: list[int]) -> History:
    """A right log under random batches, answers, readers and retention."""
    events: list[Event] = []
    values: list[str] = []
    position: dict[str, int] = {}
    start = 0
    for op, choice in enumerate(choices):
        if choice < 50:
            batch = tuple(f"v{op}.{place}" for place in range(1 + choice % 3))
            events.append(ProduceInvoked(op, f"p{choice % 2}", T0, op, batch))
            base = len(values)
            if choice % 7:
                values += batch
                if choice % 5:
                    events.append(ProduceAcknowledged(op, base))
                if choice % 11 == 0:
                    events.append(ProduceAcknowledged(op, base))
        elif choice < 95:
            reader = f"r{choice % 3}"
            at = position.get(reader)
            if at is None or choice % 10 == 0:
                at = start
                events.append(PositionSet(reader, T0, at))
            at = max(at, start)
            records = tuple((offset, values[offset]) for offset in range(at, min(len(values), at + choice % 4)))
            events += [FetchInvoked(op, reader), Fetched(op, reader, T0, len(values), records, 1)]
            position[reader] = at + len(records)
        else:
            start = min(len(values), start + 1)
    return History(events, {T0: FinalLog(start, len(values), list(enumerate(values))[start:])})


@settings(max_examples=200)
@given(choices=st.lists(st.integers(0, 99), max_size=80))
def test_no_right_log_raises_an_alarm(choices: list[int]) -> None:
    """Goal: over random runs of a log that is right by construction the checker finds nothing."""
    assert check(random_run(choices)) == []


@settings(max_examples=200)
@given(
    choices=st.lists(st.integers(0, 99), min_size=5, max_size=80), where=st.integers(0, 1 << 20), how=st.integers(0, 2)
)
def test_damage_to_a_log_that_was_read_to_the_end_is_always_found(choices: list[int], where: int, how: int) -> None:
    """Goal: drop, repeat or swap records of the log behind its readers' backs: found, wherever it is."""
    history = random_run([choice % 50 for choice in choices])
    final = history.final[T0]
    if len(final.records) < 2:
        return
    history.events += [
        PositionSet("last", T0, final.log_start_offset),
        Fetched(1 << 30, "last", T0, final.end_offset, tuple(final.records)),
    ]
    assert check(history) == []
    values = [value for _, value in final.records]
    place = where % (len(values) - 1)
    if how == 0:
        del values[place]
    elif how == 1:
        values.insert(place, values[place])
    else:
        values[place], values[place + 1] = values[place + 1], values[place]
    start = final.log_start_offset
    damaged = FinalLog(start, start + len(values), [(start + at, value) for at, value in enumerate(values)])
    assert check(History(history.events, {T0: damaged})) != []


def test_time_is_linear_in_the_history() -> None:
    """Goal: eight times the history takes nothing like sixty-four times as long."""

    def seconds(count: int) -> float:
        history = random_run([(number * 7919) % 100 for number in range(count)])
        # Collections take the longer the more the process holds already, which is other tests' doing.
        gc.collect()
        gc.disable()
        try:
            began = time.process_time()
            assert check(history) == []
            return time.process_time() - began
        finally:
            gc.enable()

    seconds(2_000)
    small = min(seconds(4_000) for _ in range(3))
    large = min(seconds(32_000) for _ in range(3))
    assert large < 24 * small
