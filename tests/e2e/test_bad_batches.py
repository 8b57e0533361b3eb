"""Bad contents of well-formed requests: batches that lie, compression bombs, invalid names, acks=0 in error.

Error codes are Kafka's: 2 CORRUPT_MESSAGE, 10 MESSAGE_TOO_LARGE, 17 INVALID_TOPIC, 87 INVALID_RECORD.
"""

from __future__ import annotations

import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from kio.index import load_request_schema

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import Broker, ExternalBroker

MIB = 1024 * 1024
CORRUPT, TOO_LARGE, INVALID_TOPIC, UNSUPPORTED_FORMAT, INVALID_RECORD = 2, 10, 17, 43, 87
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


def leader_of(broker: Broker | ExternalBroker, topic: str) -> int:
    """The port of the leader of the topic's first partition, once there is one."""

    def found() -> int:
        with wire.Connection(broker.port) as connection:
            return wire.leaders(connection, topic).get(0, 0)

    return wait_for(found, 30, f"a leader for {topic}")


@pytest.fixture
def leader(broker: Broker | ExternalBroker, topic: str) -> Iterator[wire.Connection]:
    """A connection to the leader of a fresh topic of one partition."""
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, topic) == 0
    with wire.Connection(leader_of(broker, topic)) as connection:
        yield connection


def bad_batches() -> dict[str, tuple[bytes, set[int]]]:
    """Batches that are wrong in one way each, and the errors that may be given for them."""
    good = wire.batch([b"a", b"b"])
    flipped = bytearray(good)
    flipped[-1] ^= 1
    return {
        "crc": (wire.batch(crc=1), {CORRUPT}),
        "flipped byte": (bytes(flipped), {CORRUPT}),
        "magic 3": (wire.batch(magic=3), {CORRUPT, INVALID_RECORD, UNSUPPORTED_FORMAT}),
        "magic 1": (wire.batch(magic=1), {CORRUPT, INVALID_RECORD, UNSUPPORTED_FORMAT}),
        "magic -1": (wire.batch(magic=-1), {CORRUPT, INVALID_RECORD, UNSUPPORTED_FORMAT}),
        "count too high": (wire.batch([b"a"], count=2), {CORRUPT, INVALID_RECORD}),
        "count of zero": (wire.batch([b"a"], count=0), {CORRUPT, INVALID_RECORD}),
        "count of -1": (wire.batch([b"a"], count=-1), {CORRUPT, INVALID_RECORD}),
        "last offset too high": (wire.batch([b"a"], last_offset_delta=7), {CORRUPT, INVALID_RECORD}),
        "last offset below zero": (wire.batch([b"a"], last_offset_delta=-1), {CORRUPT, INVALID_RECORD}),
        "length too long": (wire.batch(batch_length=5_000), {CORRUPT, INVALID_RECORD}),
        "length too short": (wire.batch(batch_length=20), {CORRUPT, INVALID_RECORD}),
        "length below zero": (wire.batch(batch_length=-1), {CORRUPT, INVALID_RECORD}),
        "cut short": (good[:-1], {CORRUPT, INVALID_RECORD}),
        "two batches": (good + good, {CORRUPT, INVALID_RECORD}),
        "bytes after the batch": (good + b"xyz", {CORRUPT, INVALID_RECORD}),
        "nothing": (b"", {CORRUPT, INVALID_RECORD}),
        "unknown codec": (wire.batch(attributes=7), {CORRUPT, INVALID_RECORD, 76}),
        "control batch": (wire.batch(attributes=0x20), {INVALID_RECORD}),
        "transactional control batch": (
            wire.batch(attributes=0x30, producer_id=1, producer_epoch=0),
            {INVALID_RECORD, 53},
        ),
        "transactional without an id": (wire.batch(attributes=0x10), {INVALID_RECORD, 48, 49, 53}),
        "producer without epoch": (wire.batch(producer_id=1, base_sequence=0), {INVALID_RECORD, CORRUPT, 47, 59}),
        "producer without sequence": (wire.batch(producer_id=1, producer_epoch=0), {INVALID_RECORD, CORRUPT, 45, 59}),
    }


@pytest.mark.parametrize("name", list(bad_batches()))
def test_batches_that_lie(leader: wire.Connection, topic: str, name: str) -> None:
    """A batch that is wrong is refused with Kafka's error; nothing of it can be read; the connection goes on."""
    data, expected = bad_batches()[name]
    assert int(wire.produce(leader, topic, data).error_code) in expected
    accepted = wire.produce(leader, topic, wire.batch([b"good"]))
    assert (accepted.error_code, accepted.base_offset) == (0, 0)
    assert wire.fetch_values(leader, topic) == [b"good"]


def test_one_bad_batch_among_good_ones(leader: wire.Connection, broker: Broker | ExternalBroker, topic: str) -> None:
    """In a request for two partitions the good one is taken and only the bad one refused."""
    other = f"{topic}-two"
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, other, 8) == 0
        wait_for(lambda: len(wire.leaders(connection, other)) == 8, 30, "leaders")
        led = wire.leaders(connection, other)
    port = led[0]
    good, bad = [partition for partition, leader_port in sorted(led.items()) if leader_port == port][:2]
    module = sys.modules[load_request_schema(wire.PRODUCE, 9).__module__]
    data = module.TopicProduceData(
        name=other,
        partition_data=(
            module.PartitionProduceData(index=good, records=wire.batch()),
            module.PartitionProduceData(index=bad, records=wire.batch(crc=1)),
        ),
    )
    body = wire.produce_body(other, b"") | {"topic_data": (data,)}
    with wire.Connection(port) as connection:
        answer = connection.call(wire.PRODUCE, 9, **body)
    errors = {part.index: int(part.error_code) for part in answer.responses[0].partition_responses}
    assert errors == {good: 0, bad: CORRUPT}


def gzip_bomb(size: int) -> bytes:
    """A megabyte of zeros compressed once, its deflate blocks repeated: the same as compressing it all."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\x00" + bytes(6) + block * (size // MIB) + squeeze.flush()


def zstd_bomb(size: int) -> bytes:
    """RFC 8878: a frame of blocks that say one byte 128 KiB times, four bytes each."""
    block = struct.pack("<I", (128 * 1024 << 3) | (1 << 1))[:3] + b"\x00"
    last = struct.pack("<I", (1 << 3) | (1 << 1) | 1)[:3] + b"\x00"
    return b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x38" + block * (size // (128 * 1024)) + last


def snappy_bomb(size: int) -> bytes:
    """A raw snappy block that promises `size` bytes: one literal, then copies of it, 64 bytes for three."""
    return wire.unsigned_varint(size) + b"\x00\x00" + b"\xfe\x01\x00" * 300_000


def lz4_bomb(size: int) -> bytes:
    with lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB) as squeeze:
        return squeeze.begin() + b"".join(squeeze.compress(bytes(4 * MIB)) for _ in range(size // (4 * MIB)))


BOMBS: dict[str, tuple[int, Any, int]] = {
    "gzip": (GZIP, gzip_bomb, 900 * MIB),
    "snappy": (SNAPPY, snappy_bomb, 2**31 - 1),
    "lz4": (LZ4, lz4_bomb, 240 * MIB),
    "zstd": (ZSTD, zstd_bomb, 32 * 1024 * MIB - 1024 * MIB),
}


@pytest.mark.parametrize("config", ["", "message.timestamp.type=LogAppendTime"])
@pytest.mark.parametrize("codec", list(BOMBS))
def test_compression_bombs(broker: Broker | ExternalBroker, topic: str, codec: str, config: str) -> None:
    """A megabyte that would unpack to gigabytes is refused, or kept unopened; asking for an offset by time, which opens
    records, does not unpack it either: each within a second, and without memory for it."""
    number, make, size = BOMBS[codec]
    payload = make(size)
    assert len(payload) < 1_040_000
    settings = dict([config.split("=")]) if config else {}
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, topic, **{name.replace(".", "_"): v for name, v in settings.items()}) == 0
    before = broker.resident_bytes() if isinstance(broker, Broker) else 0
    with wire.Connection(leader_of(broker, topic)) as connection:
        began = time.monotonic()
        # Later than anything else, so that the search by time has to look into it.
        bomb = wire.batch(payload=payload, attributes=number, count=1_000, last_offset_delta=999)
        code = int(wire.produce(connection, topic, bomb).error_code)
        assert code in (0, TOO_LARGE, CORRUPT, INVALID_RECORD)
        assert time.monotonic() - began < 1
        began = time.monotonic()
        offsets_by_time(connection, topic)
        assert time.monotonic() - began < 1
        assert wire.produce(connection, topic, wire.batch([b"good"])).error_code in (0, INVALID_RECORD)
    if isinstance(broker, Broker):
        assert broker.resident_bytes() - before < 64 * MIB


def offsets_by_time(connection: wire.Connection, topic: str) -> None:
    """ListOffsets v5 for a moment inside the last batch; any answer will do."""
    module = sys.modules[load_request_schema(wire.LIST_OFFSETS, 5).__module__]
    wanted = module.ListOffsetsPartition(
        partition_index=0, current_leader_epoch=-1, timestamp=int(time.time() * 1000) - 5_000
    )
    connection.call(
        wire.LIST_OFFSETS,
        5,
        replica_id=-1,
        isolation_level=0,
        topics=(module.ListOffsetsTopic(name=topic, partitions=(wanted,)),),
    )


OUTSIDE = "../../../../tmp/kafscale-x"
INVALID_NAMES = ["", ".", "..", "x" * 250, "/", "../x", OUTSIDE, "a/b", "a\x00b", "tópico", "a b", "a:b"]


@pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
def test_invalid_topic_names(broker: Broker | ExternalBroker, name: str) -> None:
    """An invalid name is refused by CreateTopics, by Metadata that may create, and by Produce; no file appears."""
    before = names_on_disk(broker)
    with wire.Connection(broker.port) as connection:
        assert wire.create_topic(connection, name) == INVALID_TOPIC
        module = sys.modules[load_request_schema(wire.METADATA, 4).__module__]
        asked = (module.MetadataRequestTopic(name=name),)
        found = connection.call(wire.METADATA, 4, topics=asked, allow_auto_topic_creation=True).topics[0]
        assert int(found.error_code) == INVALID_TOPIC
        assert int(wire.produce(connection, name, wire.batch()).error_code) in (3, INVALID_TOPIC)
    assert {path for path in names_on_disk(broker) - before if "x" * 9 in path or "kafscale-x" in path} == set()


def names_on_disk(broker: Broker | ExternalBroker) -> set[str]:
    if not isinstance(broker, Broker):
        return set()
    assert [path.name for path in broker.data_dir.parent.iterdir()] == [broker.data_dir.name]
    assert not Path("/tmp/kafscale-x").exists()
    return {str(path) for path in broker.data_dir.rglob("*")}


def test_longest_and_strangest_valid_names(broker: Broker | ExternalBroker) -> None:
    """249 characters and every character that is allowed make a topic that works."""
    for name in ("x" * 249, "A-Z_a.z-0.9_", "...", "_"):
        with wire.Connection(broker.port) as connection:
            assert wire.create_topic(connection, name) == 0
        with wire.Connection(leader_of(broker, name)) as connection:
            assert wire.produce(connection, name, wire.batch([name.encode()])).error_code == 0
            assert wire.fetch_values(connection, name) == [name.encode()]


def test_acks_0_with_an_error_closes_the_connection(leader: wire.Connection, topic: str) -> None:
    """Where no answer can say that a record was refused, the closed connection does."""
    leader.send(wire.request(wire.PRODUCE, 9, **wire.produce_body(topic, wire.batch(crc=1), acks=0)))
    assert leader.closed_by_broker()


def test_acks_0_to_a_missing_partition_closes_the_connection(leader: wire.Connection, topic: str) -> None:
    """The same for a partition that is not there."""
    leader.send(wire.request(wire.PRODUCE, 9, **wire.produce_body(topic, wire.batch(), partition=99, acks=0)))
    assert leader.closed_by_broker()


def test_acks_0_gets_no_answer(leader: wire.Connection, topic: str) -> None:
    """A good record with acks=0 is kept and not answered: the next answer is the next request's."""
    leader.send(wire.request(wire.PRODUCE, 9, 41, **wire.produce_body(topic, wire.batch([b"quiet"]), acks=0)))
    leader.send(wire.request(wire.API_VERSIONS, 0, 42))
    assert leader.response(wire.API_VERSIONS, 0, 42).error_code == 0
    assert wire.produce(leader, topic, wire.batch([b"loud"])).base_offset == 1
    assert wire.fetch_values(leader, topic) == [b"quiet", b"loud"]


@pytest.mark.parametrize("acks", [2, -2, 32_767])
def test_impossible_acks(leader: wire.Connection, topic: str, acks: int) -> None:
    """Other values of acks are refused with INVALID_REQUIRED_ACKS."""
    assert wire.produce(leader, topic, wire.batch(), acks=acks).error_code == 21
    assert wire.produce(leader, topic, wire.batch()).base_offset == 0
