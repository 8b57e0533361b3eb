"""Goal: what is passed on is charged to the client's quota once, where the client is."""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.coordination.cluster import SetQuota
from kafscale.coordination.quotas import FETCH_RATE, PRODUCE_RATE, QuotaEntity
from kafscale.metrics import API_NAMES, THROTTLED
from kafscale.protocol.api import ApiKey
from tests.unit.workers.forwarding.many_workers import SLOTS, Cluster
from tests.unit.workers.whole_worker import batch_of, fetch_request, produce_request, run


@pytest.mark.parametrize("indexes", [[0], [1], [2], [0, 1, 2]])
def test_the_front_charges(indexes: list[int]) -> None:
    """Whoever leads the partitions, and several that do: the front says it and does not read; nobody else has heard of
    the client. An answer that is passed on in parts, too."""

    async def main() -> None:
        cluster = await Cluster().start()
        cluster.create("t", SLOTS, 6)
        value = b"x" * 600_000
        for index in range(3):
            await cluster.front.produce("t", batch_of(value), index=index)
        for worker in cluster.workers.values():
            worker.decide(SetQuota(QuotaEntity.of(user=None), {PRODUCE_RATE: 1e5, FETCH_RATE: 1e5}))
        clock = cluster.front.clock
        requests: list[tuple[ApiKey, Any]] = [
            (ApiKey.PRODUCE, produce_request(*(("t", index, batch_of(value)) for index in indexes))),
            (ApiKey.FETCH, fetch_request(*(("t", index, 0) for index in indexes))),
        ]
        for key, request in requests:
            client = cluster.connect()
            began = clock.monotonic()
            answer = await cluster.call(key, 12, request, client)
            # A Fetch that may have less than a batch gets one of each worker.
            assert answer.throttle_time_ms / 1000 == pytest.approx(6 * len(indexes) - 1, rel=0.02)
            assert clock.monotonic() - began < 1 and not client.is_reading
            metrics = [worker.metrics for worker in cluster.workers.values()]
            assert [block.cells[THROTTLED.at(API_NAMES[key].lower())] for block in metrics] == [1, 0, 0]
        cluster.stop()

    run(main())
