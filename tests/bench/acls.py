"""What ACLs cost: decisions, compiling, changes coming into force, memory, and throughput beside a broker without them.

Run: python -m tests.bench.acls [--seconds 6] [--write]; `make bench-security` writes its part of
docs/bench-security.md. Client and broker share the machine: of rates, look at the ratio of CPU. The two brokers are
measured in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import socket
import statistics
import struct
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kafscale.protocol.acls import AclBinding
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.messages.create_acls import AclCreation, CreateAclsRequest
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.security import needs
from kafscale.security.access import SnapshotAccess
from kafscale.security.acl_rules import RuleSet
from kafscale.security.kafscale_document import parse_document
from kafscale.security.sealed_memory import open_sealed, seal
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from loadtest import full_speed_producer, small_requests
from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.measure import GB
from loadtest.target import Target, from_broker_json
from tests.bench.security_page import Rows, SecurityPage

HOST = "10.0.0.1"
SIZES = (1_000, 100_000, 1_000_000)
RULES = 100_000
ROUNDS = 4

# Rules


def bindings_of(count: int, principals: int, prefixes: float, seed: int = 5) -> list[AclBinding]:
    """So many rules, some of them prefixes, some denies, over so many principals."""
    source = random.Random(seed)
    found = []
    for number in range(count):
        principal = f"User:service-{source.randrange(principals)}"
        name = f"team-{source.randrange(max(1, count // 20))}.orders.{number}"
        is_prefix = source.random() < prefixes
        found.append(
            AclBinding(
                source.choice((2, 2, 2, 3)),
                4 if is_prefix else 3,
                name[: source.randrange(6, len(name))] if is_prefix else name,
                principal,
                "*",
                source.choice((2, 3, 4, 8)),
                3 if source.random() < 0.9 else 2,
            )
        )
    return found


def document_of(principals: int, rules_each: int, *, version: int = 0, sees: str = "v0") -> str:
    """A document of so many rules, in which the load's clients may do everything, and the client `probe` may see the
    topic `sees`."""

    def rule(name: str, is_prefix: bool) -> dict[str, str]:
        return {"action": "fetch", "resource": "topic", "name": f"{name}-*" if is_prefix else name}

    entries: list[dict[str, Any]] = [
        {
            "name": f"service-{number}",
            "allow": [rule(f"team-{number}-{n}-{version}", n % 3 > 0) for n in range(rules_each)],
        }
        for number in range(principals)
    ]
    entries += [{"name": name, "allow": [{}]} for name in LOAD_CLIENTS]
    entries.append({"name": "probe", "allow": [rule(sees, False)]})
    return json.dumps({"default_policy": "deny", "principals": entries})


# The names that the load scripts give themselves.
LOAD_CLIENTS = ("anonymous", "loadtest", "test", "rdkafka")


# Decisions


def microseconds(call: Callable[[], object], count: int) -> float:
    """CPU time, the best of several rounds, less the loop's own."""
    gc.disable()
    try:
        whole, idle = (
            min(timeit.repeat(each, timer=time.process_time, number=count, repeat=5)) for each in (call, _pass)
        )
    finally:
        gc.enable()
    return (whole - idle) / (count * 1e-6)


def _pass() -> None:
    return


def decisions() -> Rows:
    """First and repeated decisions, over rule sets of three sizes and two shapes."""
    rows = []
    for shape, spread in (("20 rules a principal", 20), ("all rules one principal's", None)):
        for size in SIZES:
            bindings = bindings_of(size, 1 if spread is None else size // spread, prefixes=0.3)
            snapshot = open_sealed(seal(compile_snapshot(RuleSet(bindings=bindings), 1)))
            source = random.Random(9)
            asked = [
                (binding.principal, binding.name + source.choice(("", ".x", "7")))
                for binding in source.sample(bindings, min(size, 2000))
            ]
            del bindings
            cold = first = float("inf")
            for _ in range(5):
                began = time.process_time()
                for principal, name in asked:
                    SnapshotAccess(snapshot, principal, HOST).allows(needs.READ_TOPIC, name)
                cold = min(cold, (time.process_time() - began) / len(asked))
                accesses = [SnapshotAccess(snapshot, principal, HOST) for principal, _ in asked]
                began = time.process_time()
                for access, (_, name) in zip(accesses, asked, strict=True):
                    access.allows(needs.READ_TOPIC, name)
                first = min(first, (time.process_time() - began) / len(asked))
            access, (_, name) = accesses[0], asked[0]
            rows.append(
                {
                    "rules": size,
                    "shape": shape,
                    "µs, a new client's first": cold * 1e6,
                    "µs, a known client's first of a name": first * 1e6,
                    "µs, asked before": microseconds(lambda a=access, n=name: a.allows(needs.READ_TOPIC, n), 100_000),  # type: ignore[misc]
                    "snapshot MB": snapshot.size_bytes / 1e6,
                }
            )
    return rows


def compiling() -> Rows:
    """CPU seconds to compile 100,000 rules of either kind, as the supervisor does it."""
    rows = []
    cases: list[tuple[str, Callable[[], RuleSet]]] = [
        ("Kafka's, one in five a prefix", lambda: RuleSet(bindings=bindings_of(RULES, RULES // 20, 0.2))),
        ("Kafka's, all prefixes", lambda: RuleSet(bindings=bindings_of(RULES, RULES // 20, 1.0))),
        ("KafScale's document", lambda: RuleSet(document=parse_document(document_of(RULES // 10, 10)))),
    ]
    for what, make in cases:
        rules = make()
        gc.disable()
        seconds = min(_cpu_seconds(lambda rules=rules: compile_snapshot(rules, 1)) for _ in range(3))  # type: ignore[misc]
        reading = None
        if rules.document is not None:
            text = document_of(RULES // 10, 10).encode()
            reading = min(_cpu_seconds(lambda text=text: parse_document(text)) for _ in range(3))  # type: ignore[misc]
        gc.enable()
        snapshot = Snapshot(compile_snapshot(rules, 1))
        rows.append(
            {
                "rules": what,
                "count": rules.rule_count,
                "CPU-s to compile": seconds,
                "CPU-s to read": reading if reading is not None else "-",
                "bytes a rule": snapshot.size_bytes / rules.rule_count,
            }
        )
    return rows


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


# A broker


@contextlib.contextmanager
def broker(document: str | None, workers: int = 1, **environment: str) -> Iterator[tuple[BrokerProcess, Path]]:
    """A broker of its own; `document` None: without ACLs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "acl.json"
        settings = dict(environment)
        if document is not None:
            file.write_text(document)
            settings |= {"KAFSCALE_ACL_ENABLED": "true", "KAFSCALE_ACL_FILE": str(file)}
        with BrokerProcess(workers=workers, environment=settings) as process:
            yield process, file


def _sees(connection: socket.socket, topic: str) -> bool:
    """Whether the client `probe` is told that a topic does not exist, rather than that he may not see it."""
    request = MetadataRequest(topics=[MetadataRequestTopic(name=topic)], allow_auto_topic_creation=False)
    answer = exchange(connection, ApiKey.METADATA, 9, request, client_id="probe")
    return bool(answer.topics[0].error_code == 3)


def in_force(workers: int = 2) -> Rows:
    """From the moment a changed document of 100,000 rules is in its place until every worker goes by it; and from
    CreateAcls to its answer, with as many ACLs in the catalogue."""
    rows = []
    with broker(document_of(RULES // 10, 10), workers) as (process, file):
        seconds = []
        ports = [worker["port"] for worker in process.info()["workers"]]
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for port in ports]
            for number in range(1, 8):
                other = file.with_suffix(".new")
                other.write_text(document_of(RULES // 10, 10, version=number, sees=f"v{number}"))
                assert not any(_sees(probe, f"v{number}") for probe in probes)
                began = time.monotonic()
                other.rename(file)
                wait_for(lambda: all(_sees(probe, f"v{number}") for probe in probes), 30, "in force", 0.005)  # noqa: B023
                seconds.append(time.monotonic() - began)
                assert not any(_sees(probe, f"v{number - 1}") for probe in probes)
        rows.append(
            {
                "what": "a document of 100,000 rules is replaced",
                "seconds, median": statistics.median(seconds),
                "seconds, longest": max(seconds),
            }
        )
    with broker(None, workers, **_KAFKA) as (process, _):
        seconds = []
        for first in range(0, RULES, 10_000):
            creations = [_creation(number) for number in range(first, first + 10_000)]
            began = time.monotonic()
            _create(process.port, creations)
            seconds.append(time.monotonic() - began)
        few = []
        for number in range(5):
            began = time.monotonic()
            _create(process.port, [_creation(RULES + number)])
            few.append(time.monotonic() - began)
        rows.append(
            {
                "what": "CreateAcls of one, beside 100,000, until it is answered (and in force)",
                "seconds, median": statistics.median(few),
                "seconds, longest": max(few),
            }
        )
        rows.append(
            {
                "what": "CreateAcls of 10,000, up to 100,000",
                "seconds, median": statistics.median(seconds),
                "seconds, longest": max(seconds),
            }
        )
    return rows


_KAFKA = {
    "KAFSCALE_ACL_ENABLED": "true",
    "KAFSCALE_SUPER_USERS": ";".join(f"User:{name}" for name in ("ANONYMOUS", *LOAD_CLIENTS)),
}


def _creation(number: int) -> AclCreation:
    return AclCreation(
        resource_type=2,
        resource_name=f"team-{number // 20}.orders.{number}",
        resource_pattern_type=4 if number % 5 == 0 else 3,
        principal=f"User:service-{number // 20}",
        host="*",
        operation=3,
        permission_type=3,
    )


def _create(port: int, creations: list[AclCreation]) -> None:
    answer = _call(port, ApiKey.CREATE_ACLS, 3, CreateAclsRequest(creations=creations))
    assert {result.error_code for result in answer.results} == {0}


def _call(port: int, key: ApiKey, version: int, message: Any) -> Any:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        return exchange(connection, key, version, message)


def exchange(connection: socket.socket, key: ApiKey, version: int, message: Any, client_id: str = "loadtest") -> Any:
    """One request and its answer over an open socket."""
    connection.sendall(b"".join(encode_request(APIS[key], version, 1, client_id, message)))
    data = bytearray()
    while len(data) < 4 or len(data) < 4 + struct.unpack_from(">i", data)[0]:
        some = connection.recv(1 << 20)
        assert some, "the broker closed the connection"
        data += some
    return decode_response(APIS[key], version, bytes(data), 4, len(data))[1]


def memory(workers: int = 2) -> Rows:
    """What a snapshot of 100,000 rules costs each process: its pages are shared, and nobody's own."""
    rows = []
    with broker(document_of(RULES // 10, 10), workers) as (process, _):
        _call(process.port, ApiKey.METADATA, 9, MetadataRequest(topics=None))
        for pid in process.worker_pids():
            found: dict[str, float] = {}
            is_ours = False
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if "-" in line.split(" ", 1)[0] and not line.startswith(("VmFlags", "Rss", "Pss")):
                    is_ours = "kafscale-acls" in line
                elif is_ours and (field := line.split(":")[0]) in ("Size", "Rss", "Pss", "Private_Dirty"):
                    found[field] = found.get(field, 0.0) + float(line.split()[1]) / 1000
            rows.append({"process": str(pid), **{f"{field} MB": found[field] for field in found}})
    return rows


def metadata(topics: int = 500, acls: int = 7000) -> Rows:
    """Metadata of all topics for a principal who may see some of them, asked for the first time after a change."""
    rows = []
    bindings = [
        AclBinding(2, 4 if n % 2 else 3, f"topic-{n % topics}", f"User:service-{n % 300}", "*", 8, 3)
        for n in range(acls)
    ]
    snapshot = Snapshot(compile_snapshot(RuleSet(bindings=bindings), 1))
    names = [f"topic-{number}" for number in range(topics)]
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        access = SnapshotAccess(snapshot, "User:service-7", HOST)
        shown = [name for name in names if access.shows(needs.DESCRIBE_TOPIC, name)]
        best = min(best, time.perf_counter() - began)
    assert shown
    rows.append({"what": f"which of {topics} topics are shown, {acls} ACLs", "ms": best * 1e3})
    rows.append({"what": "a whole Metadata request, no ACLs", "ms": _whole_metadata(names, 0)})
    rows.append({"what": f"the same, {acls} ACLs", "ms": _whole_metadata(names, acls)})
    return rows


def _whole_metadata(names: list[str], acls: int) -> float:
    """Median milliseconds of a request for all topics, before which all that was remembered is forgotten."""
    with (
        broker(None, **(_KAFKA if acls else {})) as (process, _),
        socket.create_connection(("127.0.0.1", process.port), 60) as connection,
    ):
        if acls:
            _create(process.port, [_describe(number, f"topic-{number % len(names)}") for number in range(acls)])
        creations = [CreatableTopic(name=name, num_partitions=1, replication_factor=1) for name in names]
        exchange(connection, ApiKey.CREATE_TOPICS, 5, CreateTopicsRequest(topics=creations, timeout_ms=30_000))
        seconds = []
        for number in range(20):
            if acls:
                _create(process.port, [_describe(number, f"another-{number}")])
            # Differs from the last one, so that no answer is given again; asked by one who may not see all.
            request = MetadataRequest(topics=None, allow_auto_topic_creation=bool(number % 2))
            began = time.perf_counter()
            answer = exchange(connection, ApiKey.METADATA, 9, request, client_id="service-7" if acls else "loadtest")
            seconds.append(time.perf_counter() - began)
            assert (len(names) // 50 < len(answer.topics) < len(names)) if acls else len(answer.topics) >= len(names)
    return statistics.median(seconds) * 1e3


def _describe(number: int, topic: str) -> AclCreation:
    return AclCreation(
        resource_type=2,
        resource_name=topic,
        resource_pattern_type=4 if number % 2 else 3,
        principal=f"User:service-{number % 300}",
        host="*",
        operation=8,
        permission_type=3,
    )


def throughput(seconds: float) -> Rows:
    """Worker CPU with 100,000 rules beside none: one-record requests (the short way of repeated ones), full batches."""
    found: dict[tuple[str, str], list[float]] = {}
    with broker(None) as (off, _), broker(document_of(RULES // 10, 10)) as (on, _):
        targets = [("off", _target(off)), ("on", _target(on))]
        topics = {name: target.create_topic(8) for name, target in targets}
        for target_name, target in targets:
            full_speed_producer.run(target.bootstrap, topics[target_name], 1.0, 1_000)
        for number in range(ROUNDS):
            for name, target in targets if number % 2 else targets[::-1]:
                for row in small_requests.measure(target, seconds):
                    what = f"one-record requests, {row['in flight each']} in flight, µs of worker CPU"
                    found.setdefault((what, name), []).append(row["worker µs/request"])
                before = target.worker_cpu_seconds()
                sent = full_speed_producer.run(target.bootstrap, topics[name], seconds, 1_000)
                cpu = target.worker_cpu_seconds() - before
                found.setdefault(("1 KB records, default batches, CPU-s/GB", name), []).append(
                    cpu / (sent["bytes"] / GB)
                )
    rows = []
    for what in dict.fromkeys(key for key, _ in found):
        off_value, on_value = (statistics.median(found[what, name]) for name in ("off", "on"))
        rows.append(
            {"what": what, "ACLs off": off_value, "ACLs on": on_value, "throughput on / off": off_value / on_value}
        )
    return rows


def _target(process: BrokerProcess) -> Target:
    return from_broker_json(process.data_dir / "broker.json")


# The page


def sections(seconds: float) -> Iterator[tuple[str, str, Rows]]:
    """(title, aim, rows)"""
    yield (
        "Decisions",
        "CPU time in one process, on a snapshot in sealed memory. Aim: a decision that was asked for before in at most"
        " 0.2 µs; a first one in 15 µs at 100,000 rules, 30 µs at 1,000,000, threefold at most between 1,000 and"
        " 1,000,000.",
        decisions(),
    )
    yield "Compiling", "Aim: 100,000 rules in half a second.", compiling()
    yield (
        "Changes",
        "Two workers. Aim: in force on all of them within a second of the change.",
        in_force(),
    )
    yield "Memory", "What /proc/PID/smaps says of the snapshot's mapping. Aim: no copy in any worker.", memory()
    yield "Metadata", "Aim: 500 topics under 7,000 ACLs in at most 10 ms.", metadata()
    yield (
        "Throughput",
        f"One worker, 100,000 rules, medians of {ROUNDS} turns each. Aim: at least 0.97 of that without ACLs.",
        throughput(seconds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="how long to measure each case of throughput")
    parser.add_argument("--write", action="store_true", help="write the result to docs/bench-security.md")
    options = parser.parse_args()
    page = SecurityPage("ACLs", "bench-security")
    for title, aim, rows in sections(options.seconds):
        page.add(title, aim, rows)
    if options.write:
        page.write()


if __name__ == "__main__":
    main()
