"""Microseconds a message: our codecs beside kio's, on the same bytes. Run by hand: `python -m tests.bench.codec`.

Figures drift with the machine; compare the columns of one run.
"""

from __future__ import annotations

import io
import timeit
from collections.abc import Callable, Iterator
from typing import Any

from kio.serial import entity_reader, entity_writer

from kafscale.protocol.api import APIS, Api, ApiKey, encode_response
from kafscale.protocol.compiler import chunk_encoder, decoder, encoder, has_records
from kafscale.protocol.fetch import encode_fetch_response, parse_fetch
from kafscale.protocol.headers import encode_request_header, parse_request_header
from kafscale.protocol.messages.fetch import (
    FetchableTopicResponse,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchTopic,
    PartitionData,
)
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.metadata import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from kafscale.protocol.messages.produce import (
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
    TopicProduceResponse,
)
from kafscale.protocol.produce import encode_produce_response, parse_produce
from kafscale.protocol.schema import Message
from tests.unit.protocol.oracle import oracle_type

Case = tuple[str, Callable[[], object] | None, Callable[[], object], Callable[[], object]]
"""(what, by hand, compiled, kio)"""


def microseconds(call: Callable[[], object] | None) -> str:
    if call is None:
        return "-"
    timer = timeit.Timer(call)
    number, seconds = timer.autorange()
    best = min(seconds, *timer.repeat(3, number))
    return f"{best / number * 1e6:.2f}"


def both(api: Api, version: int, message: Message) -> tuple[bytes, Any, Any, Any, Any]:
    """(body, compiled decode, compiled encode, kio decode, kio encode)"""
    kind = type(message)
    flexible = api.is_flexible(version)
    make = chunk_encoder if has_records(kind) else encoder
    write = make(kind, version, flexible)
    written = write(message)
    raw = b"".join(written) if isinstance(written, list) else written
    read = decoder(kind, version, flexible)
    entity = oracle_type(api, version, kind)
    kio_read = entity_reader(entity)
    kio_message = kio_read(raw, 0)[0]
    kio_write = entity_writer(entity)

    def kio_encode() -> bytes:
        out = io.BytesIO()
        kio_write(out, kio_message)
        return out.getvalue()

    return raw, lambda: read(raw, 0, len(raw)), lambda: write(message), lambda: kio_read(raw, 0), kio_encode


def produce_cases() -> Iterator[Case]:
    api = APIS[ApiKey.PRODUCE]
    for version, count, size in ((3, 1, 100), (9, 1, 100), (9, 1, 2**20), (9, 20, 1024), (13, 1, 100)):
        partitions = [PartitionProduceData(index=i, records=bytes(size)) for i in range(count)]
        request = ProduceRequest(acks=-1, topic_data=[TopicProduceData(name="flights", partition_data=partitions)])
        raw, decode, _, kio_decode, _ = both(api, version, request)
        yield (
            f"decode Produce v{version}, {count} x {size} B",
            lambda version=version, raw=raw: parse_produce(version, raw, 0, len(raw)),
            decode,
            kio_decode,
        )
        topic: Any = bytes(16) if version >= 13 else "flights"
        results: list[Any] = [(topic, i, 0, 100, -1, 0, None, None) for i in range(count)]
        answers = [PartitionProduceResponse(index=i, base_offset=100) for i in range(count)]
        response = ProduceResponse(responses=[TopicProduceResponse(name="flights", partition_responses=answers)])
        _, _, encode, _, kio_encode = both(api, version, response)
        yield (
            f"encode Produce v{version}, {count} partitions",
            lambda version=version, results=results: encode_produce_response(version, 1, results),
            encode,
            kio_encode,
        )


def fetch_cases() -> Iterator[Case]:
    api = APIS[ApiKey.FETCH]
    for version, count, size in ((12, 1, 1024), (12, 1, 2**20), (12, 100, 10240), (16, 8, 0)):
        partitions = [FetchPartition(partition=i, fetch_offset=7, partition_max_bytes=2**20) for i in range(count)]
        request = FetchRequest(topics=[FetchTopic(topic="flights", partitions=partitions)])
        raw, decode, _, kio_decode, _ = both(api, version, request)
        yield (
            f"decode Fetch v{version}, {count} partitions",
            lambda version=version, raw=raw: parse_fetch(version, raw, 0, len(raw)),
            decode,
            kio_decode,
        )
        topic: Any = bytes(16) if version >= 13 else "flights"
        records = bytes(size)
        results: list[Any] = [
            (topic, i, 0, 9, 9, 0, None, None, -1, [records] if size else [], size) for i in range(count)
        ]
        answers = [PartitionData(partition_index=i, high_watermark=9, records=records) for i in range(count)]
        response = FetchResponse(responses=[FetchableTopicResponse(topic="flights", partitions=answers)])
        _, _, encode, _, kio_encode = both(api, version, response)
        yield (
            f"encode Fetch v{version}, {count} x {size} B",
            lambda version=version, results=results: encode_fetch_response(version, 1, 0, 0, results),
            encode,
            kio_encode,
        )


def other_cases() -> Iterator[Case]:
    api = APIS[ApiKey.METADATA]
    partitions = [
        MetadataResponsePartition(partition_index=i, leader_id=i % 4, replica_nodes=(i % 4,), isr_nodes=(i % 4,))
        for i in range(100)
    ]
    topics = [MetadataResponseTopic(name=f"topic-{i}", partitions=partitions) for i in range(10)]
    brokers = [MetadataResponseBroker(node_id=i, host="broker.example.org", port=9092) for i in range(4)]
    metadata = MetadataResponse(brokers=brokers, cluster_id="cluster", topics=topics)
    _, decode, encode, kio_decode, kio_encode = both(api, 12, metadata)
    yield "decode Metadata v12, 1000 partitions", None, decode, kio_decode
    yield "encode Metadata v12, 1000 partitions", None, encode, kio_encode
    yield "frame Metadata v12, 1000 partitions", None, lambda: encode_response(api, 12, 1, metadata), kio_encode

    api = APIS[ApiKey.HEARTBEAT]
    heartbeat = HeartbeatRequest(group_id="group", generation_id=3, member_id="member-1234")
    _, decode, encode, kio_decode, kio_encode = both(api, 4, heartbeat)
    yield "decode Heartbeat v4", None, decode, kio_decode
    yield "encode Heartbeat v4", None, encode, kio_encode

    api = APIS[ApiKey.PRODUCE]
    header = encode_request_header(api, 9, 7, "rdkafka")
    entity = oracle_type(api, 9, api.request).__header_schema__
    kio_header = entity_reader(entity)
    yield (
        "decode request header v2",
        None,
        lambda: parse_request_header(header, 0, len(header)),
        lambda: kio_header(header, 0),
    )


def main() -> None:
    print(f"{'microseconds a message':40} {'by hand':>10} {'compiled':>10} {'kio':>10}")
    for cases in (produce_cases, fetch_cases, other_cases):
        for what, by_hand, compiled, kio in cases():
            print(f"{what:40} {microseconds(by_hand):>10} {microseconds(compiled):>10} {microseconds(kio):>10}")


if __name__ == "__main__":
    main()
