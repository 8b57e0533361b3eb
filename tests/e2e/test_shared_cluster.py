"""Two brokers behind one proxy, on a real etcd and an S3 server: clients know the proxy's address and nothing else.

A worker is killed, a broker is killed and comes back, under load; and a broker with another secret is kept out.
"""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from loadtest import wire
from loadtest.broker_process import free_port, wait_for
from loadtest.etcd_server import EtcdServer
from tests.e2e.broker import Broker
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.front import Front
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.e2e.test_java import CHECKS as JAVA_CHECKS
from tests.e2e.test_java import outcomes as outcomes
from tests.e2e.test_java import pytestmark as java_marks
from tests.e2e.test_kcat import kcat
from tests.e2e.test_kcat import pytestmark as kcat_marks
from tests.s3_servers import in_bucket, make_bucket, moto

PARTITIONS = 12
SLOTS = 48
LEASE_TTL_MS = 2000
PATIENCE_S = 90.0
SECRET = "what the brokers of this test share"

# As `test_cluster.py`: run apart, by `make test-cluster`.
pytestmark = pytest.mark.cluster


class Pair:
    """Brokers 0 and 1 and the proxy before them."""

    def __init__(
        self, make: MakeBroker, etcd: EtcdServer, bucket: dict[str, str], front: Front, ports: list[int]
    ) -> None:
        self.front = front
        self._make = make
        self._environment = bucket | {
            "KAFSCALE_ETCD_ENDPOINTS": f"127.0.0.1:{etcd.port}",
            "KAFSCALE_ETCD_LEASE_TTL_MS": str(LEASE_TTL_MS),
            "KAFSCALE_SLOTS": str(SLOTS),
            "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100",
            "KAFSCALE_SHARED_ADDRESS": "true",
            "KAFSCALE_ADVERTISE": front.address,
        }
        self._ports = ports
        self.brokers = [self.make(number) for number in range(2)]

    def make(self, number: int, secret: str = SECRET) -> Broker:
        environment = self._environment | {"KAFSCALE_BROKER_ID": str(number), "KAFSCALE_CLUSTER_SECRET": secret}
        broker = self._make(start=False, workers=2, environment=environment)
        broker.port = self._ports[number]
        return broker.start()

    @property
    def bootstrap(self) -> str:
        return self.front.address

    def count(self, name: str) -> int:
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", "".join(self._metrics()), re.M)
        return sum(int(float(value)) for value in found)

    def _metrics(self) -> Iterator[str]:
        for broker in self.brokers:
            yield broker.http_body("/metrics")

    def wait_even(self) -> None:
        """Wait until both have half of the slots and serve them."""

        def even() -> bool:
            each = [
                sum(int(float(n)) for n in re.findall(r"^kafscale_slots_owned\{.*\} (\S+)", text, re.M))
                for text in self._metrics()
            ]
            return sum(each) == SLOTS and max(each) - min(each) <= 1

        wait_for(even, PATIENCE_S, "slots are shared evenly", pause_s=0.1)


@pytest.fixture(scope="module")
def pair(make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as running:
        etcd = running.enter_context(EtcdServer(tmp_path_factory.mktemp("etcd") / "data"))
        endpoint = running.enter_context(moto())
        bucket = in_bucket(endpoint, make_bucket(endpoint, f"test-{uuid.uuid4().hex}"))
        ports = [free_port(), free_port()]
        front = running.enter_context(Front([f"127.0.0.1:{port}" for port in ports]))
        yield Pair(make_module_broker, etcd, bucket, front, ports)


@pytest.fixture(scope="module")
def broker(pair: Pair) -> Pair:
    """What the Java suite runs against."""
    return pair


def test_all_clients_do_all_they_can(pair: Pair, topic: str) -> None:
    """Every partition of both brokers is written and read through the proxy; groups and offsets are listed once."""
    pair.wait_even()
    create_topic(pair.bootstrap, topic, PARTITIONS)
    port = int(pair.bootstrap.rpartition(":")[2])

    def is_known() -> bool:
        # The other broker hears of the topic a moment later.
        with wire.Connection(port) as connection:
            return wire.leaders(connection, topic) == dict.fromkeys(range(PARTITIONS), port)

    wait_for(is_known, PATIENCE_S, "the topic is known, at the one address")
    groups = {f"{topic}-{number}" for number in range(12)}
    for name in groups:
        consumer = Consumer({"bootstrap.servers": pair.bootstrap, "group.id": name})
        consumer.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
        consumer.close()
    admin = AdminClient({"bootstrap.servers": pair.bootstrap})

    def all_listed() -> bool:
        # While a coordinator is on its way to another worker the list is an error, never one that lacks its groups.
        listed = admin.list_consumer_groups().result(30)
        found = sorted(g.group_id for g in listed.valid if g.group_id in groups)
        assert found == sorted(groups) or listed.errors, found
        return not listed.errors

    wait_for(all_listed, PATIENCE_S, "all groups are listed")
    assert pair.count("kafscale_served_for_peers_total") > 0


@pytest.mark.kcat
@kcat_marks[1]
def test_kcat(pair: Pair, topic: str) -> None:
    """An old librdkafka."""
    create_topic(pair.bootstrap, topic, PARTITIONS)
    for index in range(PARTITIONS):
        kcat(pair.bootstrap, "-P", "-t", topic, "-p", str(index), stdin=b"a%d\n" % index)
    got = kcat(pair.bootstrap, "-C", "-t", topic, "-o", "beginning", "-e", "-q")
    assert sorted(got.split()) == sorted(b"a%d" % index for index in range(PARTITIONS))


@pytest.mark.java
@java_marks[1]
def test_java(outcomes: dict[str, str]) -> None:
    """All checks of the Java client."""
    assert outcomes == dict.fromkeys(JAVA_CHECKS, "ok")


def test_workers_and_a_broker_are_killed_under_load(pair: Pair, topic: str, group: str) -> None:
    """A worker of each, then a whole broker, which comes back: nothing acknowledged is lost, doubled or out of order,
    the group goes on from its commits, and clients hear of nothing but errors that they retry."""
    pair.wait_even()
    create_topic(pair.bootstrap, topic, PARTITIONS)
    with (
        IdempotentLoad(pair.bootstrap, topic, PARTITIONS) as load,
        GroupReader(pair.bootstrap, topic, group) as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        for broker in pair.brokers:
            pid = broker.kill_worker(1)
            load.wait_progress(timeout_s=PATIENCE_S)
            reader.wait_progress(timeout_s=PATIENCE_S)
            broker.wait_worker_replaced(1, pid)
        pair.brokers[1].kill_everything()
        load.wait_progress(timeout_s=PATIENCE_S)
        reader.wait_progress(timeout_s=PATIENCE_S)
        pair.brokers[1].restart()
        pair.wait_even()
        load.wait_progress(timeout_s=PATIENCE_S)
        reader.wait_progress(timeout_s=PATIENCE_S)
        load.finish()
        reader.finish()
    check_records(pair.bootstrap, load)
    for reason in ("secret", "forged", "magic", "cluster", "node"):
        assert pair.count(f'kafscale_peers_refused_total{{reason="{reason}"}}') == 0, reason
    assert not any("Traceback" in broker.log() for broker in pair.brokers)


def test_a_broker_with_another_secret_is_kept_out(pair: Pair, topic: str) -> None:
    """It serves what it owns; nobody passes it anything, it is said on both sides, and nobody falls."""
    assert pair.brokers[1].stop() == 0
    odd = pair.make(1, "what another cluster's brokers share")
    pair.brokers[1] = odd
    pair.wait_even()
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{pair.brokers[0].port}"})
    create_topic(f"127.0.0.1:{pair.brokers[0].port}", topic, PARTITIONS)

    def refused_on_both() -> bool:
        try:
            admin.list_consumer_groups(request_timeout=2).result(5)
        except Exception:  # noqa: BLE001 - that is the point
            pass
        return all("another cluster secret" in broker.log() for broker in pair.brokers)

    wait_for(refused_on_both, PATIENCE_S, "both say that their secrets differ")
    assert pair.count('kafscale_peers_refused_total{reason="secret"}') > 0
    assert all(broker.http_status("/healthz") == 200 for broker in pair.brokers)
    assert "what another cluster" not in pair.brokers[0].log() + pair.brokers[1].log()
    assert odd.stop() == 0
    pair.brokers[1] = pair.make(1)
    pair.wait_even()


def test_there_is_no_shared_address_without_a_secret(pair: Pair, tmp_path: Path) -> None:
    """Several brokers that pass requests on must know each other: without a secret none starts."""
    command = [*pair.brokers[0].command(), "--data-dir", str(tmp_path)]
    environment = pair._environment | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "KAFSCALE_CLUSTER_SECRET" in done.stderr, done.stderr
