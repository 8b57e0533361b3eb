"""Goal: a produce request that is served without being parsed has the same effect and the same answer, to the last
byte, as one that is parsed; and the plain ones are in fact served so.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.compiler import chunk_encoder
from kafscale.protocol.headers import encode_request_header
from kafscale.protocol.messages.produce import ProduceRequest
from kafscale.protocol.wire import uvarint
from kafscale.storage.keys import sequence_of
from tests.unit.protocol.batch_samples import recrc
from tests.unit.workers.whole_worker import Client, WholeWorker, batch_of, id_of, produce_request, run
from workers.connection import Connection
from workers.repeated_produce import CONSTANT_BYTES_MAX, KNOWN_MAX, RepeatedProduce

PRODUCE = APIS[ApiKey.PRODUCE]
FLEXIBLE_FROM = 9
TAGS = b"\x01\x05\x03abc"  # one tagged field, unknown to all


class ForgetfulConnection(Connection):
    """A connection that never remembers how to serve a repeated request."""

    @property
    def repeated_produce(self) -> None:  # type: ignore[override]
        return None

    @repeated_produce.setter
    def repeated_produce(self, value: Any) -> None:
        pass


def frame(
    version: int,
    correlation_id: int,
    client_id: str | None,
    request: ProduceRequest,
    *,
    header_tags: bytes = b"\0",
    tail: bytes = b"",
    trailing: bytes = b"",
) -> bytes:
    """A request. `tail` takes the place of the last bytes of the body, `trailing` comes behind them."""
    header = encode_request_header(PRODUCE, version, correlation_id, client_id)
    flexible = version >= FLEXIBLE_FROM
    if flexible:
        header = header[:-1] + header_tags
    body = b"".join(bytes(chunk) for chunk in chunk_encoder(ProduceRequest, version, flexible)(request))
    if tail:
        body = body[: -len(tail)] + tail if flexible else body
    whole = header + body + trailing
    return struct.pack(">i", len(whole)) + whole


class Twins:
    """Two workers that are the same in everything, one of which never serves a repeated request unparsed."""

    def __init__(self, options: Settings | None = None) -> None:
        options = options or Settings(cluster_namespace="ns", flush_bytes=4096, auto_create_topics=False)
        self.nodes = [WholeWorker(options), WholeWorker(options)]

    async def start(self) -> None:
        # Side by side, so that their times are the same too.
        await asyncio.gather(*(node.start() for node in self.nodes))
        self.connect()

    def connect(self) -> None:
        repeating, forgetful = self.nodes
        self.clients = [
            repeating.connect(),
            Client(ForgetfulConnection(forgetful.worker.connections, forgetful.listener)),
        ]

    def both(self, what: str, *arguments: Any, **options: Any) -> None:
        for node in self.nodes:
            getattr(node, what)(*arguments, **options)

    def send(self, data: bytes, chunk_bytes: int = 1 << 20) -> None:
        for client in self.clients:
            client.send(data, chunk_bytes)

    @property
    def learnt(self) -> RepeatedProduce | None:
        return self.clients[0].protocol.repeated_produce

    async def check(self) -> None:
        """Let everything become durable, and compare all that can be seen of the two."""
        for node in self.nodes:
            node.store.gate.set()
            node.ping()
        await self.nodes[0].clock.sleep(1)
        one, other = self.clients
        assert one.written == other.written
        assert one.is_closing == other.is_closing
        one_node, other_node = self.nodes
        one_store, other_store = one_node.store.bodies(), other_node.store.bodies()
        assert [key for key in {**one_store, **other_store} if one_store.get(key) != other_store.get(key)] == []
        assert list(one_node.metrics.cells) == list(other_node.metrics.cells)
        assert not one_node.stopped and not other_node.stopped


def topic_of(version: int, number: int) -> str | bytes:
    return id_of(number) if version >= 13 else f"t{number}"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What became of every request that was offered to the short way."""
    outcomes: list[bool] = []
    serve = RepeatedProduce.serve

    def noting(self: RepeatedProduce, *arguments: Any) -> bool:
        outcomes.append(serve(self, *arguments))
        return outcomes[-1]

    monkeypatch.setattr(RepeatedProduce, "serve", noting)
    return outcomes


@pytest.mark.parametrize("acks", [-1, 1])
@pytest.mark.parametrize("version", range(3, 14))
def test_plain_requests_take_the_short_way(version: int, acks: int, served: list[bool]) -> None:
    """From the second on, whatever their size, with and without an idempotent producer."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2)
        sizes = [0, 1, 40, 60, 200, 5000, 20_000, 60_000, 3, 90_000, 300_000, 7, 300_001]
        for number, size in enumerate(sizes):
            batch = batch_of(b"v" * size, producer_id=5, producer_epoch=0, base_sequence=number)
            request = produce_request((topic_of(version, 2), 0, batch), acks=acks)
            twins.send(frame(version, 100 + number, "producer", request))
            if number % 3 == 2:
                await twins.nodes[0].clock.sleep(0.5)
        await twins.check()
        assert served == [True] * (len(sizes) - 1)
        assert twins.nodes[0].partition("t2").high_watermark == len(sizes)

    run(main())


@pytest.mark.parametrize("version", [3, 9, 13])
def test_partitions_in_turn_take_the_short_way(version: int, served: list[bool]) -> None:
    """From each one's second request on; of many partitions those that came last."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2, 2 * KNOWN_MAX + 2)
        for turn in range(3):
            for index in (0, 2, 4):
                twins.send(
                    frame(version, index, "producer", produce_request((topic_of(version, 2), index, batch_of())))
                )
            await twins.check()
            assert served == [False] * bool(turn == 0) * 2 + [True] * 3 * bool(turn)
            served.clear()
        for index in range(0, 2 * KNOWN_MAX + 2, 2):
            twins.send(frame(version, index, "producer", produce_request((topic_of(version, 2), index, batch_of()))))
        await twins.check()
        served.clear()
        twins.send(frame(version, 1, "producer", produce_request((topic_of(version, 2), 2 * KNOWN_MAX, batch_of()))))
        twins.send(frame(version, 1, "producer", produce_request((topic_of(version, 2), 0, batch_of()))))
        await twins.check()
        assert served == [True, False]

    run(main())


def test_what_a_stranger_makes_long_is_not_kept(served: list[bool]) -> None:
    """Of a client id of tens of kilobytes no copy is kept a partition."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2)
        for client in ("a", "a" * CONSTANT_BYTES_MAX):
            for _ in range(2):
                twins.send(frame(9, 1, client, produce_request(("t2", 0, batch_of()))))
                await twins.check()
        assert served == [True, False, False]

    run(main())


@pytest.mark.parametrize("version", [8, 12, 13])
def test_what_is_not_plain_takes_the_long_way(version: int, served: list[bool]) -> None:
    """acks=0, another client id, topic, version or time-out; what changed meanwhile; what is wrong."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2)
        twins.both("create", "t4", 4)

        async def plain() -> None:
            twins.send(frame(version, 1, "a", produce_request((topic_of(version, 2), 0, batch_of()))))
            await twins.check()
            served.clear()

        topic = topic_of(version, 2)
        good = batch_of()
        strangers = [
            frame(version, 1, "b", produce_request((topic, 0, good))),
            frame(version, 1, None, produce_request((topic, 0, good))),
            frame(version, 1, "a", produce_request((topic, 0, good), acks=1)),
            frame(version, 1, "a", produce_request((topic, 0, good), timeout_ms=1)),
            frame(version, 1, "a", produce_request((topic_of(version, 4), 0, good))),
            frame(version - 1 if version < 13 else 12, 1, "a", produce_request((topic_of(12, 2), 0, good))),
            frame(version, 1, "a", produce_request((topic, 0, good), (topic, 0, good))),
            frame(version, 1, "a", produce_request((topic, 0, good[:-1]))),
            frame(version, 1, "a", produce_request((topic, 0, good + good))),
            frame(version, 1, "a", produce_request((topic, 0, None))),
            frame(version, 1, "a", produce_request((topic, 0, b""))),
            frame(version, 1, "a", produce_request((topic, 0, good)), trailing=b"\0"),
        ]
        if version >= FLEXIBLE_FROM:
            for at in range(3):
                tail = b"\0\0\0"[:at] + TAGS + b"\0\0\0"[at + 1 :]
                whole = frame(version, 1, "a", produce_request((topic, 0, good)))
                body = whole[4:-3] + tail
                strangers.append(struct.pack(">i", len(body)) + body)
        for stranger in strangers:
            await plain()
            assert twins.learnt is not None
            twins.send(stranger)
            await twins.check()
            assert True not in served
        for change in (
            lambda: twins.both("create", "other", 6),
            lambda: twins.both("configure", "t2", message_timestamp_type="LogAppendTime"),
            lambda: twins.both("configure", "t2", max_message_bytes="10"),
            lambda: (twins.both("delete", "t2"), twins.both("create", "t2", 2)),
            lambda: twins.both("delete", "t2"),
        ):
            await plain()
            change()
            twins.send(frame(version, 1, "a", produce_request((topic, 0, good))))
            await twins.check()
            assert True not in served

    run(main())


@pytest.mark.parametrize("version", [3, 8])
def test_what_follows_the_request_does_not_lead_it_astray(version: int, served: list[bool]) -> None:
    """A request with bytes behind it is not remembered: where its records end would be taken for where it ends. Here
    the records of the second hold a good batch where the first, so remembered, would have them begin."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2)
        inner = batch_of(b"smuggled")
        plain = batch_of(b"smuggled" + bytes(12))
        around = bytes(8) + struct.pack(">i", len(inner)) + inner
        assert len(plain) == len(around)
        for behind in range(1, 20):
            twins.send(frame(version, 1, "a", produce_request(("t2", 0, plain)), trailing=bytes(behind)))
            twins.send(frame(version, 2, "a", produce_request(("t2", 0, around))))
        await twins.check()
        assert not any(served)

    run(main())


# Random sequences

DAMAGES = ["crc", "count", "control", "old", "no max", "cut", "twice", "null", "codec"]
PLAIN: dict[str, Any] = {
    "topic": 2,
    "index": 0,
    "client": "a",
    "version": None,
    "acks": None,
    "timeout": 1000,
    "size": 5,
    "producer": None,
    "step": 1,
    "damage": None,
    "twice": False,
    "odd": None,
    "chunk": 1 << 20,
}
# In what a request may differ from the plainest.
OTHERWISE = {
    "topic": [4, 8],
    "index": [2, 1, 9],
    "client": ["b", None],
    "version": [*range(3, 14)],
    "acks": [1, -1, 0, 5],
    "timeout": [50],
    "size": [0, 60, 125, 126, 127, 128, 300, 16_300, 20_000, 70_000],
    "step": [0, 2, -3],
    "damage": DAMAGES,
    "twice": [True],
    "odd": ["header tags", "tail tags", "trailing", "mutated", "padded length"],
    "chunk": [3000, 17],
}
DIFFERENCE = st.sampled_from([(key, value) for key, values in OTHERWISE.items() for value in values])
REQUEST = st.builds(
    lambda producer, differences: {**PLAIN, "producer": producer, **dict(differences)},
    st.sampled_from([None, 1, 1, 2]),
    st.one_of(st.just([]), st.lists(DIFFERENCE, min_size=1, max_size=1), st.lists(DIFFERENCE, max_size=3)),
)
STEP = st.one_of(
    st.tuples(st.just("produce"), REQUEST),
    st.tuples(st.just("produce"), REQUEST),
    st.tuples(st.just("produce"), REQUEST),
    st.tuples(st.just("repeat"), st.integers(1, 6)),
    st.tuples(st.just("repeat"), st.integers(1, 6)),
    st.tuples(st.just("wait"), st.sampled_from([0.0005, 0.002, 0.3, 2.0])),
    st.tuples(st.just("change"), st.sampled_from(["delete", "create", "append time", "create time", "small", "grow"])),
    st.tuples(st.just("store"), st.booleans()),
)


class Producer:
    """Turns steps into frames; the numbers of its idempotent producers go on."""

    def __init__(self, version: int, acks: int) -> None:
        self.version = version
        self.acks = acks
        self.sequences: dict[tuple[int, int, int], int] = {}
        self.correlation_id = 0
        self.last: dict[str, Any] | None = None

    def batch(self, wanted: dict[str, Any], place: tuple[int, int], at_ms: int) -> bytes | None:
        numbers = {}
        if wanted["producer"] is not None:
            key = (*place, wanted["producer"])
            sequence = max(0, self.sequences.get(key, -1) + wanted["step"])
            self.sequences[key] = sequence
            numbers = {"producer_id": wanted["producer"], "producer_epoch": 0, "base_sequence": sequence}
        old = wanted["damage"] == "old"
        batch = batch_of(
            b"%d" % self.correlation_id + b"v" * wanted["size"],
            timestamp_ms=at_ms - 10**9 if old else at_ms,
            codec=1 if wanted["damage"] == "codec" else 0,
            **numbers,
        )
        match wanted["damage"]:
            case "crc":
                batch[-1] ^= 1
            case "count":
                struct.pack_into(">i", batch, 57, 3)
                recrc(batch)
            case "control":
                struct.pack_into(">h", batch, 21, 0x20)
                recrc(batch)
            case "no max":
                struct.pack_into(">q", batch, 35, -1)
                recrc(batch)
            case "cut":
                del batch[-7:]
            case "twice":
                batch = batch + batch
            case "null":
                return None
        return bytes(batch)

    def frame(self, wanted: dict[str, Any], at_ms: int) -> bytes:
        self.last = wanted
        self.correlation_id += 1
        version = self.version if wanted["version"] is None else wanted["version"]
        acks = self.acks if wanted["acks"] is None else wanted["acks"]
        place = (wanted["topic"], wanted["index"])
        batch = self.batch(wanted, place, at_ms)
        data = [(topic_of(version, wanted["topic"]), wanted["index"], batch)] * (2 if wanted["twice"] else 1)
        request = produce_request(*data, acks=acks, timeout_ms=wanted["timeout"])
        odd = wanted["odd"]
        flexible = version >= FLEXIBLE_FROM
        whole = frame(
            version,
            self.correlation_id,
            wanted["client"],
            request,
            header_tags=TAGS if odd == "header tags" else b"\0",
            trailing=b"\0" * (1 + self.correlation_id % 4) if odd == "trailing" else b"",
        )
        if odd == "tail tags" and flexible:
            whole = whole[:-2] + TAGS + b"\0"
        if odd == "padded length" and flexible and batch is not None and not wanted["twice"]:
            # The same length, in one byte more than it takes.
            length = uvarint(len(batch) + 1)
            at = len(whole) - 3 - len(batch) - len(length)
            assert whole[at : at + len(length)] == length
            padded = length[:-1] + bytes([length[-1] | 0x80]) + b"\0"
            whole = whole[:at] + padded + whole[at + len(length) :]
        if odd == "mutated":
            at = 4 + self.correlation_id * 7919 % (len(whole) - 4)
            whole = whole[:at] + bytes([whole[at] ^ (1 << self.correlation_id % 8)]) + whole[at + 1 :]
        return struct.pack(">i", len(whole) - 4) + whole[4:]


def change(twins: Twins, what: str, number: int) -> None:
    exists = "t2" in twins.nodes[0].state.topics
    if what == "create" and not exists:
        twins.both("create", "t2", number, 3)
    elif exists:
        match what:
            case "delete":
                twins.both("delete", "t2")
            case "append time":
                twins.both("configure", "t2", message_timestamp_type="LogAppendTime")
            case "create time":
                twins.both("configure", "t2", message_timestamp_before_max_ms="3600000")
            case "small":
                twins.both("configure", "t2", max_message_bytes="250")
            case "grow":
                twins.both("grow", "t2", twins.nodes[0].state.topics["t2"].partitions + 1)


@settings(max_examples=250)
@given(
    steps=st.lists(STEP, min_size=2, max_size=25),
    version=st.sampled_from([3, 7, 8, 9, 12, 13]),
    acks=st.sampled_from([-1, 1]),
)
def test_the_short_way_and_the_long_way_are_one(steps: list[tuple[str, Any]], version: int, acks: int) -> None:
    """Answers, logs and counters are the same whatever is sent and whatever happens meanwhile."""

    async def main() -> None:
        twins = Twins()
        await twins.start()
        twins.both("create", "t2", 2, 3)
        twins.both("create", "t4", 4, 3)
        producer = Producer(version, acks)
        clock = twins.nodes[0].clock
        for number, (what, detail) in enumerate(steps):
            if twins.clients[0].is_closing:
                await twins.check()
                twins.connect()
            match what:
                case "produce":
                    twins.send(producer.frame(detail, clock.wall_ms()), detail["chunk"])
                case "repeat" if producer.last is not None:
                    for _ in range(detail):
                        twins.send(producer.frame(producer.last, clock.wall_ms()), producer.last["chunk"])
                case "wait":
                    await clock.sleep(detail)
                case "change":
                    change(twins, detail, 100 + 2 * number)
                case "store":
                    for node in twins.nodes:
                        node.store.gate.set() if detail else node.store.gate.clear()
        await twins.check()
        for node in twins.nodes:
            numbers = sorted(sequence_of(key) for key in node.store.bodies() if "/log/" in key)
            assert numbers == list(range(len(numbers)))

    run(main())
