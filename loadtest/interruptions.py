"""How long partitions can't be written to while slots change owners: planned moves, a lost worker, a lost broker.

Two brokers of one worker on an etcd and an S3 server whose every answer takes 50 ms; a third comes and goes. Each of
sixteen partitions, a slot of its own, has a client that writes one record after the other, asks for the leader anew
after each error and tries again a twentieth of a second later, as real clients do. A partition's interruption is the
longest time between two acknowledgements, less what is usual.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from loadtest import wire
from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.cluster import LEASE_TTL_MS, PATIENCE_S, Cluster
from loadtest.measure import report

PARTITIONS = 16
DELAY_MS = 50
FLUSH_INTERVAL_MS = 20
RETRY_S = 0.05
# What a request may take: more than a second of silence is counted, not cut short.
REQUEST_S = 3.0
CALM_S = 4.0
LIMIT_MOVE_S, LIMIT_WORKER_S, LIMIT_BROKER_S = 1.0, 2.0, LEASE_TTL_MS / 1000 + 3.0


class Writer:
    """One partition's client, in a thread of its own."""

    def __init__(self, topic: str, partition: int, ports: Callable[[], list[int]]) -> None:
        self.acknowledged: list[float] = []
        self.leader = 0
        self._topic, self._partition, self._ports = topic, partition, ports
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def interruption_s(self, since: float) -> float:
        times = [at for at in self.acknowledged if at >= since]
        return max((after - before for before, after in itertools.pairwise([since, *times])), default=0.0)

    def took_records_since(self, when: float) -> bool:
        return bool(self.acknowledged) and self.acknowledged[-1] > when

    def _run(self) -> None:
        connections: dict[int, wire.Connection] = {}
        batch = wire.batch([b"x" * 100])
        while not self._stop.is_set():
            try:
                if not self.leader:
                    self.leader = self._find()
                port = self.leader
                if port not in connections:
                    connections[port] = wire.Connection(port, timeout_s=REQUEST_S)
                code = wire.produce(connections[port], self._topic, batch, self._partition).error_code
                if code == 0:
                    self.acknowledged.append(time.monotonic())
                    continue
            except (OSError, wire.Closed, LookupError):
                broken = connections.pop(self.leader, None)
                if broken is not None:
                    broken.close()
            self.leader = 0
            self._stop.wait(RETRY_S)
        for connection in connections.values():
            connection.close()

    def _find(self) -> int:
        for port in self._ports():
            try:
                with wire.Connection(port, timeout_s=REQUEST_S) as connection:
                    return wire.leaders(connection, self._topic)[self._partition]
            except (OSError, wire.Closed):
                continue
        raise LookupError("no broker answers")


class Trial:
    """A cluster under load, and what each event did to it."""

    def __init__(self, cluster: Cluster, writers: list[Writer]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._cluster = cluster
        self._writers = writers

    def calm(self) -> float:
        """The longest usual time between two acknowledgements, in seconds."""
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > CALM_S, 2 * CALM_S, "some calm")
        return max(writer.interruption_s(began) for writer in self._writers)

    def run(self, name: str, limit_s: float, act: Callable[[], object], settled: Callable[[], object]) -> None:
        usual = self.calm()
        before = [writer.leader for writer in self._writers]
        began = time.monotonic()
        act()
        settled()
        settled_at = time.monotonic()
        wait_for(lambda: all(w.took_records_since(settled_at) for w in self._writers), PATIENCE_S, "records are taken")
        self.calm()
        after = [writer.leader for writer in self._writers]
        lost = {writer: writer.interruption_s(began) - usual for writer in self._writers}
        changed = [lost[w] for w, old, new in zip(self._writers, before, after, strict=True) if old != new]
        stayed = [lost[w] for w, old, new in zip(self._writers, before, after, strict=True) if old == new]
        self.rows.append(
            {
                "event": name,
                "partitions with a new leader": len(changed),
                "median interruption s": statistics.median(changed) if changed else None,
                "longest s": max(changed, default=None),
                "longest of the others s": max(stayed, default=None),
                "aim s": limit_s,
            }
        )
        print(self.rows[-1], flush=True)


def measure() -> list[dict[str, Any]]:
    settings = {"KAFSCALE_FLUSH_INTERVAL_MS": str(FLUSH_INTERVAL_MS), "KAFSCALE_SLOTS": str(PARTITIONS)}
    with Cluster(2, 1, settings, spare=1) as cluster:
        cluster.set_s3(delay_s=DELAY_MS / 1000)
        cluster.wait_even(PARTITIONS)
        with wire.Connection(cluster.brokers[0].port) as connection:
            if code := wire.create_topic(connection, "moves", PARTITIONS):
                raise RuntimeError(f"error {code}")
        first, second = cluster.brokers

        def ports() -> list[int]:
            return [broker.port for broker in cluster.brokers]

        writers = [Writer("moves", partition, ports) for partition in range(PARTITIONS)]
        trial = Trial(cluster, writers)
        for writer in writers:
            writer.__enter__()
        try:
            wait_for(lambda: all(writer.acknowledged for writer in writers), 60, "all partitions take records")

            def even() -> None:
                cluster.wait_even(PARTITIONS)

            trial.run("a broker joins", LIMIT_MOVE_S, lambda: cluster.add(2), even)
            third = cluster.brokers[2]
            trial.run("a worker is killed", LIMIT_WORKER_S, lambda: _kill_worker(first), even)
            trial.run("a broker leaves (SIGTERM)", LIMIT_MOVE_S, third.stop, even)
            trial.run("a broker is killed", LIMIT_BROKER_S, lambda: _kill(second), even)
        finally:
            for writer in writers:
                writer.__exit__()
    return trial.rows


def _kill_worker(broker: BrokerProcess) -> None:
    os.kill(broker.worker_pids()[0], signal.SIGKILL)


def _kill(broker: BrokerProcess) -> None:
    pids = [*broker.worker_pids(), broker.supervisor_pid()]
    for pid in pids:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    assert broker.process is not None
    broker.process.wait()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    report(f"interruptions at a {DELAY_MS} ms store", measure(), {"lease TTL ms": LEASE_TTL_MS})


if __name__ == "__main__":
    main()
