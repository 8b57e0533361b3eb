"""Goal: a store that two brokers could both write to is found out before anything is written to it."""

from __future__ import annotations

import asyncio
import random
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from kafscale.clock import SystemClock
from kafscale.errors import StartError, StoreUnavailable, StoreUnclear
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.probe import prove_conditional_puts
from kafscale.storage.s3 import S3Store, S3Target
from kafscale.storage.store import Buffer, ObjectStore, Purpose
from tests.s3_servers import make_bucket, moto, rclone


def prove(store: ObjectStore) -> None:
    asyncio.run(_prove(store))


async def _prove(store: ObjectStore) -> None:
    try:
        await prove_conditional_puts(store, Keys("ns"), SystemClock(), random.Random(1))
        assert await store.list("ns/probe/", Purpose.CLUSTER) == []
    finally:
        await store.close()


def test_a_store_that_honours_the_condition_passes() -> None:
    """Goal: an S3 server with one winner of many is let through, and nothing is left in the bucket."""
    with moto() as endpoint:
        bucket = make_bucket(endpoint, f"test-{uuid.uuid4().hex}")
        prove(_store(endpoint, bucket))


def test_a_store_that_ignores_the_condition_is_refused_with_what_it_answered(tmp_path: Path) -> None:
    """Goal: rclone's server lets every create win; the message says how many, and what is missing."""
    (tmp_path / "bucket").mkdir()
    with rclone(tmp_path) as endpoint, pytest.raises(StartError, match=r"of 12 .* If-None-Match") as refusal:
        prove(_store(endpoint, "bucket"))
    found = re.match(r"(\d+) of 12", str(refusal.value))
    assert found is not None and int(found.group(1)) > 1


def test_creates_that_met_each_other_are_no_proof_against_a_store() -> None:
    """Goal: AWS answers some concurrent creates with 409, which says nothing: with one winner that is fine, with none
    the race is run again."""

    class Conflicts(MemoryStore):
        refused = 0

        async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
            if self.refused < 20:
                self.refused += 1
                raise StoreUnclear("409 ConditionalRequestConflict")
            await super().put_if_absent(key, parts, purpose)

    prove(Conflicts(SystemClock()))


def test_a_store_that_does_not_know_the_condition_is_refused_at_once() -> None:
    """Goal: a 501 is told with what the store answered and what can be done, and not waited for."""

    class Frozen(SystemClock):
        async def sleep(self, seconds: float) -> None:
            raise AssertionError("asked again")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"<Error><Code>NotImplemented</Code><Message>A header implies functionality</Message></Error>"
        if found := re.search(rb"(?i)content-length: (\d+)", head):
            await reader.readexactly(int(found.group(1)))
        code = b"501 Not Implemented" if b"if-none-match" in head.lower() else b"204 No Content"
        body = body if code.startswith(b"501") else b""
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (code, len(body), body))
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        store = _store(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "bucket")
        expected = r"501 .*NotImplemented.*A header implies.* s3_unsafe_unconditional_puts"
        with pytest.raises(StartError, match=expected):
            await prove_conditional_puts(store, Keys("ns"), Frozen(), random.Random(1))
        await store.close()
        listening.close()

    asyncio.run(scenario())


def test_a_store_that_does_not_delete_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Goal: a policy without s3:DeleteObject is told of at the start, not by the bill."""

    class Keeps(MemoryStore):
        async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
            raise StoreUnavailable("1 of 1 objects could not be deleted: AccessDenied")

    asyncio.run(prove_conditional_puts(Keeps(SystemClock()), Keys("ns"), SystemClock(), random.Random(1)))
    warning = caplog.records[0]
    assert "s3:DeleteObject" in warning.getMessage() and "AccessDenied" in warning.cause  # type: ignore[attr-defined]


def test_a_bucket_that_is_not_there_is_named() -> None:
    """Goal: a clear line, not a trace, for a bucket that does not exist."""

    class Hurried(SystemClock):
        async def sleep(self, seconds: float) -> None:
            self.skipped = getattr(self, "skipped", 0.0) + 10

        def monotonic(self) -> float:
            return super().monotonic() + getattr(self, "skipped", 0.0)

    async def scenario(store: ObjectStore) -> None:
        with pytest.raises(StartError, match=r"no clear answer.*no-such-bucket"):
            await prove_conditional_puts(store, Keys("ns"), Hurried(), random.Random(1))
        await store.close()

    with moto() as endpoint:
        asyncio.run(scenario(_store(endpoint, "no-such-bucket")))


def _store(endpoint: str, bucket: str) -> S3Store:
    target = S3Target(bucket=bucket, endpoint=endpoint, path_style=True, access_key="key", secret_key="secret")
    return S3Store(target)
