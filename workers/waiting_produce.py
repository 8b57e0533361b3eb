"""Produce requests between their append and their answer. Owns the answers; the flush that they wait for calls it."""

from __future__ import annotations

from collections.abc import Sequence

from kafscale.metrics import PRODUCE_LATENCY, MetricsBlock, error_cell
from kafscale.protocol.answers import Node
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.produce import ProduceResult, encode_produce_response
from workers.pending import Pending


class Waiting:
    """One or more produce requests whose flush is not durable yet: called when it is."""

    __slots__ = ()

    def __call__(self, now: float) -> None:
        """Everything is durable: say so. `now`, here and below: monotonic seconds."""
        raise NotImplementedError

    def expire(self, now: float) -> None:
        """If the client's patience is over, say that we can't tell (retriable; an idempotent producer sends it again)
        and answer nothing when it is durable."""
        raise NotImplementedError


class WaitingProduce(Waiting):
    """Any produce request. `nodes`: addresses of the leaders that the results name."""

    __slots__ = ("_arrived", "_correlation_id", "_metrics", "_nodes", "_pending", "_results", "_timeout_ms", "_version")

    def __init__(
        self,
        metrics: MetricsBlock,
        version: int,
        correlation_id: int,
        pending: Pending,
        results: list[ProduceResult],
        arrived: float,
        timeout_ms: int,
        nodes: Sequence[Node] = (),
    ) -> None:
        self._metrics = metrics
        self._version = version
        self._correlation_id = correlation_id
        self._pending: Pending | None = pending
        self._results = results
        self._arrived = arrived
        self._timeout_ms = timeout_ms
        self._nodes = nodes

    def __call__(self, now: float) -> None:
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        PRODUCE_LATENCY.observe(self._metrics.cells, int((now - self._arrived) * 1e6))
        pending.answer_with_others(
            encode_produce_response(self._version, self._correlation_id, self._results, nodes=self._nodes)
        )

    def expire(self, now: float) -> None:
        pending = self._pending
        if pending is None or now < self._arrived + self._timeout_ms / 1000:
            return
        self._pending = None
        code = ErrorCode.REQUEST_TIMED_OUT
        results = [r if r[2] else (r[0], r[1], code, -1, -1, -1, None, None) for r in self._results]
        self._metrics.cells[error_cell(code)] += len(results)
        pending.note_errors()
        pending.answer(encode_produce_response(self._version, self._correlation_id, results, nodes=self._nodes))
