"""A worker that hangs (SIGSTOP) is sealed, killed and replaced; one that is not killed and wakes up is fenced."""

from __future__ import annotations

import os
import signal
import time

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import is_running
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import IdempotentLoad, check_records
from tests.e2e.test_kill import partition_led_by, seconds_until_served

PARTITIONS = 8
CLIENTS_GO_ON_WITHIN_S = 10.0


def test_a_hung_worker_is_replaced(make_broker: MakeBroker, topic: str) -> None:
    """On default settings clients go on within ten seconds of a worker's hanging, with nothing lost or twice."""
    broker = make_broker(workers=2)
    create_topic(broker.bootstrap, topic, PARTITIONS)
    probes = f"{topic}-probe"
    create_topic(broker.bootstrap, probes, PARTITIONS)
    with IdempotentLoad(broker.bootstrap, topic, PARTITIONS) as load:
        load.wait_progress()
        partition = partition_led_by(broker, probes, broker.worker_ports()[0])
        stopped_at = time.monotonic()
        hung = broker.kill_worker(0, signal.SIGSTOP)
        took = seconds_until_served(broker, probes, partition, stopped_at)
        print(f"served again {took:.2f} s after the worker hung")
        assert took <= CLIENTS_GO_ON_WITHIN_S
        broker.wait_worker_replaced(0, hung)
        wait_for(lambda: not is_running(hung), 10, "the hung worker killed")
        load.wait_progress()
        load.finish()
    check_records(broker.bootstrap, load)
    assert broker.stop() == 0


def test_a_replaced_worker_that_wakes_up_is_fenced(make_broker: MakeBroker, topic: str) -> None:
    """Not killed, continued after its replacement, with requests already in its sockets: it gets no record into what
    a reader sees and no acknowledgement out, and says that it was fenced."""
    broker = make_broker(
        workers=2, environment={"KAFSCALE_TEST_NO_KILL": "1", "KAFSCALE_WORKER_HANG_TIMEOUT_MS": "1000"}
    )
    create_topic(broker.bootstrap, topic, PARTITIONS)
    partition = partition_led_by(broker, topic, broker.worker_ports()[0])
    acknowledged = 0
    with wire.Connection(broker.worker_ports()[0]) as before:
        for _ in range(10):
            assert wire.produce(before, topic, wire.batch([b"before"]), partition).error_code == 0
            acknowledged += 1
        hung = broker.kill_worker(0, signal.SIGSTOP)
        try:
            # These lie in the stopped worker's socket until it is continued.
            for correlation_id in range(100, 110):
                body = wire.produce_body(topic, wire.batch([b"zombie"]), partition)
                before.send(wire.request(wire.PRODUCE, 9, correlation_id, **body))
            broker.wait_worker_replaced(0, hung)
            seconds_until_served(broker, topic, partition, time.monotonic())
            acknowledged += 1  # The probe.
            assert is_running(hung)
            assert "fenced" not in broker.log()
        finally:
            os.kill(hung, signal.SIGCONT)
        answers = []
        try:
            for correlation_id in range(100, 110):
                response = before.response(wire.PRODUCE, 9, correlation_id)
                answers.append(int(response.responses[0].partition_responses[0].error_code))
        except wire.Closed:
            pass
    assert 0 not in answers, f"the old worker acknowledged: {answers}"
    wait_for(lambda: not is_running(hung), 30, "the fenced worker ended")
    assert "fenced" in broker.log(), "the old worker did not say in its log that it was fenced"
    with wire.Connection(broker.port) as connection:
        port = wire.leaders(connection, topic)[partition]
    with wire.Connection(port) as reader:
        values = wire.fetch_values(reader, topic, partition)
    assert len(values) == acknowledged
    assert b"zombie" not in values
    assert broker.stop() == 0
