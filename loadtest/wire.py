"""Raw frames over raw sockets, for tests that need more control than a client gives.

Messages are built and read with kio, an implementation of the protocol that is not the broker's; record batches are
packed by hand after Kafka's documented layout, so that each field can be made wrong.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import itertools
import socket
import struct
import time
import uuid
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Self, Union, get_args, get_origin

import crc32c
from kio.index import load_request_schema, load_response_schema
from kio.records.readers import read_batch
from kio.schema.index import schema_name_map
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType

PATIENCE_S = 30.0

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS, CREATE_TOPICS = 0, 1, 2, 3, 18, 19


class Closed(Exception):
    """The broker closed the connection."""


def request(api_key: int, version: int, correlation_id: int = 1, client_id: str | None = "test", **body: Any) -> bytes:
    """A whole frame, length included, of a request whose body has the given fields (kio's names)."""
    schema = load_request_schema(api_key, version)
    return frame(header(schema, correlation_id, client_id) + encode(schema(**body)))


def header(schema: Any, correlation_id: int = 1, client_id: str | None = "test") -> bytes:
    """The header that goes before a request of the given kio class."""
    head = schema.__header_schema__
    fields: dict[str, Any] = {
        "request_api_key": schema.__api_key__,
        "request_api_version": schema.__version__,
        "correlation_id": correlation_id,
    }
    if any(field.name == "client_id" for field in dataclasses.fields(head)):
        fields["client_id"] = client_id
    return encode(head(**fields))


def encode(entity: Any) -> bytes:
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


def frame(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload


def milliseconds(count: int) -> datetime.timedelta:
    return datetime.timedelta(milliseconds=count)


def request_versions(lowest_key: int = 0, highest_key: int = 92) -> list[tuple[int, int]]:
    """Every API key and version that kio knows a request of."""
    from kio.schema.index import api_key_map

    return [
        (key, version)
        for key, name in sorted(api_key_map.items())
        if lowest_key <= key <= highest_key
        for version, types in sorted(schema_name_map[name].items())
        if EntityType.request in types
    ]


def example(schema: type, records: bytes = b"") -> Any:
    """A valid message of the given kio class: small numbers, short texts, one element in each list."""
    return schema(
        **{
            field.name: _example_value(field.type, field.metadata.get("kafka_type", ""), records)
            for field in dataclasses.fields(schema)
            if "tag" not in field.metadata
        }
    )


def _example_value(kind: Any, kafka_type: str, records: bytes) -> Any:
    if get_origin(kind) in (UnionType, Union):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is tuple:
        return (_example_value(get_args(kind)[0], kafka_type, records),)
    if dataclasses.is_dataclass(kind):
        return example(kind, records)  # type: ignore[arg-type]
    if kafka_type == "records":
        return records
    if kafka_type.startswith("timedelta"):
        return milliseconds(100)
    if kafka_type.startswith("datetime"):
        return datetime.datetime.fromtimestamp(1_700_000_000, datetime.UTC)
    if kafka_type == "error_code":
        return next(iter(kind))
    if kafka_type == "uuid":
        return uuid.uuid4()
    examples = {"string": "example", "bytes": b"example", "bool": False, "float64": 1.0}
    return examples.get(kafka_type, 1)


class Connection:
    """A blocking connection that sends frames and reads responses in order."""

    def __init__(self, port: int, timeout_s: float = PATIENCE_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._correlation_ids = itertools.count(1)

    def send(self, data: bytes) -> None:
        """Send bytes as they are; a broker that has closed is noticed when reading."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive_frame(self) -> bytes:
        """The next frame without its length.

        Raises:
            Closed: the broker closed the connection instead.
            TimeoutError: nothing came.
        """
        (size,) = struct.unpack(">i", self._receive_exactly(4))
        assert 0 <= size < 200_000_000, f"a frame of {size} bytes"
        return self._receive_exactly(size)

    def _receive_exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed
            parts += part
        return bytes(parts)

    def call(self, api_key: int, version: int, **body: Any) -> Any:
        """Send a request and return its response as kio reads it; the correlation id is checked."""
        correlation_id = next(self._correlation_ids)
        self.send(request(api_key, version, correlation_id, **body))
        return self.response(api_key, version, correlation_id)

    def response(self, api_key: int, version: int, correlation_id: int) -> Any:
        """Read the response to a request that was sent before."""
        return parse_response(self.receive_frame(), api_key, version, correlation_id)

    def closed_by_broker(self) -> bool:
        """Whether the broker closes the connection (whatever it says before) within the timeout."""
        try:
            while True:
                self.receive_frame()
        except Closed:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_response(payload: bytes, api_key: int, version: int, correlation_id: int) -> Any:
    schema = load_response_schema(api_key, version)
    head, size = entity_reader(schema.__header_schema__)(payload, 0)
    assert head.correlation_id == correlation_id
    body, body_size = entity_reader(schema)(payload, size)
    assert size + body_size == len(payload), "bytes left over in a response"
    return body


def varint(value: int) -> bytes:
    """A zigzag varint, as in records."""
    value = (value << 1) ^ (value >> 63)
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unsigned_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def record(value: bytes | None, key: bytes | None = None, offset_delta: int = 0, timestamp_delta: int = 0) -> bytes:
    """One record of a batch of magic 2."""

    def text(data: bytes | None) -> bytes:
        return varint(-1) if data is None else varint(len(data)) + data

    body = b"\x00" + varint(timestamp_delta) + varint(offset_delta) + text(key) + text(value) + varint(0)
    return varint(len(body)) + body


def batch(values: Sequence[bytes | None] = (b"x",), payload: bytes | None = None, **wrong: Any) -> bytes:
    """A record batch of magic 2; any field of its header can be set, `crc` and `batch_length` included.

    `payload` stands for the records as they are to appear after the header (compressed, say); `count` is then given.
    """
    now = int(time.time() * 1000)
    head = {
        "base_offset": 0,
        "partition_leader_epoch": -1,
        "magic": 2,
        "attributes": 0,
        "last_offset_delta": len(values) - 1,
        "base_timestamp": now,
        "max_timestamp": now,
        "producer_id": -1,
        "producer_epoch": -1,
        "base_sequence": -1,
        "count": len(values),
    } | wrong
    records = payload if payload is not None else b"".join(record(v, offset_delta=i) for i, v in enumerate(values))
    after_crc = (
        struct.pack(
            ">hiqqqhii",
            *(head[name] for name in ("attributes", "last_offset_delta", "base_timestamp", "max_timestamp")),
            *(head[name] for name in ("producer_id", "producer_epoch", "base_sequence", "count")),
        )
        + records
    )
    crc = head.get("crc", crc32c.crc32c(after_crc))
    length = head.get("batch_length", 4 + 1 + 4 + len(after_crc))
    return (
        struct.pack(">qiibI", head["base_offset"], length, head["partition_leader_epoch"], head["magic"], crc)
        + after_crc
    )


def produce_body(
    topic: str, records: bytes, partition: int = 0, acks: int = -1, version: int = 9, **more: Any
) -> dict[str, Any]:
    """The fields of a Produce request (versions 3 to 12) with one batch for one partition."""
    schema = load_request_schema(PRODUCE, version)
    module = __import__(schema.__module__, fromlist=["TopicProduceData"])
    return {
        "transactional_id": None,
        "acks": acks,
        "timeout": milliseconds(10_000),
        "topic_data": (
            module.TopicProduceData(
                name=topic, partition_data=(module.PartitionProduceData(index=partition, records=records),)
            ),
        ),
    } | more


def produce(connection: Connection, topic: str, records: bytes, partition: int = 0, **more: Any) -> Any:
    """Send one batch with Produce v9 and return the partition's part of the response."""
    answer = connection.call(PRODUCE, 9, **produce_body(topic, records, partition, **more))
    return answer.responses[0].partition_responses[0]


def create_topic(connection: Connection, topic: str, partitions: int = 1, **config: str) -> int:
    """CreateTopics v5; returns the error code."""
    schema = load_request_schema(CREATE_TOPICS, 5)
    module = __import__(schema.__module__, fromlist=["CreatableTopic"])
    settings = tuple(
        module.CreatableTopicConfig(name=name.replace("_", "."), value=value) for name, value in config.items()
    )
    wanted = module.CreatableTopic(
        name=topic, num_partitions=partitions, replication_factor=1, assignments=(), configs=settings
    )
    answer = connection.call(CREATE_TOPICS, 5, topics=(wanted,), timeout=milliseconds(30_000), validate_only=False)
    return int(answer.topics[0].error_code)


def leaders(connection: Connection, topic: str) -> dict[int, int]:
    """The port of each partition's leader, by Metadata v9; partitions without one are left out."""
    schema = load_request_schema(METADATA, 9)
    module = __import__(schema.__module__, fromlist=["MetadataRequestTopic"])
    answer = connection.call(
        METADATA,
        9,
        topics=(module.MetadataRequestTopic(name=topic),),
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )
    ports = {broker.node_id: broker.port for broker in answer.brokers}
    return {
        partition.partition_index: ports[partition.leader_id]
        for partition in answer.topics[0].partitions
        if partition.leader_id in ports
    }


def fetch_batches(connection: Connection, topic: str, partition: int = 0, offset: int = 0) -> tuple[int, bytes]:
    """Fetch v11 from an offset without waiting; returns the high watermark and the batches as bytes.

    Raises:
        AssertionError: the partition answered with an error.
    """
    schema = load_request_schema(FETCH, 11)
    module = __import__(schema.__module__, fromlist=["FetchTopic"])
    wanted = module.FetchPartition(
        partition=partition,
        current_leader_epoch=-1,
        fetch_offset=offset,
        log_start_offset=-1,
        partition_max_bytes=50_000_000,
    )
    answer = connection.call(
        FETCH,
        11,
        replica_id=-1,
        max_wait=milliseconds(0),
        min_bytes=0,
        max_bytes=50_000_000,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=(module.FetchTopic(topic=topic, partitions=(wanted,)),),
        forgotten_topics_data=(),
        rack_id="",
    )
    found = answer.responses[0].partitions[0]
    assert found.error_code == 0, f"fetch of {topic}-{partition} from {offset}: {found.error_code!r}"
    return int(found.high_watermark), bytes(found.records or b"")


def fetch_values(connection: Connection, topic: str, partition: int = 0) -> list[bytes | None]:
    """The values of all records of a partition, read by kio; offsets must be dense from zero."""
    values: list[bytes | None] = []
    while True:
        end, data = fetch_batches(connection, topic, partition, len(values))
        if len(values) >= end:
            return values
        assert data, f"no data at offset {len(values)} of {end}"
        position = 0
        while position < len(data):
            (length,) = struct.unpack_from(">i", data, position + 8)
            found, _size = read_batch(data[position : position + 12 + length], 0)
            for one in found.records:
                assert one.offset == len(values)
                values.append(one.value)
            position += 12 + length
