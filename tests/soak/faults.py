"""What is done to a cluster of processes: each fault is an act that begins, lasts, and ends with all whole again.

An act gets the cluster, a source of chance and the lease's time to live, picks its victims, and returns when it has
undone what it did: processes run, links pass. Whether the cluster has got over it is for whoever calls.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.cluster import Cluster
from loadtest.proxy import CUT, HANG, PASS
from tests.e2e.broker import is_running

PATIENCE_S = 60.0

Act = Callable[[Cluster, random.Random, float], None]


def _last(seconds: float) -> None:
    threading.Event().wait(seconds)


def _any(cluster: Cluster, chance: random.Random) -> tuple[int, BrokerProcess]:
    number = chance.randrange(len(cluster.brokers))
    return number, cluster.brokers[number]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pids(broker: BrokerProcess) -> list[int]:
    assert broker.process is not None
    broker.remember()
    return [broker.process.pid, *broker.worker_pids()]


def kill_worker(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """SIGKILL to a worker, which its supervisor replaces."""
    _, broker = _any(cluster, chance)
    before = broker.worker_pids()
    victim = chance.choice(before)
    _signal(victim, signal.SIGKILL)
    wait_for(lambda: victim not in broker.worker_pids(), PATIENCE_S, "the worker is replaced")


def kill_broker(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """SIGKILL to a broker and its workers; it comes back before or after the others took over."""
    _, broker = _any(cluster, chance)
    doomed = _pids(broker)
    for pid in doomed:
        _signal(pid, signal.SIGKILL)
    assert broker.process is not None
    broker.process.wait(PATIENCE_S)
    wait_for(lambda: not any(is_running(pid) for pid in doomed), PATIENCE_S, "the broker is gone")
    _last(chance.uniform(0.0, 2 * ttl_s))
    broker.start()


def pause_worker(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """SIGSTOP to a worker: its supervisor ends its log and replaces it, and then it may wake up."""
    _, broker = _any(cluster, chance)
    victim = chance.choice(broker.worker_pids())
    _signal(victim, signal.SIGSTOP)
    try:
        _last(chance.uniform(0.2, 2.0) * ttl_s)
    finally:
        _signal(victim, signal.SIGCONT)


def pause_broker(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """SIGSTOP to a broker and its workers past the lease: others take over, and it wakes up replaced."""
    _, broker = _any(cluster, chance)
    victims = _pids(broker)
    for pid in victims:
        _signal(pid, signal.SIGSTOP)
    try:
        _last(chance.uniform(1.5, 2.5) * ttl_s)
    finally:
        for pid in reversed(victims):
            _signal(pid, signal.SIGCONT)


@contextmanager
def _link(cluster: Cluster, name: str, **rules: object) -> Iterator[None]:
    """A link behaves so for a while."""
    cluster.proxy.set(name, **rules)
    try:
        yield
    finally:
        cluster.proxy.set(name, mode=PASS, delay_s=0.0, lose=0.0, refuse=0.0)


def cut_etcd(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """A broker can't reach etcd: connections break, or nothing passes."""
    number, _ = _any(cluster, chance)
    with _link(cluster, f"etcd-{number}", mode=chance.choice([CUT, HANG])):
        _last(chance.uniform(1.0, 2.5) * ttl_s)


def cut_s3(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """A broker can't reach the store: connections break, or nothing passes."""
    number, _ = _any(cluster, chance)
    with _link(cluster, f"s3-{number}", mode=chance.choice([CUT, HANG])):
        _last(chance.uniform(0.5, 2.0) * ttl_s)


def cut_both(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """A broker is alone: it reaches neither, its clients reach it."""
    number, _ = _any(cluster, chance)
    mode = chance.choice([CUT, HANG])
    with _link(cluster, f"etcd-{number}", mode=mode), _link(cluster, f"s3-{number}", mode=mode):
        _last(chance.uniform(1.5, 2.5) * ttl_s)


def lose_answers(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """The store does what a broker asks and the answer is lost, or it refuses with 503."""
    number, _ = _any(cluster, chance)
    with _link(cluster, f"s3-{number}", lose=chance.uniform(0.02, 0.2), refuse=chance.uniform(0.0, 0.2)):
        _last(chance.uniform(1.0, 2.0) * ttl_s)


def delay_answers(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """The store's answers come late, etcd's too."""
    number, _ = _any(cluster, chance)
    delay_s = chance.uniform(0.05, 0.6)
    with _link(cluster, f"s3-{number}", delay_s=delay_s), _link(cluster, f"etcd-{number}", delay_s=delay_s / 2):
        _last(chance.uniform(1.0, 2.0) * ttl_s)


def stop_etcd(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """etcd is gone for a while; at times it comes back empty."""
    assert cluster.etcd is not None
    cluster.etcd.kill()
    _last(chance.uniform(1.0, 2.5) * ttl_s)
    if chance.random() < 0.5:
        cluster.etcd.data = Path(f"{cluster.etcd.data}-again")
    cluster.etcd.start()


def stop_s3(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """Nobody reaches the store."""
    mode = chance.choice([CUT, HANG])
    cluster.set_s3(mode=mode)
    try:
        _last(chance.uniform(0.5, 2.0) * ttl_s)
    finally:
        cluster.set_s3(mode=PASS)


def restart_in_turn(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """SIGTERM to one broker after the other, each started anew before the next."""
    for broker in chance.sample(cluster.brokers, len(cluster.brokers)):
        broker.stop()
        broker.start()


FAULTS: Mapping[str, Act] = {
    "worker killed": kill_worker,
    "broker killed": kill_broker,
    "worker paused": pause_worker,
    "broker paused past its lease": pause_broker,
    "broker cut off from etcd": cut_etcd,
    "broker cut off from S3": cut_s3,
    "broker cut off from both": cut_both,
    "answers of S3 lost, 503": lose_answers,
    "answers of S3 and etcd late": delay_answers,
    "etcd stopped, or emptied": stop_etcd,
    "S3 stopped": stop_s3,
    "rolling restart": restart_in_turn,
}


def anything(cluster: Cluster, chance: random.Random, ttl_s: float) -> None:
    """One of the others."""
    chance.choice(list(FAULTS.values()))(cluster, chance, ttl_s)
