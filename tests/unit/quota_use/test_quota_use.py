"""Goal: what one worker charged all can read, names do not get into each other's way, and what must not be forgotten is
not, however many there are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from kafscale import quota_use
from kafscale.errors import StartError
from kafscale.quota_use import QuotaUse

WORKERS = 3


@pytest.fixture
def workers() -> Iterator[list[QuotaUse]]:
    made = QuotaUse.create(WORKERS)
    assert made.fd is not None
    attached = [QuotaUse.attach(os.dup(made.fd), index) for index in range(WORKERS)]
    yield attached
    for use in (made, *attached):
        use.close()


def test_the_newest_of_all_workers_counts(workers: list[QuotaUse]) -> None:
    """Whoever wrote it, and whatever older times others have; a tag is the same to all of them."""
    tag = workers[0].tag_of("alice")
    assert {use.tag_of("alice") for use in workers} == {tag} and workers[0].tag_of("bob") != tag
    assert [use.paid_at(tag) for use in workers] == [quota_use.NOTHING_OWED] * WORKERS
    for number, use in enumerate(workers):
        use.set_paid_at(tag, 100.0 - number, 0.0)
    assert [use.paid_at(tag) for use in workers] == [100.0] * WORKERS
    workers[2].set_paid_at(tag, 101.5, 0.0)
    assert [use.paid_at(tag) for use in workers] == [101.5] * WORKERS
    # A worker that has died is owed nothing.
    workers[2].begin_incarnation()
    assert [use.paid_at(tag) for use in workers] == [100.0] * WORKERS


def test_many_names(workers: list[QuotaUse]) -> None:
    """Half as many as there are places: each reads what was written for it, but for a few that were forgotten."""
    tags = [workers[0].tag_of(f"client {number}") for number in range(quota_use.PLACES // 2)]
    for number, tag in enumerate(tags):
        workers[number % WORKERS].set_paid_at(tag, 1000.0 + number, 999.0)
    found = [workers[0].paid_at(tag) for tag in tags]
    wrong = sum(time not in (1000.0 + number, quota_use.NOTHING_OWED) for number, time in enumerate(found))
    assert not wrong and found.count(quota_use.NOTHING_OWED) < len(tags) // 100


def test_who_owes_least_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all places of a name are taken: first those that owe nothing any more, then those that owe least."""
    monkeypatch.setattr(quota_use, "PLACES", quota_use.PROBES)
    monkeypatch.setattr(quota_use, "_PART_BYTES", quota_use.PROBES * 16)
    use = QuotaUse.alone()
    source = random.Random(3)
    owed: dict[int, float] = {}
    for number in range(200):
        tag, time = use.tag_of(str(number)), source.uniform(0, 100)
        use.set_paid_at(tag, time, 0.0)
        if len(owed) == quota_use.PROBES:
            del owed[min(owed, key=owed.__getitem__)]
        owed[tag] = time
        assert {tag: use.paid_at(tag) for tag in owed} == owed


def test_strangers_memory_is_refused(workers: list[QuotaUse]) -> None:
    made = QuotaUse.create(1)
    assert made.fd is not None
    with pytest.raises(StartError):
        QuotaUse.attach(made.fd, 1)
    made.close()
    empty = os.memfd_create("empty")
    with pytest.raises(StartError):
        QuotaUse.attach(empty, 0)
    os.ftruncate(empty, 4096)
    with pytest.raises(StartError):
        QuotaUse.attach(empty, 0)
    os.close(empty)
