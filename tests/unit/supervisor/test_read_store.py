"""Goal: whoever runs a command that reads a bucket soon sees what it waits for, and why; what only a person can mend
ends it at once."""

from __future__ import annotations

import asyncio
import io
import random

import pytest

from kafscale.config import Settings
from kafscale.errors import StoreFailed, StoreRefused
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import ObjectInfo, Purpose
from supervisor import read_store
from supervisor.progress import Progress
from tests.unit.storage.rig import QuickClock

SETTINGS = Settings(
    s3_bucket="bucket",
    s3_endpoint="http://127.0.0.1:1",
    s3_access_key="key",
    s3_secret_key="secret",
)


def listed() -> tuple[str, str, float]:
    """What is told, what is said at the end, and after how many seconds."""

    async def scenario() -> tuple[str, str, float]:
        clock, told = QuickClock(), io.StringIO()
        store = read_store.open_for_reading(SETTINGS, clock, random.Random(1), Progress(clock, told))
        try:
            with pytest.raises(StoreFailed) as failure:
                await store.list("ns/", Purpose.RECOVERY)
        finally:
            await store.close()
        return told.getvalue(), str(failure.value), clock.slept

    return asyncio.run(scenario())


def test_a_store_that_cannot_be_reached_is_waited_for_aloud() -> None:
    told, end, seconds = listed()
    lines = told.splitlines()
    assert lines[0] == "reading s3://bucket at http://127.0.0.1:1"
    assert "waiting for the object store" in lines[1] and "can't be reached" in lines[1]
    assert 4 <= len(lines) <= 6 and 60 <= seconds < 63
    assert "no answer for 60 s" in end and "can't be reached" in end


def test_what_only_a_person_can_mend_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(MemoryStore):
        async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
            raise StoreRefused("403 InvalidAccessKeyId")

    monkeypatch.setattr(read_store, "open_store", lambda settings, clock, random_source: Refusing(clock))
    _, end, seconds = listed()
    assert "403 InvalidAccessKeyId" in end and "credentials" in end and seconds == 0
