"""A broker whose data is in an S3 bucket: the same clients and promises, and a data directory that may be lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.s3_servers import in_bucket, make_bucket, moto, rclone

PARTITIONS = 6


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto() as server:
        yield server


def test_a_bucket_is_all_that_is_needed(
    make_broker: MakeBroker, topic: str, group: str, endpoint: str, tmp_path: Path
) -> None:
    """Goal: killed under idempotent load, a broker goes on from the bucket alone, in another data directory: nothing
    acknowledged is lost or doubled, and the group resumes at its commits."""
    environment = in_bucket(endpoint, make_bucket(endpoint, f"test-{uuid.uuid4().hex}"))
    broker = make_broker(workers=2, environment=environment)
    create_topic(broker.bootstrap, topic, PARTITIONS)
    with (
        IdempotentLoad(broker.bootstrap, topic, PARTITIONS) as load,
        GroupReader(broker.bootstrap, topic, group) as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        pid = broker.kill_worker(0)
        broker.wait_worker_replaced(0, pid)
        load.wait_progress()
        reader.wait_progress()
        broker.kill_everything()
        broker.data_dir = tmp_path / "elsewhere"
        broker.restart()
        load.wait_progress()
        reader.wait_progress()
        reader.check_commits()
        load.finish()
        reader.finish()
    check_records(broker.bootstrap, load)


def test_a_store_without_conditional_writes_is_refused(make_broker: MakeBroker, tmp_path: Path) -> None:
    """Goal: one line that says what the store answered, exit code 1, no trace, nothing served."""
    (tmp_path / "bucket").mkdir()
    with rclone(tmp_path) as server:
        broker = make_broker(start=False, environment=in_bucket(server, "bucket"))
        broker.start(wait=False)
        assert broker.process is not None
        assert broker.process.wait(60) == 1
    assert "does not honour If-None-Match" in broker.log()
    assert "Traceback" not in broker.log()
    assert broker.info() == {}
