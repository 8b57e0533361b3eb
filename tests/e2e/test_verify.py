"""`kafscale verify` on what a real broker left, and on what a running one is writing.

It finds what was done to a bucket, says which offsets that takes along, and finds nothing where nothing was done.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from crc32c import crc32c

from kafscale.storage.log_objects import Kind, Seal, encode_header, encode_small, join
from loadtest.broker_process import wait_for
from supervisor import cli
from tests.e2e.broker import Broker
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import MakeBroker
from tests.e2e.load import IdempotentLoad

SMALL, BIG = "small.records", "big-records"
SETTINGS = {
    "KAFSCALE_CHECKPOINT_INTERVAL_MS": "300",
    "KAFSCALE_SLOTS": "8",
    "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFSCALE_OFFSETS_TOPIC_PARTITIONS": "4",
}
# Of an index, and of a segment.
INTERVAL_AT = range(10, 14)
CREATED_AT = range(20, 28)
# Of a log object's header: the kind of those with records.
DATA = b"\0\1"


def verify(data: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, findings, progress."""
    out, progress = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(progress):
        code = cli.run(["verify", "--json", "--data-dir", str(data), *arguments], {})
    return code, [json.loads(line) for line in out.getvalue().splitlines()], progress.getvalue()


def findings(data: Path, *arguments: str) -> list[dict[str, Any]]:
    """Everything but leftovers; the exit code must say whether there is anything."""
    code, found, _ = verify(data, *arguments)
    bad = [entry for entry in found if entry["wrong"] != "leftover"]
    assert code == (1 if bad else 0), (code, bad)
    return bad


def produce(broker: Broker, rounds: int) -> None:
    """Small records, flush by flush, so that there is something to compact; and large ones, which get segments."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "enable.idempotence": True})
    for number in range(rounds):
        for partition in range(4):
            producer.produce(SMALL, b"%d" % number * 20, partition=partition)
        producer.produce(BIG, bytes([number % 256]) * 12_000, partition=number % 2)
        producer.flush()


def commit(broker: Broker, partitions: int) -> None:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "g"})
    consumer.commit(offsets=[TopicPartition(SMALL, number, 7) for number in range(partitions)], asynchronous=False)
    consumer.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_module_broker: MakeBroker) -> Path:
    """The data of a broker that was killed twice and then stopped, with every kind of object in it."""
    root = tmp_path_factory.mktemp("verify") / "data"
    broker = make_module_broker(workers=2, data_dir=root, environment=SETTINGS)
    create_topic(broker.bootstrap, SMALL, 4)
    create_topic(broker.bootstrap, BIG, 2)
    produce(broker, 400)
    commit(broker, 3)
    # What no checkpoint names yet is a leftover after the kill.
    wait_for(lambda: len(named(root, "pack/*/*")) > 1 and named(root, "topics/**/*.kfs"), 60, "compacted", pause_s=0.2)
    broker.kill_everything()
    broker.restart()
    produce(broker, 50)
    commit(broker, 4)
    broker.kill_everything()
    broker.restart()
    assert broker.stop() == 0
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to be damaged."""
    copy = tmp_path / "data"
    shutil.copytree(made, copy)
    yield copy
    shutil.rmtree(copy)


def objects_of(data: Path, pattern: str) -> list[Path]:
    return sorted((data / "objects" / "kafscale").glob(pattern))


def named(data: Path, pattern: str) -> list[Path]:
    """The objects of a kind that something refers to; of logs those with records."""
    _, found, _ = verify(data, "--quick")
    unnamed = {entry["key"] for entry in found}
    kept = [path for path in objects_of(data, pattern) if key_of(data, path) not in unnamed]
    return [path for path in kept if path.parent.parent.name != "log" or path.read_bytes()[6:8] == DATA]


def key_of(data: Path, path: Path) -> str:
    return str(path.relative_to(data / "objects"))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def offsets(finding: dict[str, Any], topic: str) -> list[tuple[int, int, int]]:
    return [(e["partition"], e["first"], e["last"]) for e in finding["affected"] if e["topic"] == topic]


def test_nothing_is_found_where_nothing_was_done(made: Path) -> None:
    """Goal: after a kill, a restart and a drain all is accounted for, deep and quick, and nothing is changed by
    looking; what is left over is told apart, and counts only if asked."""
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    assert findings(made) == [] and findings(made, "--quick") == []
    code, found, progress = verify(made, "--strict")
    assert code == 1 and {entry["wrong"] for entry in found} == {"leftover"}
    assert "listed" in progress
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == before


def test_recover_shows_records_and_commits(made: Path) -> None:
    """Goal: what a start would bring up: records of each topic, and the group's commits, be they in a manifest or in
    records that came after it."""
    out, progress = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(progress):
        assert cli.run(["recover", "--data-dir", str(made)], {}) == 0
    assert "  g  offsets committed for 4 partitions of 1 topics" in out.getvalue()
    assert f"  {SMALL}  partitions 4  records 1,800" in out.getvalue()
    assert f"  {BIG}  partitions 2  records 450" in out.getvalue()
    assert "logs" in progress.getvalue()


@pytest.mark.parametrize("pattern", ["log/*/*", "pack/*/*", "topics/**/*.kfs", "topics/**/*.index", "manifest/*/*"])
def test_what_was_deleted_is_missing(data: Path, pattern: str) -> None:
    """Goal: an object that something refers to is missed, quickly and deeply, with the offsets that are gone."""
    victim = random.Random(pattern).choice(named(data, pattern))
    victim.unlink()
    for arguments in ((), ("--quick",)):
        found = [entry for entry in findings(data, *arguments) if entry["key"] == key_of(data, victim)]
        assert found and {entry["wrong"] for entry in found} == {"missing"}
        if not pattern.endswith((".index", "log/*/*")):
            assert any(entry["affected"] for entry in found)


@pytest.mark.parametrize("pattern", ["log/*/*", "pack/*/*", "topics/**/*.kfs", "topics/**/*.index"])
def test_a_flipped_bit_is_corrupt(data: Path, pattern: str) -> None:
    """Goal: one wrong bit in an object that something refers to is found, be it in one of them or in each of them at
    once. Every object gets its share; that every byte of an object counts is for the tests of `verification.py`."""
    source = random.Random(pattern)
    candidates = named(data, pattern)
    for victims in ([source.choice(candidates)], candidates, candidates, candidates):
        flips = [(victim, _position(source, victim)) for victim in victims]
        for victim, position in flips:
            flip(victim, position)
        found = {entry["key"] for entry in findings(data) if entry["wrong"] in ("corrupt", "misplaced")}
        unseen = [f"byte {position} of {victim}" for victim, position in flips if key_of(data, victim) not in found]
        assert not unseen
        for victim, position in flips:
            flip(victim, position)


def _position(source: random.Random, path: Path) -> int:
    """Anywhere but in the two fields that nothing vouches for and nobody goes by."""
    unprotected = {".index": INTERVAL_AT, ".kfs": CREATED_AT}.get(path.suffix, range(0))
    return source.choice([at for at in range(path.stat().st_size) if at not in unprotected])


def test_damage_names_the_offsets_of_the_batch(data: Path) -> None:
    """Goal: a bad record in the middle of a segment costs the offsets of its batch, and no others are named."""
    victim = named(data, "topics/**/*.kfs")[0]
    content = victim.read_bytes()
    first = int.from_bytes(content[32:40], "big")
    length = 12 + int.from_bytes(content[40:44], "big")
    second = 32 + length
    flip(victim, second + 100)
    found = [entry for entry in findings(data) if entry["affected"]]
    partition = int(victim.parent.name)
    assert [offsets(entry, BIG) for entry in found] == [[(partition, first + 1, first + 1)]]


def test_strangers_are_told_apart(data: Path) -> None:
    """Goal: an object under a key that nobody writes, one under another's key, and a sound one that nothing names."""
    objects = data / "objects" / "kafscale"
    pack, segment = named(data, "pack/*/*")[0], named(data, "topics/**/*.kfs")[0]
    stray = objects / "log" / "README"
    stray.write_bytes(b"hello")
    moved = pack.with_name(f"{99:020d}")
    shutil.copy(pack, moved)
    orphan = segment.with_name(segment.name.replace(".kfs", "7.kfs"))
    shutil.copy(segment, orphan)
    nobody = objects / "pack" / ("f" * 32) / f"{1:020d}"
    nobody.parent.mkdir()
    shutil.copy(pack, nobody)
    later = time.time() + 3600
    for path in (moved, orphan):
        os.utime(path, (later, later))
    code, found, _ = verify(data)
    wrong = {entry["key"]: entry["wrong"] for entry in found}
    assert code == 1
    assert wrong[key_of(data, stray)] == "misplaced"
    assert wrong[key_of(data, moved)] == wrong[key_of(data, orphan)] == "unreferenced"
    assert key_of(data, nobody) in wrong


def test_a_seal_that_came_late_is_no_end(data: Path) -> None:
    """Goal: a sealer that slept may come to a number that the owner had deleted long since: what the owner wrote after
    that is not taken for written after the end."""
    sealed = 0
    for folder in objects_of(data, "log/*"):
        highest = max(int(path.name) for path in folder.iterdir())
        late = folder / f"{0:020d}"
        if late.exists() or highest < 20:
            continue
        header = encode_header(Kind.SEAL, folder.name, 0, 0, -1)
        late.write_bytes(join(encode_small(header, Seal("late", "it slept"))))
        os.utime(late, (time.time() - 3600, time.time() - 3600))
        sealed += 1
    assert sealed
    assert findings(data) == []


def test_swapped_objects_are_out_of_place(data: Path) -> None:
    """Goal: whole and sound, but under the key of another."""
    logs, packs = named(data, "log/*/*"), named(data, "pack/*/*")
    # Of packs there may be one by then, made of all the others.
    swapped = [kind[-2:] for kind in (logs, packs) if kind is logs or len(kind) > 1]
    for one, other in swapped:
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    wrong = {(entry["key"], entry["wrong"]) for entry in findings(data)}
    assert {(key_of(data, path), "misplaced") for pair in swapped for path in pair} <= wrong


def test_decisions_are_checked(data: Path) -> None:
    """Goal: a version of the cluster log that is gone or damaged is found, be it old and needed by no start."""
    versions = objects_of(data, "cluster/*")
    flip(versions[0], 40)
    (pids,) = objects_of(data, "pids/*")[:1]
    pids.write_bytes(b"?")
    wrong = {entry["key"]: entry["wrong"] for entry in findings(data)}
    assert wrong[key_of(data, versions[0])] == wrong[key_of(data, pids)] == "corrupt"
    versions[1].unlink()
    assert findings(data)[0] == findings(data, "--quick")[0]
    assert findings(data)[0]["wrong"] == "missing"
    flip(versions[-1], 60)
    assert any("nothing that rests on them" in entry["problem"] for entry in findings(data))


def test_what_is_written_down_of_an_ended_log_is_held_against_it(data: Path) -> None:
    """Goal: a summary that is damaged, or whole and wrong (it leaves the last object out), is found."""
    summaries = {path: path.read_bytes() for path in objects_of(data, "ended/*/*")}
    assert summaries and findings(data) == []
    for victim, body in summaries.items():
        log_id, end, covered, checkpoint, tables = msgspec.msgpack.decode(body[12:])
        if checkpoint < end - 1:
            payload = msgspec.msgpack.encode([log_id, end - 1, covered, checkpoint, tables[:-1]])
            victim.write_bytes(body[:8] + crc32c(payload).to_bytes(4, "big") + payload)
            break
    else:
        raise AssertionError("every log ended with a checkpoint")
    (found,) = findings(data)
    assert found["wrong"] == "corrupt" and f"says that the log ended at {end - 1}" in found["problem"]
    victim.write_bytes(body)
    flip(victim, 40)
    (found,) = findings(data)
    assert found["wrong"] == "corrupt" and found["key"] == key_of(data, victim)


def test_a_running_broker_is_no_finding(make_broker: MakeBroker, topic: str, tmp_path: Path) -> None:
    """Goal: while a broker flushes, checkpoints, compacts and deletes under load, and while a worker is replaced,
    nothing of what it is about to name or has just given up is reported."""
    broker = make_broker(workers=2, data_dir=tmp_path / "live", environment=SETTINGS)
    create_topic(broker.bootstrap, topic, 8)
    with IdempotentLoad(broker.bootstrap, topic, 8) as load:
        load.wait_progress()
        for number in range(6):
            assert findings(broker.data_dir) == []
            if number == 2:
                pid = broker.kill_worker(0)
                assert findings(broker.data_dir) == []
                broker.wait_worker_replaced(0, pid)
            load.wait_progress(200)
        load.finish()


def test_without_a_cluster_there_is_nothing_to_verify(tmp_path: Path) -> None:
    """Goal: a folder that is not there, or holds no cluster, is an error in one line."""
    for place in (tmp_path / "none", tmp_path):
        code, found, error = verify(place)
        assert code == 1 and found == [] and error.startswith("kafscale: ") and error.count("\n") == 1
