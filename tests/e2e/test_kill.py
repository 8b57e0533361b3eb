"""kill -9 under idempotent load: a worker, the supervisor, everything, ten times each.

After each series every acknowledged record is there once, at the offset that was said, offsets are dense, and the
group has gone on from its commits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import Broker
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records

KILLS = 10
PARTITIONS = 8
WORKER_BACK_WITHIN_S = 2.0


def kill_repeatedly(broker: Broker, topic: str, group: str, kill: Callable[[int], None]) -> None:
    """Kill ten times under load, each time once load and group have got going again; then check everything."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    with (
        IdempotentLoad(broker.bootstrap, topic, PARTITIONS) as load,
        GroupReader(broker.bootstrap, topic, group) as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        for number in range(KILLS):
            kill(number)
            load.wait_progress()
            reader.wait_progress()
            reader.check_commits()
        load.finish()
        reader.finish()
    check_records(broker.bootstrap, load)


def partition_led_by(broker: Broker, topic: str, port: int) -> int:
    """A partition of the topic whose leader has the given port."""

    def found() -> list[int]:
        with wire.Connection(broker.port) as connection:
            return [p for p, leader in wire.leaders(connection, topic).items() if leader == port]

    return wait_for(found, 30, f"a partition led by port {port}")[0]


def seconds_until_served(broker: Broker, topic: str, partition: int, since: float, timeout_s: float = 30.0) -> float:
    """How long after `since` a record sent straight to the partition's leader is acknowledged."""

    def served() -> float:
        try:
            with wire.Connection(broker.port, timeout_s=5) as connection:
                port = wire.leaders(connection, topic)[partition]
            with wire.Connection(port, timeout_s=5) as connection:
                if wire.produce(connection, topic, wire.batch([b"probe"]), partition).error_code == 0:
                    return time.monotonic() - since
        except (OSError, wire.Closed, KeyError):
            pass
        return 0.0

    return wait_for(served, timeout_s, f"partition {partition} served again")


def test_kill_a_worker(
    make_broker: MakeBroker, topic: str, group: str, record_property: Callable[[str, object], None]
) -> None:
    """A killed worker is replaced, its partitions served again within two seconds, its sibling not disturbed."""
    broker = make_broker(workers=2)
    probes = f"{topic}-probe"
    create_topic(broker.bootstrap, probes, PARTITIONS)
    took: list[float] = []

    def kill(number: int) -> None:
        victim, sibling = number % 2, 1 - number % 2
        ports, pids = broker.worker_ports(), broker.worker_pids()
        partition = partition_led_by(broker, probes, ports[victim])
        with wire.Connection(ports[sibling]) as undisturbed:
            mine = partition_led_by(broker, probes, ports[sibling])
            killed_at = time.monotonic()
            broker.kill_worker(victim)
            assert wire.produce(undisturbed, probes, wire.batch(), mine).error_code == 0
            took.append(seconds_until_served(broker, probes, partition, killed_at))
            broker.wait_worker_replaced(victim, pids[victim])
            assert wire.produce(undisturbed, probes, wire.batch(), mine).error_code == 0
        assert broker.worker_pids()[sibling] == pids[sibling]

    kill_repeatedly(broker, topic, group, kill)
    record_property("seconds until served", took)
    print(f"served again after a worker's kill in {min(took):.2f} to {max(took):.2f} s")
    # Of most, since the machine may be busy with other tests.
    assert statistics.median(took) <= WORKER_BACK_WITHIN_S
    assert broker.stop() == 0


@pytest.mark.parametrize("what", ["supervisor", "everything"])
def test_kill_the_broker(make_broker: MakeBroker, topic: str, group: str, what: str) -> None:
    """After the supervisor, or all processes at once, were killed, a new broker on the same data goes on."""
    broker = make_broker(workers=2)

    def kill(_number: int) -> None:
        if what == "everything":
            broker.kill_everything()
        else:
            broker.kill_supervisor()
        broker.restart()

    kill_repeatedly(broker, topic, group, kill)
    assert broker.stop() == 0
