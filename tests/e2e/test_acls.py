"""ACLs as clients meet them: kept by real admin clients, in force on every worker for open connections, and never
opened by what is broken. Clients are known by their client ids here, unless a test says otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePattern,
    ResourcePatternFilter,
)
from kafka.admin import ResourceType as KafkaPythonResourceType
from kafka.errors import ClusterAuthorizationFailedError

from loadtest.broker_process import wait_for
from supervisor import cli
from tests.e2e import confluent_clients as clients
from tests.e2e.acl_probe import Probe
from tests.e2e.broker import Broker
from tests.e2e.conftest import EXTERNAL, MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.e2e.secure_broker import PASSWORD, USER, SecureBroker
from tests.e2e.test_java import NEEDS_JAVA, run_java

PATIENCE_S = 60.0
ON = {
    "KAFSCALE_ACL_ENABLED": "true",
    "KAFSCALE_SUPER_USERS": "User:admin",
    "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100",
}
UNKNOWN, DENIED = 3, 29
ACL_CHECK = Path(__file__).parent / "java" / "AclCheck.java"

pytestmark = pytest.mark.skipif(bool(EXTERNAL), reason="needs a broker of its own")


@pytest.fixture(scope="module")
def guarded(make_module_broker: MakeBroker) -> Broker:
    """A broker of two workers on which only `admin` may anything without an ACL."""
    return make_module_broker(workers=2, environment=ON)


@pytest.fixture
def admin(guarded: Broker) -> AdminClient:
    return admin_of(guarded)


def admin_of(broker: Broker, name: str = "admin") -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.bootstrap, "client.id": name})


def binding(
    name: str,
    operation: AclOperation,
    principal: str = "User:alice",
    kind: ResourceType = ResourceType.TOPIC,
    pattern: ResourcePatternType = ResourcePatternType.LITERAL,
    permission: AclPermissionType = AclPermissionType.ALLOW,
    host: str = "*",
) -> AclBinding:
    return AclBinding(kind, name, pattern, principal, host, operation, permission)


def filter_of(found: AclBinding) -> AclBindingFilter:
    """The filter that means just this one."""
    return AclBindingFilter(
        found.restype,
        found.name,
        found.resource_pattern_type,
        found.principal,
        found.host,
        found.operation,
        found.permission_type,
    )


def create(admin: AdminClient, *bindings: AclBinding) -> None:
    for future in admin.create_acls(list(bindings)).values():
        future.result(PATIENCE_S)


def delete(admin: AdminClient, *bindings: AclBinding) -> None:
    for future in admin.delete_acls([filter_of(each) for each in bindings]).values():
        assert future.result(PATIENCE_S)


def make_topic(admin: AdminClient, topic: str, partitions: int = 4) -> None:
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(PATIENCE_S)


def metric(broker: Broker, name: str) -> float:
    """The sum of all its series."""
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", broker.http_body("/metrics"), re.M)
    return sum(map(float, found))


@contextlib.contextmanager
def probes(broker: Broker, client_id: str) -> Iterator[list[Probe]]:
    """A connection to each worker."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Probe(port, client_id)) for port in broker.worker_ports()]


# Clients that keep ACLs


def test_confluent_admin_keeps_acls(guarded: Broker, admin: AdminClient, topic: str, group: str) -> None:
    """Created, described by several filters, effective for a producer and a group, deleted, and no longer so; and not
    for who may not."""
    make_topic(admin, topic)
    with pytest.raises(KafkaException) as refused:
        clients.produce(guarded.bootstrap, topic, [{"value": b"x"}], client_id="alice")
    assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    rights = [
        binding(topic[:-2], AclOperation.WRITE, pattern=ResourcePatternType.PREFIXED),
        binding(topic, AclOperation.READ),
        binding(group, AclOperation.READ, kind=ResourceType.GROUP),
    ]
    create(admin, *rights)
    create(admin, *rights)
    clients.produce(guarded.bootstrap, topic, [{"value": b"x"}] * 10, client_id="alice")
    reader = clients.consumer(guarded.bootstrap, group, client_id="alice")
    reader.subscribe([topic])
    try:
        assert len(clients.poll_records(reader, 10)) == 10
    finally:
        reader.close()

    def found(**fields: Any) -> set[AclBinding]:
        given = {
            "restype": ResourceType.ANY,
            "name": None,
            "resource_pattern_type": ResourcePatternType.ANY,
            "principal": None,
            "host": None,
            "operation": AclOperation.ANY,
            "permission_type": AclPermissionType.ANY,
        }
        return set(admin.describe_acls(AclBindingFilter(**(given | fields))).result(PATIENCE_S))

    assert found(principal="User:alice") == set(rights)
    applying = {"restype": ResourceType.TOPIC, "name": topic, "resource_pattern_type": ResourcePatternType.MATCH}
    assert found(**applying) == set(rights[:2])
    assert found(restype=ResourceType.GROUP, name=group) == {rights[2]}
    assert found(operation=AclOperation.WRITE, name=topic[:-2]) == {rights[0]}
    with pytest.raises(KafkaException) as denied:
        create(admin_of(guarded, "alice"), binding(topic, AclOperation.ALL))
    assert denied.value.args[0].code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED
    gone = admin.delete_acls(
        [AclBindingFilter(*applying.values(), None, None, AclOperation.ANY, AclPermissionType.ANY)]
    )
    (matched,) = (future.result(PATIENCE_S) for future in gone.values())
    assert set(matched) == set(rights[:2])
    assert found(principal="User:alice") == {rights[2]}
    with pytest.raises(KafkaException):
        clients.produce(guarded.bootstrap, topic, [{"value": b"x"}], client_id="alice")


def test_kafka_python_keeps_acls(guarded: Broker, topic: str) -> None:
    """The same by kafka-python's admin client."""
    pattern = ResourcePattern(KafkaPythonResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL)
    wanted = [
        ACL("User:bob", "*", ACLOperation.DESCRIBE, ACLPermissionType.ALLOW, pattern),
        ACL("User:bob", "127.0.0.1", ACLOperation.READ, ACLPermissionType.DENY, pattern),
    ]
    everything = ACLFilter(
        "User:bob",
        None,
        ACLOperation.ANY,
        ACLPermissionType.ANY,
        ResourcePatternFilter(KafkaPythonResourceType.TOPIC, topic, ACLResourcePatternType.ANY),
    )
    keeper = KafkaAdminClient(bootstrap_servers=guarded.bootstrap, client_id="admin")
    stranger = KafkaAdminClient(bootstrap_servers=guarded.bootstrap, client_id="bob")
    try:
        with probes(guarded, "bob") as workers:
            assert [probe.codes(topic) for probe in workers] == [[DENIED]] * 2
            assert keeper.create_acls(wanted)["succeeded"] == wanted
            assert [probe.codes(topic) for probe in workers] == [[UNKNOWN]] * 2
            assert sorted(keeper.describe_acls(everything)[0], key=repr) == sorted(wanted, key=repr)
            with pytest.raises(ClusterAuthorizationFailedError):
                stranger.describe_acls(everything)
            ((_, gone, _),) = keeper.delete_acls([everything])
            assert sorted(gone, key=repr) == sorted(wanted, key=repr)
            assert keeper.describe_acls(everything)[0] == []
            assert [probe.codes(topic) for probe in workers] == [[DENIED]] * 2
    finally:
        keeper.close()
        stranger.close()


@pytest.mark.clients
@pytest.mark.java
@NEEDS_JAVA
def test_the_java_client_keeps_acls(guarded: Broker, topic: str, tmp_path: Path) -> None:
    """`java/AclCheck.java`: created, described, effective, told as authorized operations, deleted; and refused to who
    may not."""
    assert run_java(ACL_CHECK, tmp_path, guarded.bootstrap, topic) == "ok\n"


# Changes while clients are connected


def test_acls_change_under_load_and_no_connection_is_dropped(
    guarded: Broker, admin: AdminClient, topic: str, group: str
) -> None:
    """A producer and a group go on, their rights given by one rule after another; one who loses his is refused on the
    connection that he has; and no connection is closed or made anew."""
    make_topic(admin, topic)
    literal = binding(topic, AclOperation.ALL)
    prefix = binding(topic[:-3], AclOperation.ALL, pattern=ResourcePatternType.PREFIXED)
    anybody = binding(topic, AclOperation.ALL, principal="User:*")
    mallory = binding(topic, AclOperation.DESCRIBE, principal="User:mallory")
    bystanders = [binding(f"{topic}-{number}", AclOperation.READ, principal="User:eve") for number in range(500)]
    create(admin, literal, binding(group, AclOperation.ALL, kind=ResourceType.GROUP))
    with (
        probes(guarded, "mallory") as workers,
        IdempotentLoad(guarded.bootstrap, topic, 4, client_id="alice") as load,
        GroupReader(guarded.bootstrap, topic, group, client_id="alice") as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        accepted, closed = (metric(guarded, f"kafscale_connections_{what}_total") for what in ("accepted", "closed"))
        generation = metric(guarded, "kafscale_acl_snapshot_generation")
        for given, taken in ((prefix, literal), (literal, prefix)) * 2:
            assert [probe.codes(topic) for probe in workers] == [[DENIED]] * 2
            create(admin, given, mallory, *bystanders)
            assert [probe.codes(topic) for probe in workers] == [[0]] * 2
            delete(admin, taken, mallory)
            assert [probe.codes(topic) for probe in workers] == [[DENIED]] * 2
            delete(admin, *bystanders)
            load.wait_progress()
            reader.wait_progress()
        assert metric(guarded, "kafscale_acl_snapshot_generation") >= generation + 12
        assert metric(guarded, "kafscale_connections_closed_total") == closed
        assert metric(guarded, "kafscale_connections_accepted_total") == accepted
        create(admin, anybody)
        delete(admin, anybody)
        load.finish()
        reader.finish()
    check_records(guarded.bootstrap, load, client_id="admin")


def document_for(topic: str, more: int = 0) -> str:
    """A document by which `probe` may see this one topic."""
    rules = [{"action": "fetch", "resource": "topic", "name": f"other-{number}-*"} for number in range(more)]
    rules.append({"action": "fetch", "resource": "topic", "name": topic})
    return json.dumps({"default_policy": "deny", "principals": [{"name": "probe", "allow": rules}]})


def replace(file: Path, text: str) -> None:
    """As editors and Kubernetes do: another file under the name."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


def test_eight_workers_change_their_rules_at_once_and_wholly(make_broker: MakeBroker, tmp_path: Path) -> None:
    """A document is replaced while all are asked all the time: every answer is by the old rules or by the new, never by
    some of each, and no worker goes back. CreateAcls is answered when no worker goes by the old rules any more."""
    file = tmp_path / "acl.json"
    replace(file, document_for("a"))
    broker = make_broker(workers=8, environment=ON | {"KAFSCALE_ACL_FILE": str(file)})
    whole = {"a": [UNKNOWN, DENIED], "b": [DENIED, UNKNOWN]}
    seconds = []
    with probes(broker, "probe") as workers:
        for topic, before in (("b", "a"), ("a", "b")) * 3:
            began = time.monotonic()
            replace(file, document_for(topic, more=1000))
            left = dict.fromkeys(workers)
            while left:
                for probe in workers:
                    codes = probe.codes("a", "b")
                    if codes == whole[topic]:
                        left.pop(probe, None)
                    else:
                        assert codes == whole[before] and probe in left, codes
                assert time.monotonic() - began < PATIENCE_S
            seconds.append(time.monotonic() - began)
        # The bound is a second; what a busy machine adds is not looked at in each.
        assert statistics.median_low(seconds) < 1.0, seconds
        admin = admin_of(broker)
        given = binding("b", AclOperation.DESCRIBE, principal="User:probe")
        for _ in range(3):
            create(admin, given)
            assert [probe.codes("a", "b") for probe in workers] == [[UNKNOWN, UNKNOWN]] * 8
            delete(admin, given)
            assert [probe.codes("a", "b") for probe in workers] == [whole["a"]] * 8
    assert len(set(re.findall(r"^kafscale_acl_generation\{.*\} (\S+)", broker.http_body("/metrics"), re.M))) == 1
    assert broker.stop() == 0


# What is broken


def test_a_broken_document_denies_shows_and_is_mended(make_broker: MakeBroker, tmp_path: Path) -> None:
    """At the start nobody may anything: /readyz and a gauge say so. Once mended it counts; broken again, the last good
    one stays, which another gauge says; SIGHUP reads what seems unchanged."""
    file = tmp_path / "acl.json"
    file.write_text('{"principals": [')
    broker = make_broker(start=False, environment={"KAFSCALE_ACL_ENABLED": "true", "KAFSCALE_ACL_FILE": str(file)})
    broker.start(wait=False)
    wait_for(lambda: broker.http_status("/readyz") == 503 and broker.info(), PATIENCE_S, "started, and not ready")
    wait_for(lambda: metric(broker, "kafscale_acl_generation") == 1, PATIENCE_S, "the worker serves")
    assert metric(broker, "kafscale_acl_deny_all") == 1
    with Probe(broker.port, "probe") as probe:
        assert probe.codes("a", "b") == [DENIED, DENIED]
        replace(file, document_for("a"))
        wait_for(lambda: probe.codes("a", "b") == [UNKNOWN, DENIED], PATIENCE_S, "mended")
        assert broker.http_status("/readyz") == 200
        assert metric(broker, "kafscale_acl_deny_all") == metric(broker, "kafscale_acl_document_problem") == 0
        replace(file, "null and void")
        wait_for(lambda: metric(broker, "kafscale_acl_document_problem") == 1, PATIENCE_S, "an alarm")
        assert probe.codes("a", "b") == [UNKNOWN, DENIED]
        assert broker.http_status("/readyz") == 200
        was = file.stat()
        file.write_text(document_for("b").ljust(was.st_size))
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        broker.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        wait_for(lambda: probe.codes("a", "b") == [DENIED, UNKNOWN], PATIENCE_S, "reloaded")
    log = broker.log()
    assert "nothing is allowed" in log and "the one before stays in force" in log


def test_failing_open_is_asked_for_and_told(make_broker: MakeBroker) -> None:
    """With acl_fail_open and a document that can't be read everything is allowed; a gauge and the log say so."""
    environment = {"KAFSCALE_ACL_ENABLED": "1", "KAFSCALE_ACL_FAIL_OPEN": "1", "KAFSCALE_ACL_JSON": "{"}
    broker = make_broker(environment=environment)
    assert metric(broker, "kafscale_acl_failed_open") == 1 and metric(broker, "kafscale_acl_deny_all") == 0
    with Probe(broker.port, "anybody") as probe:
        assert probe.codes("a") == [UNKNOWN]
    assert "has no say, since acl_fail_open is set" in broker.log()


# Who asks


def test_clients_are_known_by_their_address(make_broker: MakeBroker) -> None:
    """principal_source remote_addr: what a client calls itself counts for nothing."""
    allowed = [{"action": "*", "resource": "*", "name": "*"}]
    text = json.dumps({"principals": [{"name": "127.0.0.1", "allow": allowed}]})
    environment = {
        "KAFSCALE_ACL_ENABLED": "true",
        "KAFSCALE_ACL_JSON": text,
        "KAFSCALE_PRINCIPAL_SOURCE": "remote_addr",
    }
    broker = make_broker(environment=environment)
    for host, client_id, code in (
        ("127.0.0.1", "anybody", UNKNOWN),
        ("127.0.0.2", "127.0.0.1", DENIED),
        ("127.0.0.2", "anybody", DENIED),
    ):
        with Probe(broker.port, client_id, host) as probe:
            assert probe.codes("a") == [code], (host, client_id)


def test_behind_one_address_the_owner_goes_by_who_the_client_is(make_broker: MakeBroker, topic: str) -> None:
    """Principal and address, wherever the partition is: some are passed on from whichever worker the client got."""
    broker = make_broker(workers=3, environment=ON | {"KAFSCALE_SHARED_ADDRESS": "true"})
    admin = admin_of(broker)
    for name in (topic, f"other-{topic}"):
        make_topic(admin, name, 12)
    create(
        admin,
        binding(topic, AclOperation.WRITE),
        binding(topic, AclOperation.READ, host="127.0.0.1"),
        binding(topic, AclOperation.ALL, principal="User:bob", host="127.0.0.9"),
        binding("unused", AclOperation.READ, kind=ResourceType.GROUP),
    )
    records = [{"value": b"x", "partition": number % 12} for number in range(48)]
    clients.produce(broker.bootstrap, topic, records, client_id="alice")
    for name, client_id in ((f"other-{topic}", "alice"), (topic, "bob")):
        with pytest.raises(KafkaException) as refused:
            clients.produce(broker.bootstrap, name, records, client_id=client_id)
        assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    reader = clients.consumer(broker.bootstrap, "unused", client_id="alice")
    reader.assign([TopicPartition(topic, partition, 0) for partition in range(12)])
    try:
        assert len(clients.poll_records(reader, 48)) == 48
    finally:
        reader.close()
    assert metric(broker, "kafscale_passed_requests_total") + metric(broker, "kafscale_passed_parts_total") > 0


# Asking beforehand


def check(*words: str, password: str = "", **environ: str) -> tuple[int, str, str]:
    """`kafscale acl check`: exit code, output, complaints. In this process: others would mostly import."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(sys, "stdin", io.StringIO(password))
        code = cli.run(["acl", "check", *words], environ)
    return code, out.getvalue(), errors.getvalue()


def test_acl_check_says_what_the_running_broker_decides(guarded: Broker, admin: AdminClient, topic: str) -> None:
    """With --bootstrap and the broker's settings: 0 and 1 as the broker, 2 where it doesn't tell; the rule is named."""
    create(admin, binding(topic, AclOperation.READ, host="127.0.0.1"))
    asked = ["--principal=alice", "--action=Read", "--resource=topic", f"--name={topic}"]
    to_broker = [f"--bootstrap={guarded.bootstrap}", "--client-id=admin"]
    code, out, _ = check(*asked, *to_broker, "--host=127.0.0.1", **ON)
    assert code == 0 and f"ALLOW READ on TOPIC:LITERAL:{topic} to User:alice from host 127.0.0.1" in out
    code, out, _ = check(*asked, *to_broker, "--host=127.0.0.2", **ON)
    assert code == 1 and "no ACL allows it" in out
    code, out, errors = check(*asked, f"--bootstrap={guarded.bootstrap}", "--client-id=mallory", **ON)
    assert (code, out) == (2, "") and "CLUSTER_AUTHORIZATION_FAILED" in errors
    for host, told in (("127.0.0.1", UNKNOWN), ("127.0.0.2", DENIED)):
        with Probe(guarded.port, "alice", host) as probe:
            assert probe.codes(topic) == [told]


def test_acl_check_logs_in_where_the_broker_wants_it(make_broker: MakeBroker, tmp_path: Path) -> None:
    """By SCRAM, by PLAIN within TLS, by a certificate; not with a wrong password, a broker of another CA, nothing."""
    more = {name.removeprefix("KAFSCALE_"): text for name, text in ON.items()}
    secure = SecureBroker(make_broker, tmp_path, 1, **more | {"SUPER_USERS": f"User:{USER}"})
    asked = ["--principal=bob", "--action=Read", "--resource=topic", "--name=t"]
    create(AdminClient(secure.confluent("sasl", "SCRAM-SHA-256")), binding("t", AclOperation.READ, "User:bob"))
    authority, other = str(tmp_path / "ca.pem"), str(tmp_path / "other.pem")
    secure.write("other.pem", secure.other_authority.pem)
    certificate = [f"--cert-file={tmp_path / 'client.pem'}", f"--key-file={tmp_path / 'client.key'}"]
    for listener, flags, password, complaint in (
        ("sasl", [f"--user={USER}"], PASSWORD, ""),
        ("sasl_tls", [f"--ca-file={authority}", f"--user={USER}", "--mechanism=PLAIN"], PASSWORD, ""),
        ("mutual", [f"--ca-file={authority}", *certificate], "", ""),
        ("sasl", [f"--user={USER}"], "wrong", "Authentication failed"),
        ("sasl", [f"--user={USER}", "--mechanism=PLAIN"], PASSWORD, "in clear"),
        ("sasl", [], "", "it closed the connection"),
        ("sasl_tls", [f"--ca-file={other}", f"--user={USER}"], PASSWORD, "CERTIFICATE_VERIFY_FAILED"),
    ):
        flags = [f"--bootstrap={secure.bootstrap(listener)}", *flags]
        code, out, errors = check(*asked, *flags, password=password + "\n", **ON)
        assert (code, complaint in errors) == (2 if complaint else 0, True), (listener, flags, out, errors)
