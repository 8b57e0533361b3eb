"""Two brokers in zones a and b, on a real etcd and an S3 server: consumers of zone b read older data there (KIP-392).

Every client that can state its zone is tried: it gets every record once and in order, from where it should, and goes on
by itself when a broker is killed.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from loadtest import wire
from loadtest.broker_process import wait_for
from loadtest.etcd_server import EtcdServer
from tests.e2e import zone_readers
from tests.e2e.confluent_clients import create_topic, produce
from tests.e2e.conftest import MakeBroker
from tests.e2e.test_java import NEEDS_JAVA
from tests.e2e.zone_readers import Places
from tests.s3_servers import in_bucket, make_bucket, moto

PARTITIONS = 4
# One for each broker: each leads every second partition.
SLOTS = 2
RECORDS = 24_000
RECORD_BYTES = 1000
CACHE_BYTES = 8 << 20
PATIENCE_S = 120.0
A, B = 0, 1

# As `test_cluster.py`: run apart, by `make test-cluster`.
pytestmark = pytest.mark.cluster

CLIENTS = [
    "confluent",
    "kafka_python",
    "aiokafka",
    pytest.param("kcat", marks=pytest.mark.skipif(zone_readers.KCAT is None, reason="kcat is not installed")),
    pytest.param(
        "java",
        marks=NEEDS_JAVA,
    ),
]


class Zones:
    """The brokers, and a topic of which the most is in no broker's memory any more."""

    def __init__(self, make: MakeBroker, etcd: EtcdServer, bucket: dict[str, str], classes: Path) -> None:
        self._classes = classes
        settings = bucket | {
            "KAFSCALE_ETCD_ENDPOINTS": f"127.0.0.1:{etcd.port}",
            "KAFSCALE_ETCD_LEASE_TTL_MS": "2000",
            "KAFSCALE_SLOTS": str(SLOTS),
            "KAFSCALE_CACHE_BYTES": str(CACHE_BYTES),
            "KAFSCALE_CHECKPOINT_INTERVAL_MS": "1000",
        }
        self.brokers = [
            make(workers=1, environment=settings | {"KAFSCALE_BROKER_ID": str(number), "KAFSCALE_RACK": zone})
            for number, zone in enumerate("ab")
        ]
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers)
        self.wait_even()

    def wait_even(self) -> None:
        """Wait until each leads one slot, and knows that the other does."""

        def even() -> bool:
            return all(self.count(number, "kafscale_slots_owned") == 1 for number in (A, B))

        wait_for(even, PATIENCE_S, "slots are shared evenly", pause_s=0.1)

    def fill(self, topic: str) -> None:
        create_topic(self.bootstrap, topic, PARTITIONS)
        value = b"v" * RECORD_BYTES
        before = [self.count(number, "kafscale_checkpoints_total") for number in (A, B)]
        produce(self.bootstrap, topic, ({"value": value, "partition": n % PARTITIONS} for n in range(RECORDS)))

        def published() -> bool:
            now = [self.count(number, "kafscale_checkpoints_total") for number in (A, B)]
            return all(count >= old + 2 for count, old in zip(now, before, strict=True))

        # None is written when nothing changes: now and then a record for both.
        create_topic(self.bootstrap, f"{topic}-other", PARTITIONS)

        def brought_about() -> bool:
            if published():
                return True
            produce(self.bootstrap, f"{topic}-other", ({"value": b"x", "partition": n} for n in range(PARTITIONS)))
            return False

        wait_for(brought_about, PATIENCE_S, "a checkpoint that describes the topic", pause_s=0.2)

    def read(self, client: str, topic: str, zone: str = "b") -> Places:
        read: Callable[..., Places] = getattr(zone_readers, client)
        more = (self._classes,) if client == "java" else ()
        return read(self.bootstrap, topic, PARTITIONS, zone, *more)

    def count(self, broker: int, name: str, **labels: str) -> int:
        page = self.brokers[broker].http_body("/metrics")
        total = 0
        for found, value in re.findall(rf"^{name}(?:\{{([^}}]*)\}})? (\S+)", page, re.M):
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found)).items():
                total += int(float(value))
        return total

    def zone_bytes(self) -> int:
        """What broker b has read for others' partitions."""
        return self.count(B, "kafscale_zone_fetched_bytes_total")

    def cold_bytes(self, broker: int) -> int:
        return self.count(broker, "kafscale_store_bytes_total", operation="get", purpose="cold_read")


@pytest.fixture(scope="module")
def zones(make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zones]:
    with ExitStack() as running:
        etcd = running.enter_context(EtcdServer(tmp_path_factory.mktemp("etcd") / "data"))
        endpoint = running.enter_context(moto())
        bucket = in_bucket(endpoint, make_bucket(endpoint, f"test-{uuid.uuid4().hex}"))
        yield Zones(make_module_broker, etcd, bucket, tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def filled(zones: Zones) -> str:
    topic = f"filled-{uuid.uuid4().hex[:8]}"
    zones.fill(topic)
    return topic


class Checked:
    """What a reader has read, every record of it once and in order."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.next = dict.fromkeys(range(PARTITIONS), 0)

    def read(self, count: int) -> None:
        """So many records in all."""
        deadline = time.monotonic() + PATIENCE_S
        while sum(self.next.values()) < count:
            assert time.monotonic() < deadline, self.next
            place = next(self._places)
            if place is None:
                continue
            partition, offset = place
            assert offset == self.next[partition], f"partition {partition}: {offset}, not {self.next[partition]}"
            self.next[partition] = offset + 1


@pytest.mark.parametrize("client", CLIENTS)
def test_older_data_is_read_in_the_clients_zone(zones: Zones, filled: str, client: str) -> None:
    """All of zone a's half that its leader has to read back itself comes from b, whose half it leads; then the tail
    from the leaders."""
    with wire.Connection(zones.brokers[A].port) as connection:
        leaders = wire.leaders(connection, filled)
    led_by_a = [index for index, port in leaders.items() if port in zones.brokers[A].worker_ports()]
    assert len(led_by_a) == PARTITIONS // 2
    before = zones.zone_bytes(), zones.cold_bytes(A), zones.cold_bytes(B)
    with contextlib.closing(zones.read(client, filled)) as places:
        Checked(places).read(RECORDS)
    half = RECORDS * RECORD_BYTES // 2
    assert zones.zone_bytes() - before[0] >= half - CACHE_BYTES
    assert zones.cold_bytes(B) - before[2] >= half - CACHE_BYTES
    assert zones.cold_bytes(A) == before[1]


def test_a_consumer_at_the_tail_stays_with_the_leader(zones: Zones, topic: str) -> None:
    """What is new is in the leaders' memory: nobody is sent away, and nothing is read back."""
    create_topic(zones.bootstrap, topic, PARTITIONS)
    before = zones.zone_bytes(), zones.count(A, "kafscale_zone_referrals_total"), zones.cold_bytes(A)
    with contextlib.closing(zones.read("confluent", topic)) as places:
        checked = Checked(places)
        for number in range(1, 21):
            produce(zones.bootstrap, topic, ({"value": b"x", "partition": index} for index in range(PARTITIONS)))
            checked.read(number * PARTITIONS)
    assert (zones.zone_bytes(), zones.count(A, "kafscale_zone_referrals_total"), zones.cold_bytes(A)) == before


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("victim", [A, B])
def test_a_broker_is_killed_meanwhile(zones: Zones, filled: str, client: str, victim: int) -> None:
    """The leader, or the one who reads for it: the consumer goes on, with no record missing or read twice."""
    if client == "kcat" and victim == B:
        pytest.skip("librdkafka 2.0 waits for a reader that is gone until its preference ends, after five minutes")
    before = zones.zone_bytes()
    with contextlib.closing(zones.read(client, filled)) as places:
        checked = Checked(places)
        checked.read(RECORDS // 4)
        wait_for(lambda: zones.zone_bytes() > before, PATIENCE_S, "zone b reads for its client")
        zones.brokers[victim].kill_everything()
        checked.read(RECORDS)
    zones.brokers[victim].restart()
    zones.wait_even()
    assert not any("Traceback" in broker.log() for broker in zones.brokers)


def test_metadata_names_the_zones(zones: Zones, filled: str) -> None:
    """Each node's rack, in Metadata and DescribeCluster as clients see them."""
    # The client is kept: its futures break when it goes.
    admin = AdminClient({"bootstrap.servers": zones.bootstrap})
    described = admin.describe_cluster().result(PATIENCE_S)
    assert {node.id: node.rack for node in described.nodes} == {0: "a", 100: "b"}
