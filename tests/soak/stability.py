"""Static stability: what goes on while etcd is away, and what it looks like while the store is.

Without etcd nobody may notice anything: there every single error that a client meets is a failure. Without the store
nothing can be acknowledged; but nobody is restarted, memory stays bounded, what is in memory can be read, and all
goes on afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer

from loadtest import wire
from loadtest.broker_process import wait_for
from loadtest.cluster import Cluster, samples, total_of
from loadtest.measure import resident_bytes
from loadtest.proxy import HANG, PASS
from tests.e2e.confluent_clients import create_topic, poll_records
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.soak.trial import PARTITIONS, PAUSE_S, PROGRESS_RECORDS, check_bucket

PATIENCE_S = 60.0
REQUEST_TIMED_OUT = 7
# A produce request's timeout while the store is silent, and how much later its answer may come.
TIMEOUT_MS, LATE_S = 500, 5.0
# More than all workers may hold of what is not durable yet.
FLOOD_PRODUCERS, FLOOD_RECORD_BYTES = 2, 256 << 10
# What a worker may grow by: what it may hold of received and of recent data, and as much as that for everything else.
MEMORY_SETTINGS = {
    "KAFSCALE_PRODUCE_BUFFER_BYTES": str(16 << 20),
    "KAFSCALE_CACHE_BYTES": str(64 << 20),
    "KAFSCALE_SOCKET_REQUEST_MAX_BYTES": str(8 << 20),
}
GROWTH_MAX_BYTES = 2 * (16 + 64) << 20


class Newcomer:
    """A client that comes anew each time: an idempotent producer, then a member that joins, reads, commits and leaves.

    `errors` are all that librdkafka told of, retriable ones too.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.errors: list[str] = []
        self.rounds = 0
        self._bootstrap, self._topic = bootstrap, topic
        self._group = f"{topic}-newcomers"

    def come(self) -> None:
        common = {"bootstrap.servers": self._bootstrap, "error_cb": self._note}
        producer = Producer({**common, "enable.idempotence": True, "linger.ms": 2})
        mark = f"{self.rounds}".encode()
        for partition in range(PARTITIONS):
            producer.produce(self._topic, mark, partition=partition, on_delivery=lambda error, _: self._note(error))
        assert producer.flush(PATIENCE_S) == 0, "a new idempotent producer's records have no answer"
        consumer = Consumer(
            {
                **common,
                "group.id": self._group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 500,
            }
        )
        try:
            consumer.subscribe([self._topic])
            poll_records(consumer, PARTITIONS, PATIENCE_S)
            consumer.commit(asynchronous=False)
        finally:
            consumer.close()
        self.rounds += 1

    def _note(self, error: KafkaError | None) -> None:
        if error is not None:
            self.errors.append(str(error))


def without_etcd(cluster: Cluster, seconds: float, pause_s: float = PAUSE_S) -> dict[str, Any]:
    """Stop etcd for so long: not one error, no slot moved, topics refused; at last a worker is killed and replaced.

    Raises:
        AssertionError, TimeoutError: with what was found, or what did not go on.
    """
    assert cluster.etcd is not None
    topic, newcomers = (f"etcd-{uuid.uuid4().hex[:8]}" for _ in range(2))
    for name in (topic, newcomers):
        create_topic(cluster.bootstrap, name, PARTITIONS)
    cluster.wait_even(_slots(cluster))
    newcomer = Newcomer(cluster.bootstrap, newcomers)
    with ExitStack() as running:
        load = running.enter_context(IdempotentLoad(cluster.bootstrap, topic, PARTITIONS, pause_s=pause_s))
        load.wait_progress(PROGRESS_RECORDS)
        reader = running.enter_context(GroupReader(cluster.bootstrap, topic, f"{topic}-group"))
        reader.wait_progress(PROGRESS_RECORDS)
        newcomer.come()
        before = _leaders(cluster, topic)
        cluster.etcd.kill()
        wait_for(lambda: not _available(cluster), PATIENCE_S, "the outage is noticed")
        began = time.monotonic()
        newcomer.errors.clear()
        while time.monotonic() - began < seconds or newcomer.rounds < 2:
            newcomer.come()
            load.wait_progress(PROGRESS_RECORDS)
            reader.wait_progress(PROGRESS_RECORDS)
            assert not newcomer.errors, newcomer.errors[:5]
            assert 503 not in _statuses(cluster, "/readyz")
        assert _create(cluster, f"{topic}-refused") == REQUEST_TIMED_OUT
        assert _leaders(cluster, topic) == before, "slots moved"
        outage_s = time.monotonic() - began
        replaced_s = _replace_worker(cluster, newcomers)
        load.wait_progress(PROGRESS_RECORDS)
        reader.wait_progress(PROGRESS_RECORDS)
        newcomer.come()
        cluster.etcd.start()
        wait_for(lambda: _available(cluster) == len(cluster.brokers), PATIENCE_S, "etcd is back")
        wait_for(lambda: _create(cluster, f"{topic}-new") == 0, PATIENCE_S, "topics can be created")
        assert _leaders(cluster, topic) == before, "slots moved"
        load.finish()
        reader.finish()
    check_records(cluster.bootstrap, load)
    check_bucket(cluster)
    return {
        "etcd away s": outage_s,
        "new producers and members meanwhile": newcomer.rounds,
        "errors": 0,
        "records acknowledged": len(load.acknowledged),
        "a killed worker's partitions served after s": replaced_s,
        "slots moved": 0,
    }


def without_s3(cluster: Cluster, seconds: float, pause_s: float = PAUSE_S) -> dict[str, Any]:
    """Have the store silent for so long, while producers flood the brokers.

    Raises:
        AssertionError, TimeoutError: with what was found, or what did not go on.
    """
    topic, flooded, after = (f"s3-{uuid.uuid4().hex[:8]}" for _ in range(3))
    for name in (topic, flooded, after):
        create_topic(cluster.bootstrap, name, PARTITIONS)
    with IdempotentLoad(cluster.bootstrap, topic, PARTITIONS, pause_s=pause_s) as load:
        load.wait_progress(PROGRESS_RECORDS)
        load.finish()
    pids = [broker.worker_pids() for broker in cluster.brokers]
    before = _resident(cluster)
    limit = before + _may_grow(cluster)
    highest = before
    cluster.set_s3(mode=HANG)
    began = time.monotonic()
    try:
        with _flood(cluster, flooded) as taken:
            wait_for(lambda: _statuses(cluster, "/readyz") == {503}, PATIENCE_S, "nobody is ready")
            late_s = _refused_after(cluster, flooded)
            check_records(cluster.bootstrap, load)  # From memory.
            while time.monotonic() - began < seconds:
                highest = max(highest, _resident(cluster))
                assert highest < limit, f"{highest / 2**20:.0f} MiB are resident, {before / 2**20:.0f} were"
                assert 503 not in _statuses(cluster, "/healthz")
                late_s = max(late_s, _refused_after(cluster, flooded))
            assert not taken, f"{len(taken)} records were acknowledged while the store was silent"
    finally:
        cluster.set_s3(mode=PASS)
    outage_s = time.monotonic() - began
    wait_for(lambda: _statuses(cluster, "/readyz") == {200}, PATIENCE_S, "everybody is ready again")
    assert [broker.worker_pids() for broker in cluster.brokers] == pids, "a worker was restarted"
    with IdempotentLoad(cluster.bootstrap, after, PARTITIONS, pause_s=pause_s) as again:
        again.wait_progress(PROGRESS_RECORDS)
        again.finish()
    check_records(cluster.bootstrap, again)
    check_records(cluster.bootstrap, load)
    check_bucket(cluster)
    return {
        "S3 silent s": outage_s,
        "a request's answer later than its timeout s": late_s,
        "resident MiB before": before / 2**20,
        "at most": highest / 2**20,
        "limit": limit / 2**20,
        "restarts": 0,
        "records read from memory": len(load.acknowledged),
    }


def _slots(cluster: Cluster) -> int:
    return int(total_of(cluster.metrics(), "kafscale_slots_assigned"))


def _available(cluster: Cluster) -> int:
    """How many brokers reach etcd."""
    return sum(int(total_of(samples(broker), "kafscale_coordination_available")) for broker in cluster.brokers)


def _leaders(cluster: Cluster, topic: str) -> dict[int, int]:
    with wire.Connection(cluster.brokers[0].port) as connection:
        return wire.leaders(connection, topic)


def _create(cluster: Cluster, topic: str) -> int:
    with wire.Connection(cluster.brokers[0].port) as connection:
        return wire.create_topic(connection, topic)


def _replace_worker(cluster: Cluster, topic: str) -> float:
    """Kill a worker; the seconds until one of its partitions takes a record again."""
    partition, port = next(iter(_leaders(cluster, topic).items()))
    broker, index = next(
        (broker, index)
        for broker in cluster.brokers
        for index, worker in enumerate(broker.info()["workers"])
        if worker["port"] == port
    )
    pid = broker.worker_pids()[index]
    broker.remember()
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    def taken() -> bool:
        try:
            with wire.Connection(port, timeout_s=5) as connection:
                return bool(wire.produce(connection, topic, wire.batch([b"probe"]), partition).error_code == 0)
        except (OSError, wire.Closed):
            return False

    wait_for(taken, PATIENCE_S, "the worker is replaced")
    return time.monotonic() - began


def _statuses(cluster: Cluster, path: str) -> set[int]:
    return {broker.http_status(path) for broker in cluster.brokers}


def _resident(cluster: Cluster) -> int:
    pids = [pid for broker in cluster.brokers for pid in (broker.supervisor_pid(), *broker.worker_pids()) if pid]
    return sum(map(resident_bytes, pids))


def _may_grow(cluster: Cluster) -> int:
    return GROWTH_MAX_BYTES * sum(len(broker.worker_pids()) for broker in cluster.brokers)


def _refused_after(cluster: Cluster, topic: str) -> float:
    """A producer gets an error that it can retry, within its timeout; returns how much later than that it came."""
    (partition, port) = next(iter(_leaders(cluster, topic).items()))
    with wire.Connection(port) as connection:
        began = time.monotonic()
        answer = wire.produce(
            connection, topic, wire.batch([b"refused"]), partition, timeout=wire.milliseconds(TIMEOUT_MS)
        )
        late_s = time.monotonic() - began - TIMEOUT_MS / 1000
    assert answer.error_code == REQUEST_TIMED_OUT, f"error {answer.error_code}"
    assert late_s < LATE_S, f"the answer came {late_s:.1f} s after the request's timeout"
    return late_s


@contextmanager
def _flood(cluster: Cluster, topic: str) -> Iterator[list[bytes]]:
    """Producers that send all they can; yields what was acknowledged."""
    stop = threading.Event()
    taken: list[bytes] = []

    def send() -> None:
        producer = Producer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "max.in.flight": 100,
                "queue.buffering.max.kbytes": 32 << 10,
                "message.timeout.ms": 5000,
                "log_level": 2,
            }
        )
        value = os.urandom(FLOOD_RECORD_BYTES)
        while not stop.is_set():
            try:
                producer.produce(topic, value, on_delivery=lambda error, _: error or taken.append(b""))
                producer.poll(0)
            except BufferError:
                producer.poll(0.05)
        producer.purge()
        producer.poll(0)

    threads = [threading.Thread(target=send, daemon=True) for _ in range(FLOOD_PRODUCERS)]
    for thread in threads:
        thread.start()
    try:
        yield taken
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
