"""Goal: what is produced is answered once it is durable and not before, each partition with its own offset or error, in
every version; nothing is stored twice, and what a client sent is stored as it came.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.coordination.cluster import OFFSETS_TOPIC
from kafscale.errors import StoreUnavailable
from kafscale.metrics import DUPLICATES, error_cell
from kafscale.protocol.api import APIS, ApiKey, encode_request
from kafscale.protocol.batches import build_batch, check_stored, read_header, stamp
from kafscale.protocol.compression import GZIP, LZ4, SNAPPY, ZSTD
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.lookups import batches_from
from kafscale.storage.store import Purpose
from tests.unit.protocol.batch_samples import patched
from tests.unit.storage.rig import EPOCH_MS, Put
from tests.unit.workers.whole_worker import (
    ELSEWHERE,
    EPOCH,
    Client,
    WholeWorker,
    batch_of,
    fetch_request,
    id_of,
    produce_request,
    run,
)

VERSIONS = range(3, 14)
FEWER = settings(max_examples=30)


async def started(**options: Any) -> WholeWorker:
    """A worker with topic `t` of two partitions, of which it leads the first."""
    node = await WholeWorker(**options).start()
    node.create("t", 2, 2)
    return node


async def produce(
    node: WholeWorker, version: int, *data: Any, client: Client | None = None, **options: Any
) -> list[Any]:
    """The partitions' results, flat."""
    answer = await node.call(ApiKey.PRODUCE, version, produce_request(*data, **options), client)
    return [result for topic in answer.responses for result in topic.partition_responses]


async def stored(node: WholeWorker, name: str = "t") -> list[bytes]:
    """The batches of the topic's partition 0, as the store has them."""
    partition = node.partition(name)
    for extent in partition.extents:
        extent.views = None
    return [bytes(batch) async for _, batch in batches_from(partition, node.reader, 0)]


def at(batch: bytearray, base_offset: int, epoch: int = EPOCH) -> bytes:
    """The batch as it is served: with its offset and leader epoch."""
    copy = bytearray(batch)
    stamp(copy, base_offset, epoch)
    return bytes(copy)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("acks", [-1, 1])
def test_every_version_is_answered_with_the_offset(version: int, acks: int) -> None:
    """By name, and from 13 on by id; offsets go on where the last batch ended."""

    async def main() -> None:
        node = await started()
        topic: Any = id_of(2) if version >= 13 else "t"
        first, second = batch_of(b"a", b"b"), batch_of(b"c")
        for base, batch in ((0, first), (2, second)):
            (result,) = await produce(node, version, (topic, 0, batch), acks=acks)
            assert (result.index, result.error_code, result.base_offset) == (0, 0, base)
            assert result.log_append_time_ms == -1 and result.log_start_offset == (0 if version >= 5 else -1)
        assert await stored(node) == [at(first, 0), at(second, 2)]

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_no_answer_where_none_is_asked_for(version: int) -> None:
    """acks=0: appended without an answer; the next request's answer is the first that comes."""

    async def main() -> None:
        node = await started()
        topic: Any = id_of(2) if version >= 13 else "t"
        client = node.connect()
        node.send(client, ApiKey.PRODUCE, version, produce_request((topic, 0, batch_of(b"a")), acks=0))
        (result,) = await produce(node, version, (topic, 0, batch_of(b"b")), client=client)
        assert result.base_offset == 1 and not client.has_answers
        assert len(await stored(node)) == 2

    run(main())


def test_an_error_without_an_answer_closes_the_connection() -> None:
    """acks=0 has no other way to say it; what was good is kept."""

    async def main() -> None:
        node = await started()
        client = node.connect()
        data = [("t", 0, batch_of(b"a")), ("missing", 0, batch_of(b"b"))]
        assert await node.call(ApiKey.PRODUCE, 9, produce_request(*data, acks=0), client) is None
        assert client.is_closing
        assert await node.produce("t", batch_of()) == [1]

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("acks", [2, -2, 100])
def test_acks_must_be_known(version: int, acks: int) -> None:
    async def main() -> None:
        node = await started()
        topic: Any = id_of(2) if version >= 13 else "t"
        (result,) = await produce(node, version, (topic, 0, batch_of()), acks=acks)
        assert (result.error_code, result.base_offset) == (ErrorCode.INVALID_REQUIRED_ACKS, -1)
        assert node.partition("t").next_offset == 0

    run(main())


def test_transactions_are_refused() -> None:
    async def main() -> None:
        node = await started()
        (result,) = await produce(node, 9, ("t", 0, batch_of()), transactional_id="x")
        assert result.error_code == ErrorCode.INVALID_TXN_STATE and "transactions" in result.error_message
        assert node.partition("t").next_offset == 0

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_nobody_writes_to_an_internal_topic(version: int) -> None:
    """By name or id, beside a topic that is written to, or without acks: the groups of a forged record would be
    loaded by the next owner."""

    async def main() -> None:
        node = await started()
        node.create(OFFSETS_TOPIC, 6)
        names: list[Any] = [id_of(6), id_of(2)] if version >= 13 else [OFFSETS_TOPIC, "t"]
        results = await produce(node, version, *((name, 0, batch_of()) for name in names))
        assert [result.error_code for result in results] == [ErrorCode.INVALID_TOPIC_EXCEPTION, 0]
        request = produce_request((names[0], 0, batch_of()), acks=0)
        assert await node.call(ApiKey.PRODUCE, version, request) is None
        assert (node.partition(OFFSETS_TOPIC).next_offset, node.partition("t").next_offset) == (0, 1)

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_here_says_where_it_is(version: int) -> None:
    """Unknown topics, ids and partitions; another's partition with its leader and, from 10 on, the leader's address
    (KIP-951), whether or not something else of the request was taken."""

    async def main() -> None:
        node = await started()
        topic: Any = id_of(2) if version >= 13 else "t"
        unknown: Any = id_of(4) if version >= 13 else "missing"
        for with_good in (False, True):
            data = [(unknown, 0, batch_of()), (topic, 7, batch_of()), (topic, -1, batch_of()), (topic, 1, batch_of())]
            if with_good:
                data.append((topic, 0, batch_of()))
            answer = await node.call(ApiKey.PRODUCE, version, produce_request(*data))
            results = [r for entry in answer.responses for r in entry.partition_responses]
            codes = [result.error_code for result in results]
            no_topic = ErrorCode.UNKNOWN_TOPIC_ID if version >= 13 else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            no_partition = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            assert codes[:4] == [no_topic, no_partition, no_partition, ErrorCode.NOT_LEADER_OR_FOLLOWER]
            assert codes[4:] == [0] * with_good
            leader = results[3].current_leader
            if version >= 10:
                assert (leader.leader_id, leader.leader_epoch) == (ELSEWHERE, EPOCH)
                assert [(n.node_id, n.host, n.port) for n in answer.node_endpoints] == [(ELSEWHERE, "host1", 19093)]
            else:
                assert (leader.leader_id, list(answer.node_endpoints)) == (-1, [])
            assert all(result.current_leader.leader_id == -1 for result in results[:3])

    run(main())


def test_a_partition_that_is_being_loaded_is_not_served() -> None:
    """Before the slots are loaded: not the leader yet, but the one to come to, by the epoch that metadata names."""

    async def main() -> None:
        node = WholeWorker()
        node.let_in()
        node.create("t", 2)
        (result,) = await produce(node, 10, ("t", 0, batch_of()))
        assert result.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        led = node.worker.cluster.leader(node.worker.cluster.state.topics["t"], 0)
        assert led is not None
        told = result.current_leader
        assert (told.leader_id, told.leader_epoch) == (node.worker.cluster.node_id, led.epoch)
        node.stop()

    run(main())


def test_partitions_of_a_request_stand_alone() -> None:
    """Good and bad ones of several topics in one request; one that is named twice is appended twice, in order."""

    async def main() -> None:
        node = await started()
        node.create("u", 4, 3)
        bad = patched(batch_of(), 61, "b", 9)
        bad[17] ^= 1
        data = [
            *(("t", 0, batch_of(b"a")), ("t", 0, batch_of(b"b", b"c")), ("t", 0, bad), ("u", 2, batch_of(b"d"))),
            *(("u", 0, None), ("u", 0, batch_of(b"e")), ("t", 0, batch_of(b"f"))),
        ]
        results = await produce(node, 9, *data)
        assert [(r.index, r.error_code, r.base_offset) for r in results] == [
            *((0, 0, 0), (0, 0, 1), (0, ErrorCode.CORRUPT_MESSAGE, -1), (2, 0, 0)),
            *((0, ErrorCode.INVALID_RECORD, -1), (0, 0, 0), (0, 0, 3)),
        ]
        assert [node.partition(*place).high_watermark for place in (("t", 0), ("u", 0), ("u", 2))] == [4, 1, 1]
        # All of them are one object.
        assert sum("/log/" in key for key in node.store.bodies()) == 2

    run(main())


HOUR_MS = 3_600_000
GOOD = batch_of(b"a", b"b")
WRONG_CRC = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
INVALID, CORRUPT = ErrorCode.INVALID_RECORD, ErrorCode.CORRUPT_MESSAGE
# What may not be stored, and why. The topic takes 2,000 bytes, and records of the last hour and the next.
REFUSED = {
    "wrong CRC": (WRONG_CRC, CORRUPT),
    "cut short": (GOOD[:-1], CORRUPT),
    "too short for a header": (GOOD[:60], CORRUPT),
    "nothing": (b"", INVALID),
    "two batches": (GOOD + GOOD, INVALID),
    "magic 1": (patched(GOOD, 16, "b", 1), INVALID),
    "count too large": (patched(GOOD, 57, "i", 3), INVALID),
    "count 0": (patched(GOOD, 57, "i", 0), INVALID),
    "base offset": (patched(GOOD, 0, "q", 5), INVALID),
    "control": (patched(GOOD, 21, "h", 0x20), INVALID),
    "append time": (patched(GOOD, 21, "h", 0x08), ErrorCode.INVALID_TIMESTAMP),
    "codec 7": (patched(GOOD, 21, "h", 7), ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
    "transactional without a producer": (patched(GOOD, 21, "h", 0x10), INVALID),
    "id without sequence": (batch_of(producer_id=1, producer_epoch=0), INVALID),
    "id -2": (batch_of(producer_id=-2), INVALID),
    "too large": (batch_of(b"v" * 2000), ErrorCode.MESSAGE_TOO_LARGE),
    "old": (batch_of(timestamp_ms=EPOCH_MS - 2 * HOUR_MS), ErrorCode.INVALID_TIMESTAMP),
    "from the future": (batch_of(timestamp_ms=EPOCH_MS + 2 * HOUR_MS), ErrorCode.INVALID_TIMESTAMP),
}


@pytest.mark.parametrize("version", [3, 8, 9, 13])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_with_a_batch_is_said_by_its_code(what: str, version: int) -> None:
    """Each kind of bad batch has Kafka's code and, from 8 on, a text; it leaves no trace, and is counted."""

    async def main() -> None:
        node = await started()
        node.configure("t", max_message_bytes="2000", message_timestamp_before_max_ms=str(HOUR_MS))
        topic: Any = id_of(2) if version >= 13 else "t"
        batch, code = REFUSED[what]
        (result,) = await produce(node, version, (topic, 0, batch))
        assert (result.error_code, result.base_offset) == (code, -1)
        assert bool(result.error_message) == (version >= 8)
        assert node.partition("t").next_offset == 0 and node.metrics.cells[error_cell(code)] == 1
        (result,) = await produce(node, version, (topic, 0, GOOD))
        assert (result.error_code, result.base_offset) == (0, 0)

    run(main())


def test_zstd_needs_a_version_that_knows_it() -> None:
    async def main() -> None:
        node = await started()
        batch = batch_of(b"a" * 100, codec=ZSTD)
        (result,) = await produce(node, 6, ("t", 0, batch))
        assert result.error_code == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
        (result,) = await produce(node, 7, ("t", 0, batch))
        assert result.error_code == 0

    run(main())


@FEWER
@given(
    sizes=st.lists(st.sampled_from([0, 10, 3000, 70_000]), min_size=1, max_size=6),
    codec=st.sampled_from([0, GZIP, SNAPPY, LZ4, ZSTD]),
    version=st.sampled_from([7, 8, 9, 12]),
    chunk=st.sampled_from([7919, 1 << 20]),
)
def test_batches_are_stored_as_sent(sizes: list[int], codec: int, version: int, chunk: int) -> None:
    """Byte for byte, compressed or not, small frames and large, whatever pieces they come in; but for offset and leader
    epoch, which the CRC does not cover."""

    async def main() -> None:
        node = await started()
        client = node.connect()
        batches = [batch_of(bytes(i % 251 for i in range(size)), b"w", codec=codec) for size in sizes]
        for batch in batches:
            request = encode_request(APIS[ApiKey.PRODUCE], version, 1, "c", produce_request(("t", 0, batch)))
            client.send(b"".join(request), chunk)
        for number in range(len(sizes)):
            answer = await client.answer(ApiKey.PRODUCE, version)
            assert answer.responses[0].partition_responses[0].base_offset == 2 * number
        assert await stored(node) == [at(batch, 2 * number) for number, batch in enumerate(batches)]

    run(main())


@pytest.mark.parametrize("version", [3, 9, 13])
def test_large_batches_are_received_where_a_disk_takes_them_from(version: int) -> None:
    """From a connection's second large request on, its records begin at a page of memory and at a block of the object,
    so that nothing need be copied; whatever else is sent in between."""

    async def main() -> None:
        node = await started()
        topic: Any = id_of(2) if version >= 13 else "t"
        client = node.connect()
        for _ in range(3):
            await produce(node, version, (topic, 0, batch_of(b"x" * 300_000)), client=client)
            await produce(node, version, (topic, 0, batch_of(b"small")), client=client)
        large = [extent for extent in node.partition("t").extents if extent.length > 300_000]
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer((extent.views or [])[0])) for extent in large]
        assert [address % 4096 for address in addresses[1:]] == [0, 0]
        assert [extent.position % 4096 for extent in large] == [0, 0, 0]

    run(main())


@pytest.mark.parametrize("size", [10, 100_000])
def test_log_append_time(size: int) -> None:
    """Where the topic says so, batches get the broker's time, whatever theirs was, and the answer tells it."""

    async def main() -> None:
        node = await started()
        node.configure("t", message_timestamp_type="LogAppendTime")
        await node.clock.sleep(5)
        batch = batch_of(b"v" * size, timestamp_ms=1)
        (result,) = await produce(node, 9, ("t", 0, batch))
        now_ms = result.log_append_time_ms
        assert result.error_code == 0 and EPOCH_MS + 5000 <= now_ms <= node.clock.wall_ms()
        (raw,) = await stored(node)
        header = read_header(raw)
        assert header.is_log_append_time and header.max_timestamp == now_ms and check_stored(raw) == 1
        assert raw[61:] == batch[61:] and node.partition("t").extents[0].max_timestamp == now_ms

    run(main())


def test_many_records_are_not_opened_to_find_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte may hold a million records, and the loop would be busy with them for seconds: a batch of so many has
    to say itself which is the newest."""
    monkeypatch.setattr("workers.handlers.produce.RECORDS_OPENED_MAX", 2)

    async def main() -> None:
        node = await started()
        for values, states_it, code in (
            ([b"a", b"b"], False, 0),
            ([b"a", b"b", b"c"], False, ErrorCode.MESSAGE_TOO_LARGE),
            ([b"a", b"b", b"c"], True, 0),
        ):
            batch = batch_of(*values)
            (result,) = await produce(node, 9, ("t", 0, batch if states_it else patched(batch, 35, "q", -1)))
            assert result.error_code == code and ("largest timestamp" in (result.error_message or "")) == (code != 0)

    run(main())


@pytest.mark.parametrize("newest", [-1, 5])
def test_a_batch_without_its_largest_timestamp_gets_it(newest: int) -> None:
    """sarama leaves the field out, or leaves something below the first timestamp: it is taken from the records."""

    async def main() -> None:
        node = await started()
        stamps = [EPOCH_MS, EPOCH_MS + 70, EPOCH_MS + 30]
        batch = build_batch([(None, b"v")] * 3, timestamps=stamps)
        (result,) = await produce(node, 9, ("t", 0, patched(batch, 35, "q", newest)))
        assert result.error_code == 0
        assert await stored(node) == [at(batch, 0)]

    run(main())


# Idempotence


def numbered(sequence: int, *values: bytes, epoch: int = 0, producer_id: int = 7) -> bytearray:
    return batch_of(*values, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)


@pytest.mark.parametrize("version", (9, 13))
def test_what_was_refused_comes_before_what_was_sent_behind_it(version: int) -> None:
    """A producer's first batches are on their way while the partition comes to be served. The first ones are refused;
    taken before these, the next would make them duplicates of nothing when they come again."""

    async def main() -> None:
        node = WholeWorker()
        node.let_in()
        node.create("t", 2)
        topic = "t" if version < 13 else id_of(2)
        client = node.connect()
        for number in (0, 1):
            (result,) = await produce(node, version, (topic, 0, numbered(number)), client=client)
            assert result.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        await node.start()
        (result,) = await produce(node, version, (topic, 0, numbered(2)), client=client)
        assert (result.error_code, result.base_offset) == (ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, -1)
        for number in (0, 1, 2):
            (result,) = await produce(node, version, (topic, 0, numbered(number)), client=client)
            assert (result.error_code, result.base_offset) == (0, number)
        # Another producer, and one on another connection, begin where they like.
        for others, producer_id in ((client, 8), (node.connect(), 9)):
            (result,) = await produce(node, version, (topic, 0, numbered(5, producer_id=producer_id)), client=others)
            assert result.error_code == 0
        node.stop()

    run(main())


def test_what_was_refused_here_may_have_come_again_elsewhere() -> None:
    """A partition goes to another worker and comes back: a producer whose batch was refused here meanwhile, and taken
    there, goes on after that on the same connection."""

    async def main() -> None:
        node = WholeWorker()
        node.let_in()
        node.create("t", 2)
        client, other = node.connect(), node.connect()
        (result,) = await produce(node, 9, ("t", 0, numbered(0)), client=client)
        assert result.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        await node.start()
        # What the other worker took, as this one loads it.
        for number in (0, 1):
            (result,) = await produce(node, 9, ("t", 0, numbered(number)), client=other)
            assert result.error_code == 0
        (result,) = await produce(node, 9, ("t", 0, numbered(2)), client=client)
        assert (result.error_code, result.base_offset) == (0, 2)
        (result,) = await produce(node, 9, ("t", 0, numbered(4)), client=client)
        assert result.error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        node.stop()

    run(main())


def test_a_duplicate_gets_the_offset_of_the_first() -> None:
    """Any of the last five batches; it is not stored again. Gaps, old epochs and what lies too far back are refused."""

    async def main() -> None:
        node = await started()
        for number in range(8):
            (result,) = await produce(node, 9, ("t", 0, numbered(number, b"v%d" % number)))
            assert result.base_offset == number
        for number in range(3, 8):
            (result,) = await produce(node, 9, ("t", 0, numbered(number, b"v%d" % number)))
            assert (result.error_code, result.base_offset) == (0, number)
        assert node.metrics.cells[DUPLICATES] == 5
        cases = [
            (numbered(9), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER),
            (numbered(0), ErrorCode.DUPLICATE_SEQUENCE_NUMBER),
            (numbered(7, b"a", b"b"), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER),
            (numbered(1, epoch=1), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER),
        ]
        for batch, code in cases:
            (result,) = await produce(node, 9, ("t", 0, batch))
            assert (result.error_code, result.base_offset) == (code, -1)
        (result,) = await produce(node, 9, ("t", 0, numbered(0, epoch=1)))
        assert result.base_offset == 8
        (result,) = await produce(node, 9, ("t", 0, numbered(8)))
        assert result.error_code == ErrorCode.INVALID_PRODUCER_EPOCH
        (result,) = await produce(node, 9, ("t", 0, numbered(500, producer_id=8)))
        assert result.base_offset == 9
        assert len(await stored(node)) == 10

    run(main())


def test_sequence_numbers_wrap() -> None:
    """After 2^31 - 1 comes 0, also within a batch."""

    async def main() -> None:
        node = await started()
        last = (1 << 31) - 1
        for sequence, values, base in [(last - 1, 3, 0), (1, 1, 3), (last - 1, 3, 0), (2, 1, 4)]:
            (result,) = await produce(node, 9, ("t", 0, numbered(sequence, *[b"v"] * values)))
            assert (result.error_code, result.base_offset) == (0, base)

    run(main())


def test_a_duplicate_is_answered_after_its_original_is_durable() -> None:
    """The retry of a batch that is on its way waits with it; the two answers are the same."""

    async def main() -> None:
        node = await started()
        node.store.gate.clear()
        clients = [node.connect() for _ in range(3)]
        for client in clients[:2]:
            node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, numbered(0))))
        await node.clock.sleep(0.1)
        # Behind it in another flush.
        data = [("t", 0, numbered(1)), ("t", 0, numbered(0))]
        node.send(clients[2], ApiKey.PRODUCE, 9, produce_request(*data))
        await node.clock.sleep(1)
        assert not any(client.has_answers for client in clients)
        node.store.gate.set()
        answers = [await client.answer(ApiKey.PRODUCE, 9) for client in clients]
        assert answers[0] == answers[1]
        assert [r.base_offset for r in answers[2].responses[0].partition_responses] == [1, 0]
        assert len(await stored(node)) == 2

    run(main())


# Durability


@pytest.mark.parametrize("interval_ms", [None, 250])
@pytest.mark.parametrize("acks", [-1, 1])
def test_nothing_is_answered_before_it_is_durable(acks: int, interval_ms: int | None) -> None:
    """While the store holds the object back there is no answer and no reader sees the records; then both."""

    async def main() -> None:
        node = await started(settings=Settings(cluster_namespace="ns", flush_interval_ms=interval_ms))
        client = node.connect()
        node.store.gate.clear()
        for _ in range(3):
            node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"v")), acks=acks))
            await node.clock.sleep(1)
            assert not client.has_answers
            answer = await node.call(ApiKey.FETCH, 12, fetch_request(("t", 0, 0)))
            assert answer.responses[0].partitions[0].high_watermark == 0
            assert not answer.responses[0].partitions[0].records
        node.store.gate.set()
        for base in range(3):
            answer = await client.answer(ApiKey.PRODUCE, 9)
            assert answer.responses[0].partition_responses[0].base_offset == base
            assert node.partition("t").high_watermark > base
        assert len(await stored(node)) == 3

    run(main())


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_silent_store_times_the_request_out(is_idempotent: bool) -> None:
    """After its timeout the client is told that we can't tell; what becomes durable later counts, and a retry of an
    idempotent producer is recognised."""

    async def main() -> None:
        node = await started()
        node.store.gate.clear()
        batch = numbered(0) if is_idempotent else batch_of()
        client = node.connect()
        began = node.clock.monotonic()
        data = [("t", 0, batch), ("missing", 0, GOOD)]
        node.send(client, ApiKey.PRODUCE, 9, produce_request(*data, timeout_ms=2000))
        results = (await client.answer(ApiKey.PRODUCE, 9)).responses
        assert 2.0 <= node.clock.monotonic() - began < 2.5
        assert [topic.partition_responses[0].error_code for topic in results] == [
            ErrorCode.REQUEST_TIMED_OUT,
            ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ]
        assert results[0].partition_responses[0].base_offset == -1
        node.ping()
        node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch), timeout_ms=60_000))
        await node.clock.sleep(2)
        assert not client.has_answers
        node.store.gate.set()
        retried = await client.answer(ApiKey.PRODUCE, 9)
        assert retried.responses[0].partition_responses[0].base_offset == (0 if is_idempotent else 1)
        assert len(await stored(node)) == (1 if is_idempotent else 2)

    run(main())


def test_a_store_that_fails_delays_the_answer() -> None:
    """Refusals are tried again under the same number: one object, one answer."""

    async def main() -> None:
        node = await started()
        key = node.keys.log(node.log_id, node.worker.log.next_sequence)
        node.store.puts[key] = [Put(before=StoreUnavailable("no")) for _ in range(4)]
        assert await node.produce("t", batch_of()) == [0]
        assert node.store.asked.count(("put", key)) == 5

    run(main())


@pytest.mark.parametrize("acks", [-1, 0])
def test_memory_is_bounded_while_the_store_is_silent(acks: int) -> None:
    """Beyond the bound no more is begun, whether or not an answer is wanted; other requests go on being served, and
    when the store answers everything is."""

    async def main() -> None:
        options = Settings(cluster_namespace="ns", flush_bytes=20_000, produce_buffer_bytes=8 << 20)
        node = await started(settings=options)
        node.store.gate.clear()
        clients = [node.connect() for _ in range(4)]
        batch = batch_of(b"v" * 5000)
        for _ in range(20):
            for client in clients:
                node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch), acks=acks))
        await node.clock.sleep(1)
        bound = 4 * 20_000
        assert bound <= node.worker.flusher.pending_bytes <= bound + len(batch)
        answer = await node.call(ApiKey.FETCH, 12, fetch_request(("t", 0, 0)))
        assert answer.responses[0].partitions[0].high_watermark == 0
        node.store.gate.set()
        if acks:
            for _ in range(20):
                for client in clients:
                    assert (await client.answer(ApiKey.PRODUCE, 9)).responses[0].partition_responses[0].error_code == 0
        else:
            await node.clock.sleep(10)
        assert node.partition("t").high_watermark == 80 and node.worker.flusher.pending_bytes == 0
        assert not node.worker.connections.is_produce_held

    run(main())


def test_nothing_is_answered_after_the_log_was_sealed_by_another() -> None:
    """The number was taken by a seal: the connection is dropped without a word, and the worker stops."""

    async def main() -> None:
        node = await started()
        key = node.keys.log(node.log_id, node.worker.log.next_sequence)
        await node.store.inner.put_if_absent(key, [b"x" * 64], Purpose.FLUSH)
        client = node.connect()
        assert await node.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())), client) is None
        assert client.was_aborted and node.stopped and not client.written

    run(main())


def test_a_topic_that_is_deleted_meanwhile() -> None:
    """What was appended before is answered; the topic of the same name that comes after begins at 0."""

    async def main() -> None:
        node = await started()
        node.store.gate.clear()
        client = node.connect()
        node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of())))
        await node.clock.sleep(0.1)
        node.delete("t")
        node.create("t", 4)
        node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(b"new"))))
        node.store.gate.set()
        for _ in range(2):
            answer = await client.answer(ApiKey.PRODUCE, 9)
            result = answer.responses[0].partition_responses[0]
            assert (result.error_code, result.base_offset) == (0, 0)
        assert await stored(node) == [at(batch_of(b"new"), 0)]

    run(main())
