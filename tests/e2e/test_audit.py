"""Goal: on a broker of real processes with real clients everything that must be on record is, through kills and
restarts, and no password anywhere else than where it was given."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from loadtest.broker_process import wait_for
from tests.e2e.conftest import MakeBroker
from tests.e2e.secure_broker import PASSWORD, USER, SecureBroker

TOPIC = "__audit_log"
WRONG = "not the passw0rd"


class Audited:
    """A broker with users, rules and an audit log."""

    def __init__(self, make_broker: MakeBroker, folder: Path) -> None:
        rules = {"default_policy": "deny", "principals": [{"name": USER, "allow": [{}], "deny": []}]}
        self.secure = SecureBroker(
            make_broker,
            folder,
            AUDIT_LOG="file",
            AUDIT_ANCHOR_INTERVAL_MS="200",
            AUDIT_TOPIC="true",
            ACL_ENABLED="true",
            ACL_JSON=json.dumps(rules),
        )
        self.broker = self.secure.broker
        self.path = self.broker.data_dir / "audit.log"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def wait(self, what: str, match: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first record that matches, once it is there."""
        return wait_for(lambda: next((record for record in self.records() if match(record)), None), 30, what)

    def verify(self, *more: str, piped: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kafscale", "audit", "verify", "--data-dir", str(self.broker.data_dir), *more]
        return subprocess.run(command, input=piped.decode(), capture_output=True, text=True, check=False)

    def copies(self, count: int) -> list[bytes]:
        """The first records in the internal topic, by number."""
        settings = self.secure.confluent("sasl", "SCRAM-SHA-256") | {"group.id": "auditors"}
        consumer = Consumer(settings)
        partitions = consumer.list_topics(TOPIC, 30).topics[TOPIC].partitions
        consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in partitions])
        found: list[bytes] = []
        until = time.monotonic() + 30
        while len(found) < count and time.monotonic() < until:
            found += [message.value() for message in consumer.consume(1000, 0.2) if message.error() is None]
        consumer.close()
        return sorted(found, key=lambda line: int(json.loads(line)["seq"]))

    def admin(self) -> AdminClient:
        return AdminClient(self.secure.confluent("sasl", "SCRAM-SHA-256"))


@pytest.fixture
def audited(make_broker: MakeBroker, tmp_path: Path) -> Audited:
    return Audited(make_broker, tmp_path)


def operation(record: dict[str, Any]) -> str:
    return str(record.get("api", {}).get("operation", ""))


def test_the_record_of_a_broker(audited: Audited) -> None:
    """Logins, refusals, denials, changes and a kill are on record, one chain over two lives; the passwords are in no
    log, metric or command line."""
    secure, broker = audited.secure, audited.broker
    admin = audited.admin()
    admin.create_topics([NewTopic("orders", 2, 1)])["orders"].result(30)
    # What the client was told of is on record.
    (created,) = [record for record in audited.records() if operation(record) == "CreateTopics"]
    assert created["actor"]["user"] == {"type": "User", "name": USER}
    assert created["resources"] == [{"type": "topic", "name": "orders", "data": {"detail": "partitions=2"}}]
    assert created["status"] == "Success" and created["unmapped"]["listener"] == "sasl"
    resource = ConfigResource(
        ResourceType.TOPIC,
        "orders",
        incremental_configs=[ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)],
    )
    admin.incremental_alter_configs([resource])[resource].result(30)
    admin.delete_topics(["orders"])["orders"].result(30)
    assert {operation(record) for record in audited.records()} >= {"IncrementalAlterConfigs", "DeleteTopics"}
    login = audited.wait("the login", lambda record: record["class_uid"] == 3002 and record["status"] == "Success")
    assert (login["user"]["name"], login["auth_protocol"]) == (USER, "SCRAM-SHA-256")

    problems: list[Any] = []
    settings = secure.confluent("sasl", "PLAIN", password=WRONG) | {"error_cb": problems.append}
    stranger = Producer(settings)
    wait_for(lambda: stranger.poll(0.1) or problems, 30, "the refusal")
    refused = audited.wait("the refusal", lambda record: record["class_uid"] == 3002 and record["status"] == "Failure")
    assert refused["severity_id"] == 3 and refused["src_endpoint"] == {"ip": "127.0.0.1"}
    with pytest.raises(KafkaException):
        bob = AdminClient(secure.confluent("sasl", "SCRAM-SHA-512", user="bob", password="builder"))
        bob.create_topics([NewTopic("mine", 1, 1)])["mine"].result(30)
    denied = audited.wait("the denial", lambda record: "authorizations" in record.get("actor", {}))
    (authorization,) = denied["actor"]["authorizations"]
    assert authorization["decision"] == "denied"
    assert "default policy is deny" in authorization["policy"]["desc"]

    # What is in the topic are the same lines, and not even who may do everything adds to them.
    lines = audited.path.read_bytes().splitlines()
    copies = audited.copies(len(lines))
    assert copies[: len(lines)] == lines
    piped = b"".join(line + b"\n" for line in copies)
    assert audited.verify("--no-anchors", "-", piped=piped).returncode == 0
    forger = Producer(secure.confluent("sasl", "SCRAM-SHA-256"))
    failed: list[Any] = []
    forger.produce(TOPIC, b"forged", partition=0, on_delivery=lambda error, _: failed.append(error))
    forger.flush(30)
    assert failed and failed[0] is not None

    broker.kill_worker(0)
    audited.wait("the worker's end", lambda record: record["unmapped"].get("action") == "Stop worker")
    audited.wait("its return", lambda record: record["unmapped"].get("action") == "Restart worker")
    shown = broker.log() + "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in broker.living_pids())
    shown += broker.http_body("/metrics") + audited.path.read_text() + (broker.data_dir / "broker.json").read_text()
    for secret in (PASSWORD, WRONG, "builder"):
        assert secret not in shown
    broker.kill_everything()
    broker.restart()
    later = audited.admin()
    later.create_topics([NewTopic("later", 1, 1)])["later"].result(30)
    broker.stop()
    records = audited.records()
    assert records[-1]["unmapped"]["action"] == "Stop broker"
    assert sum(record["unmapped"].get("action") == "Start broker" for record in records) == 2
    found = audited.verify()
    assert found.returncode == 0 and f"records 1 to {len(records)}" in found.stdout, found

    lines = audited.path.read_bytes().splitlines(keepends=True)
    audited.path.write_bytes(b"".join(lines).replace(b'"name":"later"', b'"name":"other"'))
    changed = next(number for number, line in enumerate(lines, 1) if b'"name":"later"' in line)
    found = audited.verify()
    assert found.returncode == 1 and f"record {changed} is the first that was changed" in found.stdout, found
    audited.path.write_bytes(b"".join(lines[:-3]))
    found = audited.verify()
    assert f"record {len(lines) - 2} is the first that was truncated" in found.stdout, found
