"""Three brokers as processes, on a real etcd and an S3 server: they join, are killed, leave and come back under load.

Clients have no settings for it. Whatever happens, nothing acknowledged is lost or doubled, and the group goes on from
its commits.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from loadtest import wire
from loadtest.broker_process import wait_for
from loadtest.etcd_server import EtcdServer
from tests.e2e.broker import Broker
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.s3_servers import in_bucket, make_bucket, moto

PARTITIONS = 12
SLOTS = 48
LEASE_TTL_MS = 2000
PATIENCE_S = 60.0

# Three brokers, their load, etcd and a slow S3 server on two cores: run apart, by `make test-cluster`.
pytestmark = pytest.mark.cluster


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """An S3 bucket, as settings."""
    with moto() as endpoint:
        yield in_bucket(endpoint, make_bucket(endpoint, f"test-{uuid.uuid4().hex}"))


@pytest.fixture
def make_member(make_broker: MakeBroker, etcd: EtcdServer, bucket: dict[str, str]) -> Callable[[int], Broker]:
    """Starts the broker of a number."""

    def make(broker_id: int) -> Broker:
        environment = bucket | {
            "KAFSCALE_ETCD_ENDPOINTS": f"127.0.0.1:{etcd.port}",
            "KAFSCALE_ETCD_LEASE_TTL_MS": str(LEASE_TTL_MS),
            "KAFSCALE_BROKER_ID": str(broker_id),
            "KAFSCALE_SLOTS": str(SLOTS),
            "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100",
        }
        return make_broker(workers=1, environment=environment)

    return make


def slots_owned(broker: Broker) -> int:
    return sum(
        int(float(count)) for count in re.findall(r"^kafscale_slots_assigned\{.*\} (\S+)", metrics(broker), re.M)
    )


def metric(broker: Broker, name: str) -> int:
    (value,) = re.findall(rf"^{name} (\S+)", metrics(broker), re.M)
    return int(float(value))


def metrics(broker: Broker) -> str:
    return broker.http_body("/metrics")


def wait_even(*brokers: Broker) -> None:
    """Wait until the brokers share the slots evenly and have taken them over."""

    def even() -> bool:
        counts = [slots_owned(broker) for broker in brokers]
        return (
            sum(counts) == SLOTS
            and max(counts) - min(counts) <= 1
            and all(metric(broker, "kafscale_slots_unsettled") == 0 for broker in brokers)
        )

    wait_for(even, PATIENCE_S, "slots are shared evenly", pause_s=0.1)


def wait_served(brokers: list[Broker], topic: str, since: float) -> float:
    """Wait until every partition takes a record at a leader that is one of the brokers; the seconds since `since`."""
    ports = {port for broker in brokers for port in broker.worker_ports()}
    waiting = set(range(PARTITIONS))

    def served() -> bool:
        try:
            with wire.Connection(brokers[0].port, timeout_s=5) as connection:
                leaders = wire.leaders(connection, topic)
            for partition in sorted(waiting):
                if leaders[partition] in ports:
                    with wire.Connection(leaders[partition], timeout_s=5) as connection:
                        if wire.produce(connection, topic, wire.batch([b"probe"]), partition).error_code == 0:
                            waiting.discard(partition)
        except (OSError, wire.Closed, KeyError):
            pass
        return not waiting

    wait_for(served, PATIENCE_S, "all partitions are served")
    return time.monotonic() - since


def test_brokers_come_and_go_under_load(
    make_member: Callable[[int], Broker], topic: str, group: str, record_property: Callable[[str, object], None]
) -> None:
    first = make_member(0)
    create_topic(first.bootstrap, topic, PARTITIONS)
    probes = f"{topic}-probe"
    create_topic(first.bootstrap, probes, PARTITIONS)
    second, third = make_member(1), make_member(2)
    bootstrap = ",".join(broker.bootstrap for broker in (first, second, third))
    with ExitStack() as running:
        load = running.enter_context(IdempotentLoad(bootstrap, topic, PARTITIONS))
        load.wait_progress()
        wait_even(first, second, third)
        # Its first commits are not tried again, so that they must not meet a move.
        reader = running.enter_context(GroupReader(bootstrap, topic, group))
        load.wait_progress()
        reader.wait_progress()

        killed_at = time.monotonic()
        second.kill_everything()
        took = wait_served([first, third], probes, killed_at)
        record_property("seconds until a lost broker's slots are served", took)
        print(f"a lost broker's slots are served again after {took:.2f} s, with a lease of {LEASE_TTL_MS / 1000:g} s")
        load.wait_progress()
        reader.wait_progress()
        wait_even(first, third)
        second.restart()
        wait_even(first, second, third)
        load.wait_progress()
        reader.wait_progress()

        # The leader is the first that came.
        assert metric(first, "kafscale_leader") == 1
        assert first.stop() == 0
        wait_even(second, third)
        load.wait_progress()
        reader.wait_progress()
        load.finish()
        reader.finish()
    check_records(third.bootstrap, load)
    assert "other brokers have taken everything over" in first.log()
    wait_for(lambda: metric(second, "kafscale_leader") + metric(third, "kafscale_leader") == 1, PATIENCE_S, "a leader")


def test_an_etcd_that_is_away_and_forgets_moves_nothing(
    make_member: Callable[[int], Broker], etcd: EtcdServer, topic: str, group: str, tmp_path: Path
) -> None:
    first = make_member(0)
    create_topic(first.bootstrap, topic, PARTITIONS)
    second = make_member(1)
    bootstrap = f"{first.bootstrap},{second.bootstrap}"
    wait_even(first, second)
    with IdempotentLoad(bootstrap, topic, PARTITIONS) as load, GroupReader(bootstrap, topic, group) as reader:
        load.wait_progress()
        reader.wait_progress()
        with wire.Connection(first.port) as connection:
            before = wire.leaders(connection, topic)
        etcd.kill()
        wait_for(lambda: metric(first, "kafscale_coordination_available") == 0, PATIENCE_S, "the outage is noticed")
        assert first.http_status("/readyz") == 200
        load.wait_progress()
        reader.wait_progress()
        pid = second.kill_worker(0)
        second.wait_worker_replaced(0, pid)
        load.wait_progress(5000)
        reader.wait_progress(1000)
        with wire.Connection(first.port) as connection:
            assert wire.create_topic(connection, f"{topic}-refused") == 7  # REQUEST_TIMED_OUT
            assert wire.leaders(connection, topic) == before
        etcd.data = tmp_path / "empty"
        etcd.start()
        wait_for(lambda: metric(first, "kafscale_coordination_available") == 1, PATIENCE_S, "etcd is back")
        wait_for(lambda: metric(second, "kafscale_coordination_available") == 1, PATIENCE_S, "etcd is back")
        with wire.Connection(first.port) as connection:
            assert wire.create_topic(connection, f"{topic}-new") == 0
        load.wait_progress(5000)
        reader.wait_progress(1000)
        with wire.Connection(first.port) as connection:
            assert wire.leaders(connection, topic) == before
        load.finish()
        reader.finish()
    check_records(first.bootstrap, load)


def test_a_number_is_one_brokers_alone(make_member: Callable[[int], Broker]) -> None:
    first = make_member(0)
    with pytest.raises(RuntimeError, match="broker id 0 belongs to a living broker"):
        make_member(0)
    assert first.http_status("/readyz") == 200


def test_a_store_that_is_silent_ends_nobody(make_broker: MakeBroker, bucket: dict[str, str], topic: str) -> None:
    """Not ready while the store gives no answers, but healthy; nobody is restarted, and all goes on afterwards."""
    server = next(child for child in psutil.Process().children() if any("moto" in word for word in child.cmdline()))
    broker = make_broker(workers=2, environment=bucket)
    create_topic(broker.bootstrap, topic, PARTITIONS)
    wait_served([broker], topic, time.monotonic())
    pids = broker.worker_pids()
    server.suspend()
    try:
        wait_for(lambda: broker.http_status("/readyz") == 503, PATIENCE_S, "not ready")
        assert broker.http_status("/healthz") == 200
        with wire.Connection(broker.port) as connection:
            port = wire.leaders(connection, topic)[0]
        with wire.Connection(port) as connection:
            answer = wire.produce(connection, topic, wire.batch([b"x"]), 0, timeout=wire.milliseconds(500))
            assert answer.error_code == 7  # REQUEST_TIMED_OUT
        assert broker.http_status("/healthz") == 200
    finally:
        server.resume()
    wait_for(lambda: broker.http_status("/readyz") == 200, PATIENCE_S, "ready again")
    wait_served([broker], topic, time.monotonic())
    assert broker.worker_pids() == pids
