"""Goal: restarts are immediate until they are a loop, orphaned sockets are adopted once, and health tells why."""

from __future__ import annotations

import random

import msgspec
import orjson
from hypothesis import given
from hypothesis import strategies as st

from supervisor.adoption import Adoptions
from supervisor.health import WorkerHealth, page, unhealthy_reasons, unready_reasons
from supervisor.restarts import LONGEST_WAIT_SECONDS, Restarts


def test_ten_kills_in_a_row_cost_nothing() -> None:
    restarts = Restarts(random.Random(1))
    assert [restarts.died(float(n), served=True) for n in range(10)] == [0.0] * 10
    assert not restarts.looping(10.0)


def test_a_worker_that_never_serves_is_held_back_more_and_more() -> None:
    restarts = Restarts(random.Random(1))
    waits, now = [], 0.0
    for _ in range(40):
        waits.append(restarts.died(now, served=False))
        now += waits[-1] + 0.3
    assert waits[:3] == [0.0, 0.0, 0.0] and 0 < waits[3] <= 1.0
    assert all(LONGEST_WAIT_SECONDS / 2 <= wait <= LONGEST_WAIT_SECONDS for wait in waits[-10:])
    assert restarts.looping(now)


def test_a_mended_worker_is_trusted_again_within_minutes() -> None:
    restarts = Restarts(random.Random(1))
    for _ in range(1000):
        restarts.died(0.0, served=False)
    assert not restarts.looping(400.0)
    assert restarts.died(500.0, served=True) == 0.0


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_no_wait_is_ever_longer_than_the_longest(deaths) -> None:
    restarts, now = Restarts(random.Random(1)), 0.0
    for pause, served in deaths:
        now += pause
        assert 0.0 <= restarts.died(now, served=served) <= LONGEST_WAIT_SECONDS


@given(st.lists(st.tuples(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4))), max_size=30))
def test_every_orphaned_socket_has_one_serving_adopter(history) -> None:
    """Seen from the workers, who forget when they go down: after each settling nobody accepts for a sibling that is
    back, and everybody that is down is accepted for by exactly one."""
    adoptions = Adoptions()
    accepting: dict[int, set[int]] = {n: set() for n in range(5)}
    for serving, down in history:
        orphaned = down - serving
        for worker in accepting:
            if worker not in serving:
                accepting[worker] = set()
        for order in adoptions.settle(serving, orphaned):
            if order.adopt:
                assert order.worker not in accepting[order.adopter]
                accepting[order.adopter].add(order.worker)
            else:
                accepting[order.adopter].remove(order.worker)
        accepted = [worker for adopter in serving for worker in accepting[adopter]]
        assert sorted(accepted) == (sorted(orphaned) if serving else [])


def test_adoptions_are_shared_out() -> None:
    orders = Adoptions().settle({0, 1}, {2, 3})
    assert {order.adopter for order in orders} == {0, 1}


def worker(**changes) -> WorkerHealth:
    well = WorkerHealth(0, True, True, None, False, "is starting")
    return msgspec.structs.replace(well, **changes)


def test_a_worker_gone_for_long_is_unhealthy_unless_the_store_is_to_blame() -> None:
    gone = worker(serving=False, gone_seconds=31.0)
    assert unhealthy_reasons([worker(), gone], True) == ["worker 0 has been gone for 31 s: it is starting"]
    assert unhealthy_reasons([gone], False) == []
    assert unhealthy_reasons([worker(serving=False, gone_seconds=29.0)], True) == []
    assert unhealthy_reasons([worker(serving=False)], True) == []


def test_readiness_names_everything_that_is_wrong() -> None:
    assert unready_reasons([worker()], True, False) == []
    reasons = unready_reasons([worker(serving=False, looping=True), worker(index=1, store_ok=False)], False, True)
    assert [
        any(word in reason for reason in reasons) for word in ("stopping", "store", "worker 0", "crash", "worker 1")
    ]
    assert len(reasons) == 5


def test_pages_are_json_with_a_status() -> None:
    assert (page("ready", []).status, orjson.loads(page("ready", []).body)) == (200, {"ready": True, "reasons": []})
    bad = page("ready", ["x"])
    assert (bad.status, orjson.loads(bad.body)) == (503, {"ready": False, "reasons": ["x"]})
