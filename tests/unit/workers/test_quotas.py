"""Goal: over time no client gets more than its quota, and hardly less; it is answered at once and told how long it will
not be read; whoever shares a quota shares it over connections and workers, and nobody else pays for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from kafscale.coordination.cluster import SetQuota
from kafscale.coordination.quotas import FETCH_RATE, PRODUCE_RATE, REQUEST_PERCENTAGE, ClientQuota, QuotaEntity
from kafscale.metrics import THROTTLED, THROTTLED_US
from kafscale.protocol.api import APIS, ApiKey, encode_request
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest, DescribeClusterResponse
from kafscale.protocol.messages.metadata import MetadataRequest
from kafscale.quota_use import QuotaUse
from tests.unit.workers.node import Node
from tests.unit.workers.whole_worker import (
    Client,
    WholeWorker,
    batch_of,
    fetch_request,
    id_of,
    produce_request,
    run,
)
from workers.dispatch import Handler
from workers.quotas import BUCKET_SECONDS, FETCH_SHARE_MIN

EVERYBODY = QuotaEntity.of(user=None)
ANONYMOUS = QuotaEntity.of(user="ANONYMOUS")
RATE = 100_000.0
VALUE = b"x" * 20_000


def quota(entity: QuotaEntity = EVERYBODY, **values: float) -> SetQuota:
    keys = {"produce": PRODUCE_RATE, "fetch": FETCH_RATE, "request": REQUEST_PERCENTAGE}
    return SetQuota(entity, {keys[key]: value for key, value in values.items()})


async def started(*quotas: SetQuota, **options: Any) -> WholeWorker:
    """A worker with topic `t`, whose partition 0 it leads, and these quotas."""
    node = await WholeWorker(**options).start()
    node.create("t", 2)
    if quotas:
        node.decide(*quotas)
    return node


def throttled(node: WholeWorker | Node, kind: str) -> int:
    metrics = node.metrics if isinstance(node, WholeWorker) else node.bench.metrics
    return int(metrics.cells[THROTTLED.at(kind)])


class Producer:
    """Keeps so many requests of one batch on their way, and does not care what it is told."""

    def __init__(self, node: WholeWorker, in_flight: int, version: int, client_id: str) -> None:
        self.client = node.connect()
        self.bytes_answered = 0
        self.throttle_times_ms: list[int] = []
        self._node = node
        self._in_flight = in_flight
        self._version = version
        self._client_id = client_id

    async def run(self, seconds: float) -> None:
        node, key, version = self._node, ApiKey.PRODUCE, self._version
        topic: Any = id_of(2) if version >= 13 else "t"
        request = produce_request((topic, 0, batch_of(VALUE)), timeout_ms=600_000)
        size = sum(map(len, encode_request(APIS[key], version, 1, self._client_id, request)))
        until = node.clock.monotonic() + seconds
        for _ in range(self._in_flight):
            node.send(self.client, key, version, request, self._client_id)
        while True:
            answer = await self.client.answer(key, version)
            (result,) = answer.responses[0].partition_responses
            assert result.error_code == 0
            if node.clock.monotonic() > until:
                return
            self.bytes_answered += size
            self.throttle_times_ms.append(answer.throttle_time_ms)
            assert answer.throttle_time_ms == 0 or self.client.protocol.is_muted
            node.send(self.client, key, version, request, self._client_id)


async def produced(seconds: float, *producers: Producer) -> list[float]:
    """What each got answered, in bytes a second."""
    await asyncio.gather(*(producer.run(seconds) for producer in producers))
    return [producer.bytes_answered / seconds for producer in producers]


@pytest.mark.parametrize("version", [3, 8, 9, 12, 13])
@pytest.mark.parametrize("in_flight", [1, 5])
def test_a_producer_gets_its_rate(version: int, in_flight: int) -> None:
    """Parsed or not, pipelined or not: over 30 s the rate and what the bucket held, and no more; nearly every answer
    says for how long the client is throttled."""

    async def main() -> None:
        node = await started(quota(produce=RATE))
        producer = Producer(node, in_flight, version, "app")
        (rate,) = await produced(30, producer)
        assert producer.client.protocol.repeated_produce is not None, "not served the short way"
        # What was on its way when the bucket ran empty comes on top.
        surplus = (RATE * BUCKET_SECONDS + in_flight * len(VALUE)) / 30
        assert 0.98 * RATE < rate < RATE * 1.01 + surplus
        told = [time for time in producer.throttle_times_ms if time]
        assert len(told) >= len(producer.throttle_times_ms) - 6 and max(told) < 2000
        assert throttled(node, "produce") >= len(told)
        # What pipelined answers say overlaps.
        assert node.metrics.cells[THROTTLED_US] / 1e6 > 25

    run(main())


def test_the_answer_comes_first() -> None:
    """As quickly as without a quota, with the time; until that has passed nothing is read, and then all is."""

    async def main() -> None:
        node = await started(quota(produce=1000.0))
        client = node.connect()
        before = node.clock.monotonic()
        answer = await node.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(VALUE))), client)
        assert node.clock.monotonic() - before < 0.1
        owed_seconds = answer.throttle_time_ms / 1000
        assert 18 < owed_seconds < 21
        assert not client.is_reading
        node.send(client, ApiKey.METADATA, 9, MetadataRequest())
        await node.clock.sleep(owed_seconds - 1)
        assert not client.has_answers and client.unread
        await client.answer(ApiKey.METADATA, 9)
        assert node.clock.monotonic() - before >= owed_seconds - 0.1 and client.is_reading
        # Nothing is owed any more, and what is no Produce is not charged.
        assert (await node.call(ApiKey.METADATA, 9, MetadataRequest(), client)).throttle_time_ms == 0

    run(main())


def test_a_consumer_gets_its_rate() -> None:
    """No answer holds more than the bucket, or than one batch; over time it is the rate; none is empty."""

    async def main() -> None:
        node = await started()
        await node.produce("t", *(batch_of(b"x" * 4000) for _ in range(850)))
        node.decide(quota(fetch=RATE))
        client = node.connect()
        offset, total, began = 0, 0, node.clock.monotonic()
        while node.clock.monotonic() - began < 30:
            answer = await node.call(ApiKey.FETCH, 12, fetch_request(("t", 0, offset)), client)
            records = bytes(answer.responses[0].partitions[0].records)
            assert 0 < len(records) <= RATE * BUCKET_SECONDS
            total += len(records)
            offset += len(records) // len(batch_of(b"x" * 4000))
            if answer.throttle_time_ms:
                assert len(records) <= RATE * FETCH_SHARE_MIN and answer.throttle_time_ms < 1500
        assert 0.97 * RATE < total / 30 < 1.05 * RATE
        assert throttled(node, "fetch") > 10

    run(main())


def test_who_shares_and_who_does_not() -> None:
    """Two connections of one client id get one client's rate together, another client id its own."""

    async def main() -> None:
        node = await started(quota(QuotaEntity.of(client_id=None), produce=RATE))
        one, same, other = (Producer(node, 2, 9, client_id) for client_id in ("app", "app", "etl"))
        rates = await produced(30, one, same, other)
        assert 0.95 * RATE < rates[0] + rates[1] < 1.1 * RATE
        assert min(rates[:2]) > 0.3 * RATE
        assert 0.95 * RATE < rates[2] < 1.1 * RATE

    run(main())


@pytest.fixture
def uses() -> Iterator[list[QuotaUse]]:
    """The use of quotas as two workers of a broker keep it."""
    made = QuotaUse.create(2)
    assert made.fd is not None
    attached = [QuotaUse.attach(os.dup(made.fd), index) for index in range(2)]
    yield attached
    for use in (made, *attached):
        use.close()


def test_workers_share(uses: list[QuotaUse]) -> None:
    """One client at both workers of a broker gets its rate once; the one that is asked less may have all of it."""

    async def main() -> None:
        nodes = [await started(quota(produce=RATE), quota_use=use) for use in uses]
        both = [Producer(node, 2, 9, "app") for node in nodes]
        rates = await produced(30, *both)
        assert 0.95 * RATE < sum(rates) < 1.1 * RATE and min(rates) > 0.3 * RATE
        (alone,) = await produced(30, Producer(nodes[0], 2, 9, "app"))
        assert 0.95 * RATE < alone < 1.1 * RATE

    run(main())


def test_a_quota_that_is_changed_counts_at_once() -> None:
    """Who is not read is read again when the quota is lifted, and its next request is charged by what counts then."""

    async def main() -> None:
        node = await started(quota(produce=10.0))
        client = node.connect()
        request = produce_request(("t", 0, batch_of(VALUE)))
        assert (await node.call(ApiKey.PRODUCE, 9, request, client)).throttle_time_ms > 1_000_000
        node.decide(quota())
        assert client.is_reading
        assert (await node.call(ApiKey.PRODUCE, 9, request, client)).throttle_time_ms == 0
        assert client.protocol.repeated_produce is not None
        # What was used under an old quota stays used: this is no way to be rid of what one owes.
        node.decide(quota(produce=1e9))
        assert (await node.call(ApiKey.PRODUCE, 9, request, client)).throttle_time_ms > 1_000_000

    run(main())


def test_others_go_on() -> None:
    """One that owes keeps nobody else waiting, and whoever has no quota is not slowed down by those of others."""

    async def main() -> None:
        node = await started(quota(QuotaEntity.of(client_id="app"), produce=1.0, fetch=1.0, request=0.001))
        owing, free = node.connect(), node.connect()
        request = produce_request(("t", 0, batch_of(VALUE)))
        node.send(owing, ApiKey.PRODUCE, 9, request, "app")
        assert (await owing.answer(ApiKey.PRODUCE, 9)).throttle_time_ms > 1_000_000
        began = node.clock.monotonic()
        for _ in range(20):
            assert (await node.call(ApiKey.PRODUCE, 9, request, free)).throttle_time_ms == 0
        assert node.clock.monotonic() - began < 1
        assert not owing.is_reading

    run(main())


def test_without_answers() -> None:
    """acks=0: nobody can be told, and still nobody gets more."""

    async def main() -> None:
        node = await started(quota(produce=RATE))
        client = node.connect()
        began = node.clock.monotonic()
        for _ in range(50):
            node.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(VALUE)), acks=0))
        await node.call(ApiKey.METADATA, 9, MetadataRequest(), client)
        assert node.clock.monotonic() - began > 50 * len(VALUE) / RATE - BUCKET_SECONDS - 0.1

    run(main())


def test_a_drain_does_not_wait() -> None:
    """What was received is answered now, whatever is owed; and a client that is gone is forgotten."""

    async def main() -> None:
        node = await started(quota(produce=10.0))
        client, gone = node.connect(), node.connect()
        requests: list[tuple[ApiKey, Any]] = [(ApiKey.PRODUCE, produce_request(("t", 0, batch_of(VALUE))))] * 3
        requests.append((ApiKey.METADATA, MetadataRequest()))
        for one in (client, gone):
            # Received at once, however much of it may begin.
            one.send(b"".join(part for key, body in requests for part in encode_request(APIS[key], 9, 1, "app", body)))
        await client.answer(ApiKey.PRODUCE, 9)
        await gone.answer(ApiKey.PRODUCE, 9)
        gone.lose()
        assert len(node.worker.connections._muted) == 1
        before = node.clock.monotonic()
        await node.worker.drain()
        assert node.clock.monotonic() - before < 10
        for _ in range(2):
            assert (await client.answer(ApiKey.PRODUCE, 9)) is not None
        assert (await client.answer(ApiKey.METADATA, 9)) is not None
        assert not node.worker.connections._muted

    run(main())


def test_a_silent_client_that_may_not_speak_is_not_idle() -> None:
    async def main() -> None:
        node = await started(quota(produce=10.0))
        client = node.connect()
        answer = await node.call(ApiKey.PRODUCE, 9, produce_request(("t", 0, batch_of(VALUE))), client)
        assert answer.throttle_time_ms / 1000 > node.settings.connections_idle_ms / 1000 + 60
        await node.clock.sleep(answer.throttle_time_ms / 1000 + 1)
        assert not client.is_closing and client.is_reading
        assert (await node.call(ApiKey.METADATA, 9, MetadataRequest(), client)) is not None

    run(main())


def test_the_time_that_requests_take_is_limited() -> None:
    """A client that keeps the loop busy for a tenth of a second with each request gets a fifth of the loop's time, if
    that is its quota; waiting for something costs nothing."""
    spent = 0.1

    async def main() -> None:
        waits = asyncio.Event()

        def work(context: Any, request: Any, message: Any) -> Any:
            context.clock.advance(spent)
            return wait() if waits.is_set() else DescribeClusterResponse()

        async def wait() -> DescribeClusterResponse:
            await asyncio.sleep(0)
            return DescribeClusterResponse()

        node = Node(served=[Handler(ApiKey.DESCRIBE_CLUSTER, 0, 2, work)])
        node.quotas.follow([ClientQuota(ANONYMOUS, {REQUEST_PERCENTAGE: 20.0})])
        for is_waiting in (False, True):
            if is_waiting:
                waits.set()
            node.clock.advance(100)
            client = node.connect()
            began = node.clock.monotonic()
            for _ in range(40):
                answer = await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest(), client)
                node.clock.advance(answer.throttle_time_ms / 1000)
            assert node.clock.monotonic() - began == pytest.approx(40 * spent / 0.2 - BUCKET_SECONDS, rel=0.05)
        assert throttled(node, "request") > 60

    asyncio.run(main())


def test_what_is_known_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many client ids there are; what is forgotten is found again."""
    monkeypatch.setattr("workers.quotas.CLIENTS_MAX", 10)

    async def main() -> None:
        node = await started(quota(QuotaEntity.of(client_id="3"), produce=1.0))
        quotas = node.worker.quotas
        for _ in range(2):
            for number in range(100):
                limits = quotas.limits_of("User:a", str(number))
                assert (limits is not None) == (number == 3)
            assert len(quotas._clients) == 10
        assert node.worker.quotas.limits_of("User:a", None) is None

    run(main())


def test_a_request_that_ends_early_is_still_a_protocol_error() -> None:
    """A Fetch too short to be narrowed closes its connection, as without a quota."""

    async def main() -> None:
        node = await started(quota(fetch=RATE))
        whole = b"".join(encode_request(APIS[ApiKey.FETCH], 12, 1, "tester", fetch_request(("t", 0, 0))))
        for length in range(len(whole) - 1, 12, -7):
            client: Client = node.connect()
            client.send((length - 4).to_bytes(4, "big") + whole[4:length])
            assert await client.frame() is None

    run(main())
