"""SIGTERM under load: the broker finishes what it has begun and ends with 0; nothing is lost, nothing twice."""

from __future__ import annotations

import signal
import time

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import is_running
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records

PARTITIONS = 8
DRAINED_WITHIN_S = 25.0


def test_sigterm_under_load(make_broker: MakeBroker, topic: str, group: str) -> None:
    """Three rolling restarts by SIGTERM: exit code 0 each time, no process left, clients go on, nothing lost."""
    broker = make_broker(workers=2)
    create_topic(broker.bootstrap, topic, PARTITIONS)
    with (
        IdempotentLoad(broker.bootstrap, topic, PARTITIONS) as load,
        GroupReader(broker.bootstrap, topic, group) as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        for _ in range(3):
            workers = broker.worker_pids()
            began = time.monotonic()
            assert broker.stop() == 0
            assert time.monotonic() - began < DRAINED_WITHIN_S
            assert not any(is_running(pid) for pid in workers)
            assert not (broker.data_dir / "broker.json").exists()
            broker.restart()
            load.wait_progress()
            reader.wait_progress()
            reader.check_commits()
        load.finish()
        reader.finish()
    check_records(broker.bootstrap, load)
    assert broker.stop() == 0


def test_requests_in_flight_are_answered(make_broker: MakeBroker, topic: str) -> None:
    """What was received before SIGTERM is answered, and what is answered is there after the restart."""
    broker = make_broker(workers=1)
    create_topic(broker.bootstrap, topic, 1)
    with wire.Connection(broker.worker_ports()[0]) as connection:
        assert wire.produce(connection, topic, wire.batch([b"first"])).error_code == 0
        frames = [
            wire.request(wire.PRODUCE, 9, number, **wire.produce_body(topic, wire.batch([b"%d" % number])))
            for number in range(1, 301)
        ]
        connection.send(b"".join(frames))
        connection.response(wire.PRODUCE, 9, 1)  # They have arrived; the first is done.
        assert broker.process is not None
        broker.process.send_signal(signal.SIGTERM)
        answered = 1
        try:
            for number in range(2, 301):
                part = connection.response(wire.PRODUCE, 9, number).responses[0].partition_responses[0]
                if part.error_code == 0:
                    assert part.base_offset == number
                    answered += 1
        except wire.Closed:
            pass
        assert broker.process.wait(30) == 0
    broker.restart()

    def leader() -> int:
        with wire.Connection(broker.port) as connection:
            return wire.leaders(connection, topic).get(0, 0)

    with wire.Connection(wait_for(leader, 30, "a leader")) as connection:
        values = wire.fetch_values(connection, topic)
    assert len(values) > answered
    assert values[: answered + 1] == [b"first", *(b"%d" % number for number in range(1, answered + 1))]
