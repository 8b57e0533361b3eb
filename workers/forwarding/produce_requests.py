"""What is particular to Produce where it is passed on: its order, its codes, and how it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kafscale.protocol.api import APIS, ApiKey, decode_response
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.messages.produce import (
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceResponse,
)
from kafscale.protocol.produce import TOPIC_IDS_FROM, ProduceRequestView, ProduceResult, encode_produce_response
from kafscale.protocol.schema import Buffer
from workers.forwarding.clients import PassingClient
from workers.forwarding.passing import Failure, Passing, ServeHere
from workers.forwarding.producer_order import NumberedBatch
from workers.pending import OrderedPending

# (topic as the request names it, partition, error code)
Code = tuple[str | bytes, int, int]


class ProducePassing(Passing):
    """A Produce that was passed on whole, with what it holds of idempotent producers."""

    __slots__ = ("_batches", "_version")

    def __init__(
        self,
        client: PassingClient,
        pending: OrderedPending,
        failure: Failure,
        serve_here: ServeHere,
        version: int,
        batches: Sequence[NumberedBatch],
        node: int,
    ) -> None:
        super().__init__(client, pending, failure, serve_here)
        self._version = version
        self._batches = batches
        client.order.gone(batches, node)

    def ended(self, answer: bytes, *, has_errors: bool) -> None:
        client = self._client
        client.order.back(self._batches)
        if has_errors and self._batches:
            _, response = decode_response(APIS[ApiKey.PRODUCE], self._version, answer, 4, len(answer))
            client.note_refused(self._batches, codes_in(response, self._version))

    def was_lost(self, was_sent: bool) -> None:
        client = self._client
        client.order.back(self._batches)
        if was_sent:
            client.note_refused(self._batches, all_of(self._batches, ErrorCode.REQUEST_TIMED_OUT))


def all_of(batches: Iterable[NumberedBatch], code: int) -> list[Code]:
    """That all of these got this error."""
    return [(batch.topic, batch.partition, code) for batch in batches]


def codes_in(response: ProduceResponse, version: int) -> list[Code]:
    """What an answer says of each partition."""
    return [
        (topic.topic_id if version >= TOPIC_IDS_FROM else topic.name, partition.index, partition.error_code)
        for topic in response.responses
        for partition in topic.partition_responses
    ]


def failed_produce(request: ProduceRequest, code: int) -> ProduceResponse:
    """The error for every partition."""
    return ProduceResponse(
        responses=[
            TopicProduceResponse(
                name=topic.name,
                topic_id=topic.topic_id,
                partition_responses=[
                    PartitionProduceResponse(index=data.index, error_code=code, base_offset=-1)
                    for data in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ]
    )


def refusal(header: RequestHeader, view: ProduceRequestView, code: int) -> list[Buffer]:
    """The error for every partition, as bytes."""
    named: list[Any] = [(topic, index) for topic, index, _ in view.partitions]
    return _encoded(header, named, code)


def failure_of(header: RequestHeader, view: ProduceRequestView) -> Failure:
    """What a client is told of a Produce that was lost: nobody knows whether it was stored, and the retry of an
    idempotent producer finds out."""
    named = [(topic, index) for topic, index, _ in view.partitions]
    acks = view.acks

    def failure() -> list[Buffer] | None:
        return None if acks == 0 else _encoded(header, named, ErrorCode.REQUEST_TIMED_OUT)

    return failure


def _encoded(header: RequestHeader, named: Iterable[tuple[str | bytes, int]], code: int) -> list[Buffer]:
    results: list[ProduceResult] = [(topic, index, code, -1, -1, -1, None, None) for topic, index in named]
    return [encode_produce_response(header.api_version, header.correlation_id, results)]
