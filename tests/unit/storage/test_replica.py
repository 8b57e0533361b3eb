"""Goal: a replica spares the bucket reads while it is sound, and whatever is wrong with it costs consumers nothing."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.metrics import REPLICA_PASSED_OVER, MetricsBlock
from kafscale.storage.extents import Extent
from kafscale.storage.memory import MemoryStore
from kafscale.storage.metered import Meter
from kafscale.storage.opening import open_store
from kafscale.storage.reads import ColdReader
from kafscale.storage.replica import PAUSE_SECONDS, ReplicaReads
from kafscale.storage.s3 import S3Store, S3Target
from kafscale.storage.store import ObjectStore, Purpose
from tests.s3_servers import make_bucket, moto
from tests.unit.storage.rig import batch_of
from tests.unit.storage.scripted_s3 import Respond, hang, one_after_the_other, serving, status

BODY = bytes(batch_of(1000, chance=random.Random(1)))
FLIPPED = BODY[:500] + bytes([BODY[500] ^ 1]) + BODY[501:]


class Counts:
    """How often the replica was passed over, by why."""

    def __init__(self) -> None:
        self._block = MetricsBlock.in_memory()
        self.meter = Meter(self._block.cells, SystemClock())
        self.requests = 0  # to the replica

    def __getitem__(self, reason: str) -> int:
        return self._block.cells[REPLICA_PASSED_OVER.at(reason)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "kafscale.storage.replica"]


async def put(endpoint: str, bucket: str, bodies: dict[str, bytes]) -> None:
    target = S3Target(bucket=bucket, endpoint=endpoint, path_style=True, access_key="key", secret_key="secret")
    store = S3Store(target)
    for key, body in bodies.items():
        await store.put_if_absent(key, [body], Purpose.FLUSH)
    await store.close()


def test_consumers_read_what_was_written_whatever_the_replica_holds(caplog: pytest.LogCaptureFixture) -> None:
    """Goal: what it has comes from it; what it lacks, has cut off or has damaged comes from the bucket, and is told."""
    counts = Counts()

    async def scenario(endpoint: str) -> None:
        primary, replica = (make_bucket(endpoint, f"test-{uuid.uuid4().hex}") for _ in range(2))
        await put(endpoint, primary, {"lagging": BODY, "cut": BODY, "damaged": BODY})
        await put(endpoint, replica, {"there": BODY, "cut": BODY[:-7], "damaged": FLIPPED})
        settings = Settings(
            s3_bucket=primary,
            s3_read_bucket=replica,
            s3_endpoint=endpoint,
            s3_path_style=True,
            s3_access_key="key",
            s3_secret_key="secret",
        )
        store = open_store(settings, SystemClock(), random.Random(1), counts.meter)
        reader = ColdReader(store, SystemClock(), 1 << 20)
        try:
            for key in ("there", "lagging", "cut", "damaged"):
                assert bytes(await reader.read([Extent(0, 0, 0, key, 0, len(BODY))], 0)) == BODY
            # Nothing but reads for consumers goes there.
            assert not await store.exists("there", Purpose.RECOVERY)
            assert [info.key for info in await store.list("", Purpose.RECOVERY)] == ["cut", "damaged", "lagging"]
        finally:
            await reader.close()
            await store.close()

    with moto() as endpoint, caplog.at_level(logging.WARNING):
        asyncio.run(scenario(endpoint))
    assert [counts[reason] for reason in ("missing", "short", "damaged", "unavailable")] == [1, 1, 1, 0]
    # That it lags is no news.
    assert [record.reason for record in warnings(caplog)] == ["short", "damaged"]


class HandClock(SystemClock):
    """Stands still, but for what a test adds."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


Read = Callable[[], Awaitable[bytes]]


def beside(respond: Respond, scenario: Callable[[Read, HandClock], Awaitable[None]]) -> Counts:
    """Run the scenario with a read from a bucket whose replica answers so."""
    counts = Counts()

    async def run() -> None:
        clock = HandClock()
        primary: ObjectStore = MemoryStore(clock)
        await primary.put_if_absent("key", [b"primary"], Purpose.FLUSH)
        async with serving(respond) as (endpoint, requests):
            target = S3Target(bucket="b", endpoint=endpoint, path_style=True, access_key="k", secret_key="s")
            replica = S3Store(target, connect_timeout_s=0.2, read_timeout_s=0.2)
            store = ReplicaReads(primary, replica, clock, counts.meter)
            try:
                await scenario(lambda: store.get_range("key", 0, 7, Purpose.COLD_READ), clock)
                counts.requests = len(requests)
            finally:
                await store.close()

    asyncio.run(run())
    return counts


@pytest.mark.parametrize("silence", [hang, status(403, "AccessDenied"), status(404, "NoSuchBucket")])
def test_a_replica_that_does_not_answer_is_let_alone(silence: Respond, caplog: pytest.LogCaptureFixture) -> None:
    """Goal: one read waits for it in half a minute, and once it answers again it is used again."""

    async def scenario(read: Read, clock: HandClock) -> None:
        for _ in range(3):
            assert await read() == b"primary"
        clock.now += PAUSE_SECONDS - 1
        assert await read() == b"primary"
        clock.now += 1
        assert sorted(await asyncio.gather(read(), read(), read())) == [b"primary", b"primary", b"replica"]
        assert await read() == b"replica"

    found = status(206, body=b"replica", more="content-range: bytes 0-6/7\r\n")
    with caplog.at_level(logging.WARNING):
        counts = beside(one_after_the_other(silence, found, found), scenario)
    assert counts.requests == 3
    assert counts["unavailable"] == 1 and counts["paused"] == 5
    (warning,) = warnings(caplog)
    assert warning.reason == "unavailable" and warning.cause


def test_a_replica_that_never_had_anything_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Goal: one of another bucket does not go unnoticed."""

    async def scenario(read: Read, clock: HandClock) -> None:
        for _ in range(3):
            assert await read() == b"primary"

    with caplog.at_level(logging.WARNING):
        counts = beside(status(404, "NoSuchKey"), scenario)
    assert counts["missing"] == counts.requests == 3
    assert [record.reason for record in warnings(caplog)] == ["missing"]
