"""`make cluster`: three brokers on this machine, with an etcd and an S3 server of their own, to be used and to be hurt.

It says where they listen, keeps writing to a topic so that one sees what becomes of records, takes commands (`kill 1`)
and says what happens. It owns every process that it starts; they are in process groups of their own, so that Ctrl-C
reaches this one alone, which then ends them in order: brokers first, since they write their last to the store. All data
lies in a temporary folder and in the S3 server's memory, and goes with them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaError, Message, Producer

from loadtest import wire
from loadtest.broker_process import BrokerProcess, free_port, wait_for
from loadtest.cluster import samples, values_of
from loadtest.etcd_server import EtcdServer
from loadtest.s3_server import S3Server, settings_for

SLOTS = 256
LEASE_TTL_MS = 3000
PORT_STEP = 100
TOPIC, PARTITIONS = "watch", 48
# Those that are written to, of each worker. librdkafka sends a partition's records in a request of their own, and an
# idempotent producer has five of these under way to a worker: so few have no need to queue, even if another is gone.
WATCHED_EACH = 2
RECORDS_PER_SECOND = 50
LOOK_S = 0.2
# What takes longer to be acknowledged is told of: a flush interval and a PUT are usual.
SLOW_S = 1.5
HELP = """\
Type and press Enter:
  kill 1     SIGKILL to broker 1 and its workers: the others take its slots over when its lease has run out
  worker 1   SIGKILL to one of broker 1's workers: its supervisor replaces it
  stop 1     SIGTERM: broker 1 hands everything over and leaves
  start 1    broker 1 comes back
Ctrl-C ends all of it and leaves nothing behind."""


class LocalCluster:
    """The processes; a context."""

    def __init__(self, brokers: int, workers: int, port: int) -> None:
        self._resources = contextlib.ExitStack()
        self._count, self._workers, self._port = brokers, workers, port
        self.s3 = S3Server(apart=True)
        self.folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="kafscale-cluster-")))
        self.etcd = EtcdServer(self.folder / "etcd", apart=True)
        self.brokers: list[BrokerProcess] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._resources.close()
            raise
        return self

    def _start(self) -> None:
        self._resources.enter_context(self.s3)
        self._resources.enter_context(self.etcd)
        for number in range(self._count):
            environment = {
                **settings_for(self.s3.endpoint, self.s3.bucket),
                "KAFSCALE_BROKER_ID": str(number),
                "KAFSCALE_ETCD_ENDPOINTS": f"127.0.0.1:{self.etcd.port}",
                "KAFSCALE_ETCD_LEASE_TTL_MS": str(LEASE_TTL_MS),
                "KAFSCALE_SLOTS": str(SLOTS),
            }
            folder = self.folder / f"broker-{number}"
            broker = BrokerProcess(self._workers, folder, environment, apart=True)
            broker.port, broker.metrics_port = self._ports(number)
            self._resources.callback(broker.close)
            self.brokers.append(broker)
        # The first writes down what the cluster is; then the others need not wait for each other.
        self.brokers[0].start()
        for broker in self.brokers[1:]:
            broker.start(wait=False)
        for broker in self.brokers[1:]:
            broker.wait_ready()

    def _ports(self, number: int) -> tuple[int, int]:
        """For clients and for metrics; the workers' own are 10,000 above."""
        if not self._port:
            return free_port(), free_port()
        return self._port + PORT_STEP * number, self._port + PORT_STEP * number + PORT_STEP // 2

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def do(self, words: list[str]) -> str:
        """Carry out a command; returns what was done. Raises ValueError with what is wrong about it."""
        verb, number = _understood(words, self._count)
        broker = self.brokers[number]
        is_running = broker.process is not None and broker.process.poll() is None
        if is_running == (verb == "start"):
            raise ValueError(f"broker {number} {'runs' if is_running else 'does not run'}")
        if verb == "start":
            broker.start(wait=False)
            return f"broker {number} starts"
        assert broker.process is not None
        if verb == "stop":
            broker.process.send_signal(signal.SIGTERM)
            return f"broker {number} was asked to leave"
        workers = broker.worker_pids()
        killed = workers[:1] if verb == "worker" else [broker.process.pid, *workers]
        broker.remember()
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        what = f"worker 0 of broker {number} was killed" if verb == "worker" else f"broker {number} was killed"
        return f"{what} (SIGKILL to {', '.join(map(str, killed))})"


def _understood(words: list[str], count: int) -> tuple[str, int]:
    if len(words) == 2 and words[0] in ("kill", "worker", "stop", "start") and words[1] in map(str, range(count)):
        return words[0], int(words[1])
    raise ValueError(f"{' '.join(words)!r} is no command. {HELP}")


class Records:
    """A producer that writes all the time, and what became of its records. One thread's."""

    def __init__(self, bootstrap: str, partitions: list[int]) -> None:
        settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 50, "log_level": 2}
        self._producer = Producer(settings)
        self._partitions = partitions
        self._sent = 0
        self._due = time.monotonic()
        self.acknowledged = 0
        self.refused: list[str] = []
        self._waiting: dict[int, float] = {}
        self._longest = 0.0

    def go_on(self) -> None:
        """Send what is due, and hear of what was sent."""
        now = time.monotonic()
        while self._due <= now:
            number = self._sent
            partition = self._partitions[number % len(self._partitions)]
            try:
                self._producer.produce(TOPIC, b"%d" % number, partition=partition, on_delivery=self._done)
            except BufferError:
                break
            self._waiting[number] = now
            self._sent += 1
            self._due += 1 / RECORDS_PER_SECOND
        self._producer.poll(0)

    def _done(self, error: KafkaError | None, message: Message) -> None:
        number = int(message.value() or b"")
        waited = time.monotonic() - self._waiting.pop(number)
        self._longest = max(self._longest, waited)
        if error is None:
            self.acknowledged += 1
        else:
            self.refused.append(str(error))

    def are_taken(self) -> bool:
        self.go_on()
        return self.acknowledged > 0

    def is_waiting(self) -> bool:
        """Whether some record has been without an answer for long."""
        return bool(self._waiting) and time.monotonic() - min(self._waiting.values()) > SLOW_S

    def taken_longest_s(self) -> float:
        longest, self._longest = self._longest, 0.0
        return longest

    def summary(self) -> str:
        refused = f"{len(self.refused)} REFUSED ({self.refused[0]})" if self.refused else "none refused"
        return f"{self.acknowledged:,} records acknowledged, {refused}"


class Watch:
    """Says what changes: who owns how much, and whether records are taken."""

    def __init__(self, cluster: LocalCluster, records: Records) -> None:
        self._cluster = cluster
        self._records = records
        self._owners: dict[int, int] = {}
        self._since: float | None = None
        self._is_waiting = False

    def event(self, text: str) -> None:
        """Something was done: what follows is told with the time since."""
        self._since = time.monotonic()
        self.say(text)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def look(self) -> None:
        owners = self._read_owners()
        if owners is not None and owners != self._owners:
            self._owners = owners
            whose = ", ".join(f"broker {number}: {count}" for number, count in sorted(owners.items()))
            self.say(f"all {SLOTS} slots have owners{self._after()}: {whose}")
        is_waiting = self._records.is_waiting()
        if is_waiting and not self._is_waiting:
            self.say("some partitions take no records")
        elif self._is_waiting and owners is None:
            return  # Those that are asked have answered; the others' turn comes when their slots have owners.
        elif self._is_waiting and not is_waiting:
            waited = self._records.taken_longest_s()
            self.say(f"all take records again; the longest wait was {waited:.1f} s; {self._records.summary()}")
        elif not is_waiting:
            self._records.taken_longest_s()
        self._is_waiting = is_waiting

    def _after(self) -> str:
        return "" if self._since is None else f" after {time.monotonic() - self._since:.1f} s"

    def _read_owners(self) -> dict[int, int] | None:
        """Broker → slots; None while they are not all owned, each by one that has taken it over."""
        owners = {}
        for number, broker in enumerate(self._cluster.brokers):
            if broker.process is None or broker.process.poll() is not None:
                continue
            found = samples(broker)
            if any(values_of(found, "kafscale_slots_unsettled")):
                return None
            if count := int(sum(values_of(found, "kafscale_slots_assigned"))):
                owners[number] = count
        return owners if sum(owners.values()) == SLOTS else None


def introduction(cluster: LocalCluster) -> str:
    lines = [f"{len(cluster.brokers)} brokers on one machine; what they are given goes when they end.", ""]
    for number, broker in enumerate(cluster.brokers):
        lines.append(
            f"  broker {number}   Kafka clients {broker.bootstrap}   metrics http://127.0.0.1:{broker.metrics_port}/metrics"
            f"   log {broker.log_path}"
        )
    lines += [
        f"  S3         {cluster.s3.endpoint}, bucket {cluster.s3.bucket}   etcd 127.0.0.1:{cluster.etcd.port}",
        f"  Try        echo hello | kcat -P -b {cluster.bootstrap} -t greetings",
        "",
        f"A producer writes {RECORDS_PER_SECOND} records a second to some partitions of each, in the topic {TOPIC}.",
        HELP,
        "",
    ]
    return "\n".join(lines)


def _watched(leaders: Mapping[int, int]) -> list[int]:
    """Some partitions of each leader."""
    found: dict[int, list[int]] = defaultdict(list)
    for partition, port in sorted(leaders.items()):
        found[port].append(partition)
    return [partition for partitions in found.values() for partition in partitions[:WATCHED_EACH]]


def _read_lines(into: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        into.put(line)


def run(cluster: LocalCluster) -> None:
    """Until Ctrl-C."""
    with wire.Connection(cluster.brokers[0].port) as connection:
        if code := wire.create_topic(connection, TOPIC, PARTITIONS):
            raise RuntimeError(f"the topic {TOPIC} was refused: error {code}")
        watched = _watched(wire.leaders(connection, TOPIC))
    print(introduction(cluster), flush=True)
    records = Records(cluster.bootstrap, watched)
    watch = Watch(cluster, records)
    typed: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(typed,), daemon=True).start()
    wait_for(records.are_taken, 60, "records are taken")
    records.taken_longest_s()
    look_at = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            if words := typed.get(timeout=0.02).split():
                try:
                    watch.event(cluster.do(words))
                except ValueError as problem:
                    print(problem, flush=True)
        records.go_on()
        if time.monotonic() >= look_at:
            watch.look()
            look_at = time.monotonic() + LOOK_S


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of each broker")
    parser.add_argument("--port", type=int, default=9092, help="of the first broker; 0 picks free ones")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    print("Starting etcd, an S3 server and the brokers …", flush=True)
    try:
        with LocalCluster(options.brokers, options.workers, options.port) as cluster:
            try:
                run(cluster)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                print("\nEnding the brokers …", flush=True)
    except KeyboardInterrupt:
        print("Ended; nothing is left behind.", flush=True)
    except (OSError, RuntimeError, TimeoutError) as problem:
        sys.exit(f"the cluster could not be run: {problem}")


if __name__ == "__main__":
    main()
