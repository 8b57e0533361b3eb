"""Goal: `kafscale recover` says what the bucket holds and what of it can't be read, and changes nothing."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.coordination.assignment import EndedLog, Incarnation
from kafscale.coordination.cluster import ScramCredential
from kafscale.coordination.commands import AlterCredentials, AlterQuota, CreateAcls, CreateTopic
from kafscale.coordination.quotas import QuotaEntity
from kafscale.errors import StartError
from kafscale.protocol.acls import AclBinding
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose
from supervisor import recover
from supervisor.controller import Controller
from supervisor.post import new_log_id

BINDING = AclBinding(2, 3, "orders", "User:bob", "*", 3, 3)
CREDENTIAL = ScramCredential(b"salt", b"stored", b"server", 4096)


async def fill(settings: Settings, damaged: bool) -> None:
    """A cluster of two workers, one topic and, perhaps, one log that nobody can read."""
    store = LocalStore(Path(settings.data_dir))
    clock, keys = SystemClock(), Keys(settings.cluster_namespace)
    workers = [Incarnation(0, new_log_id()), Incarnation(1, new_log_id())]
    controller = Controller(
        ClusterLog(store, keys, clock, random.Random(1)), clock, settings, "w", lambda version, payload: None
    )

    async def end_log(log_id: str) -> EndedLog:
        return EndedLog(log_id, True, {})

    await controller.start(workers, end_log)
    await controller.submit([CreateTopic(name="orders", partitions=7, configs={"retention.ms": "5"})])
    await controller.submit([CreateAcls(bindings=[BINDING])])
    await controller.submit([AlterCredentials(user="bob\x1b", credentials={"SCRAM-SHA-256": CREDENTIAL})])
    await controller.submit([AlterQuota(entity=QuotaEntity.of(user="bob"), changes=[("producer_byte_rate", 7.0)])])
    if damaged:
        await store.put_if_absent(keys.log(workers[0].log_id, 0), [b"rubbish" * 100], Purpose.FLUSH)
    await controller.close()
    await store.close()


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def settings_of(root: Path) -> Settings:
    return Settings(data_dir=str(root), slots=8)


def test_it_shows_the_catalogue_and_the_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path)
    asyncio.run(fill(settings, damaged=False))
    before = files(tmp_path)
    assert recover.run(settings) == 0
    shown, progress = capsys.readouterr()
    assert "version 5 of its log" in shown
    assert "  orders  partitions 7  records 0  bytes 0  retention.ms=5" in shown
    assert "  __consumer_offsets  partitions 50  records 0" in shown
    assert f"  {BINDING}\n" in shown
    assert "  bob\\x1b  SCRAM-SHA-256\n" in shown and "stored" not in shown
    assert "  user 'bob'  producer_byte_rate=7\n" in shown
    assert "  node 0  slots 4" in shown and "  node 1  slots 4" in shown
    assert "read 2 of 2 logs" in progress
    assert files(tmp_path) == before


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path)
    asyncio.run(fill(settings, damaged=True))
    assert recover.run(settings) == 1
    assert "can't be read" in capsys.readouterr().out


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no data directory"):
        recover.run(settings_of(tmp_path / "none"))
    with pytest.raises(StartError, match="a start founds one"):
        recover.run(settings_of(tmp_path))
    assert files(tmp_path) == {}
