"""Goal: what one worker counts all can read, an address never seems to have fewer connections than it has, and a dead
worker's counts are forgotten.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.census import Census
from kafscale.errors import StartError

WORKERS = 3


@pytest.fixture
def workers() -> Iterator[list[Census]]:
    made = Census.create(WORKERS, 1000)
    assert made.fd is not None
    attached = [Census.attach(os.dup(made.fd), index) for index in range(WORKERS)]
    yield attached
    for census in (made, *attached):
        census.close()


def test_all_connections(workers: list[Census]) -> None:
    """The sum of what each has, as each of them sees it."""
    for number, census in enumerate(workers):
        census.set_open(10**number)
    assert [census.open for census in workers] == [111] * WORKERS
    workers[1].set_open(0)
    assert workers[0].open == 101


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, WORKERS - 1), st.integers(0, 300), st.booleans()), max_size=400))
def test_addresses_are_never_counted_short(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever comes and goes: at least what there is; and where few are there, exactly that for nearly all."""
    made = Census.create(WORKERS, 1000)
    assert made.fd is not None
    workers = [Census.attach(os.dup(made.fd), index) for index in range(WORKERS)]
    there: Counter[tuple[int, int]] = Counter()
    for worker, address, comes in steps:
        host = f"10.0.{address // 256}.{address % 256}"
        if comes:
            workers[worker].enter(host)
            there[worker, address] += 1
        elif there[worker, address]:
            workers[worker].leave(host)
            there[worker, address] -= 1
    wrong = 0
    for address in range(301):
        expected = sum(there[worker, address] for worker in range(WORKERS))
        found = {census.count(f"10.0.{address // 256}.{address % 256}") for census in workers}
        assert len(found) == 1 and min(found) >= expected
        wrong += found != {expected}
    assert wrong <= 3
    for census in (made, *workers):
        census.close()


def test_seconds(workers: list[Census]) -> None:
    """Arrivals count in their second, and in no other."""
    for census in workers[:2]:
        census.arrive(100)
    assert [census.arrived(100) for census in workers] == [2] * WORKERS
    workers[0].arrive(101)
    assert (workers[2].arrived(100), workers[2].arrived(101), workers[2].arrived(102)) == (1, 1, 0)


def test_a_new_incarnation(workers: list[Census]) -> None:
    """It begins with nothing, and leaves what its siblings have."""
    for census in workers:
        census.set_open(5)
        census.arrive(7)
        for number in range(100):
            census.enter(f"2001:db8::{number:x}")
    workers[1].begin_incarnation()
    assert workers[0].open == 10 and workers[0].arrived(7) == 2
    assert {workers[1].count(f"2001:db8::{number:x}") for number in range(100)} <= {2, 3, 4}
    workers[0].begin_incarnation()
    workers[2].begin_incarnation()
    assert workers[1].open == 0 and not any(workers[1].count(f"2001:db8::{number:x}") for number in range(100))


def test_another_block() -> None:
    """What is no census, or not for this worker, is refused."""
    made = Census.create(1, 0)
    assert made.fd is not None
    with pytest.raises(StartError):
        Census.attach(made.fd, 1)
    other = os.memfd_create("other")
    with pytest.raises(StartError):
        Census.attach(other, 0)
    os.write(other, bytes(4096))
    with pytest.raises(StartError):
        Census.attach(other, 0)
    os.close(other)
    made.close()
