"""Goal: the metrics of cost count what a bucket is billed for: every request, whatever came of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.errors import StoreError
from kafscale.metrics import STORE_BYTES, STORE_DELETED, STORE_ERRORS, STORE_OPERATIONS, MetricsBlock
from kafscale.storage.metered import Meter
from kafscale.storage.opening import open_store
from kafscale.storage.store import ObjectStore, Purpose
from tests.unit.storage.scripted_s3 import Respond, one_after_the_other, serving, status

BUSY = status(503, "SlowDown")


def page(key: str, token: str = "") -> Respond:
    """A page of a listing, and how it goes on."""
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    entry = f"<Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
    return status(200, body=f"<ListBucketResult>{more}<Contents>{entry}</Contents></ListBucketResult>".encode())


class Counted:
    """What was counted, and what was asked, while a store opened as brokers do was asked something."""

    def __init__(self, call: Callable[[ObjectStore], Awaitable[object]], *answers: Respond) -> None:
        self._block = MetricsBlock.in_memory()
        asyncio.run(self._run(call, answers))

    async def _run(self, call: Callable[[ObjectStore], Awaitable[object]], answers: tuple[Respond, ...]) -> None:
        clock = SystemClock()
        async with serving(one_after_the_other(*answers)) as (endpoint, self.requests):
            settings = Settings(
                s3_bucket="bucket", s3_endpoint=endpoint, s3_path_style=True, s3_access_key="k", s3_secret_key="s"
            )
            store = open_store(settings, clock, random.Random(1), Meter(self._block.cells, clock))
            try:
                with suppress(StoreError):
                    await call(store)
            finally:
                await store.close()

    def operations(self, verb: str, purpose: Purpose) -> int:
        return self._block.cells[STORE_OPERATIONS.at(verb, purpose)]

    def byte_count(self, verb: str, purpose: Purpose) -> int:
        return self._block.cells[STORE_BYTES.at(verb, purpose)]

    def errors(self, verb: str, error: str) -> int:
        return self._block.cells[STORE_ERRORS.at(verb, error)]

    @property
    def deleted(self) -> int:
        return self._block.cells[STORE_DELETED]


def test_every_page_of_a_listing_counts() -> None:
    pages = [page("ns/a", "1"), page("ns/b", "2"), page("ns/c")]
    counted = Counted(lambda store: store.list("ns/", Purpose.SWEEP), *pages)
    assert counted.operations("list", Purpose.SWEEP) == len(counted.requests) == 3


def test_every_try_counts() -> None:
    """Of a read that the store was too busy for, and then answered."""
    answers = [BUSY, BUSY, status(200, body=b"bytes")]
    counted = Counted(lambda store: store.get("ns/a", Purpose.COLD_READ), *answers)
    assert counted.operations("get", Purpose.COLD_READ) == len(counted.requests) == 3
    assert counted.byte_count("get", Purpose.COLD_READ) == 5
    assert counted.errors("get", "unavailable") == 2


def test_what_is_not_there_costs_as_much() -> None:
    """And where that is what was asked, it is no error."""
    missing = status(404, "NoSuchKey")
    counted = Counted(lambda store: store.get("ns/a", Purpose.RECOVERY), missing)
    assert counted.operations("get", Purpose.RECOVERY) == counted.errors("get", "missing") == 1
    counted = Counted(lambda store: store.exists("ns/a", Purpose.RECOVERY), missing)
    assert counted.operations("get", Purpose.RECOVERY) == 1 and counted.errors("get", "missing") == 0


def test_every_batch_of_a_deletion_counts() -> None:
    done = status(200, body=b"<DeleteResult></DeleteResult>")
    counted = Counted(lambda store: store.delete([f"ns/{n}" for n in range(1001)], Purpose.SWEEP), done, done)
    assert counted.operations("delete", Purpose.SWEEP) == len(counted.requests) == 2
    assert counted.deleted == 1001


def test_a_put_that_was_refused_counts() -> None:
    counted = Counted(lambda store: store.put_if_absent("ns/a", [b"12", b"3"], Purpose.FLUSH), BUSY)
    assert counted.operations("put", Purpose.FLUSH) == 1 and counted.byte_count("put", Purpose.FLUSH) == 3
    assert counted.errors("put", "unavailable") == 1


def test_calls_to_a_directory_count_too(tmp_path: Path) -> None:
    """There a call is one request, as if it went to a bucket."""
    block = MetricsBlock.in_memory()

    async def scenario() -> None:
        clock = SystemClock()
        meter = Meter(block.cells, clock)
        store = open_store(Settings(data_dir=str(tmp_path)), clock, random.Random(1), meter)
        await store.put_if_absent("ns/a", [b"123"], Purpose.CLUSTER)
        assert await store.get_tail("ns/a", 2, Purpose.CLUSTER) == (b"23", 3)
        await store.close()

    asyncio.run(scenario())
    assert block.cells[STORE_BYTES.at("put", "cluster")] == 3 and block.cells[STORE_BYTES.at("get", "cluster")] == 2
