"""Goal: every request passes the same guards, and every one of them is answered or its connection closed, whatever it
holds and whatever its handler does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.errors import Corrupt, Fenced, Invalid, ProtocolError, Retry, StoreUnavailable
from kafscale.metrics import CONNECTIONS_CLOSED, error_cell, request_cell
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.api_versions import ApiVersionsRequest
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.protocol.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.schema import Message, fields
from tests.unit.workers.node import Node
from workers import dispatch
from workers.apis import handlers
from workers.authorization import REQUIREMENTS, OnCluster, Open, PerItem
from workers.dispatch import AnyHandler, Handler
from workers.errors import error_codes_in

SERVED = {handler.api: handler for handler in handlers()}
GENERAL = [handler for handler in SERVED.values() if isinstance(handler, Handler)]


def names(handler: AnyHandler) -> str:
    return handler.api.name


def sample(key: ApiKey, version: int = 99) -> Message:
    """A request that asks for one thing, so that its answer has a place for an error."""
    match key:
        case ApiKey.METADATA:
            return MetadataRequest(topics=[MetadataRequestTopic(name="t")], allow_auto_topic_creation=False)
        case ApiKey.CREATE_TOPICS:
            return CreateTopicsRequest(topics=[CreatableTopic(name="t", num_partitions=1, replication_factor=1)])
        case ApiKey.DELETE_TOPICS if version >= 6:
            return DeleteTopicsRequest(topics=[DeleteTopicState(name="t")])
        case ApiKey.DELETE_TOPICS:
            return DeleteTopicsRequest(topic_names=["t"])
        case ApiKey.LIST_OFFSETS:
            partitions = [ListOffsetsPartition(partition_index=0, timestamp=-1)]
            return ListOffsetsRequest(topics=[ListOffsetsTopic(name="t", partitions=partitions)])
        case ApiKey.DELETE_RECORDS:
            records = [DeleteRecordsPartition(partition_index=0, offset=0)]
            return DeleteRecordsRequest(topics=[DeleteRecordsTopic(name="t", partitions=records)])
        case _:
            return _sample_by_shape(APIS[key].request)


def _sample_by_shape(kind: type[Message]) -> Message:
    """One element in every array of structs, and defaults."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.wire.kind == "array" and field.message is not None:
            values[field.name] = [_sample_by_shape(field.message)]
        elif field.wire.kind == "array":
            values[field.name] = ["t"] if field.wire.of == "string" else [0]
        elif field.name in ("name", "resource_name", "topic"):
            values[field.name] = "t"
        elif field.name == "transactional_id":
            values[field.name] = None
    return kind(**values)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_api_has_one_handler_one_requirement_and_messages() -> None:
    """Nothing is served that is not in every table, in versions that the codec has."""
    assert len(SERVED) == len(handlers())
    for key, handler in SERVED.items():
        assert key in REQUIREMENTS
        assert APIS[key].min_version <= handler.min_version <= handler.max_version <= APIS[key].max_version
        assert handler.advertised_from <= handler.min_version


def test_all_versions_that_can_be_read_are_served() -> None:
    """Narrow ranges break clients: what the codec has is served, and Produce is advertised from 0."""
    for key, handler in SERVED.items():
        assert (handler.min_version, handler.max_version) == (APIS[key].min_version, APIS[key].max_version)
    assert SERVED[ApiKey.PRODUCE].advertised_from == 0


@pytest.mark.parametrize("handler", GENERAL, ids=names)
def test_every_version_is_answered(handler: Handler) -> None:
    """A request of every version gets an answer that reads as that version's, and is counted."""

    async def scenario() -> None:
        node = Node()
        for version in range(handler.min_version, handler.max_version + 1):
            assert await node.call(handler.api, version, sample(handler.api, version)) is not None
        assert node.bench.count(request_cell(handler.api)) == handler.max_version - handler.min_version + 1

    asyncio.run(scenario())


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", GENERAL, ids=names)
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: RuntimeError("a defect"), ErrorCode.UNKNOWN_SERVER_ERROR),
        (lambda: Retry(ErrorCode.REQUEST_TIMED_OUT, "later"), ErrorCode.REQUEST_TIMED_OUT),
        (lambda: Invalid(ErrorCode.INVALID_REQUEST, "wrong"), ErrorCode.INVALID_REQUEST),
        (lambda: StoreUnavailable("gone"), ErrorCode.KAFKA_STORAGE_ERROR),
        (lambda: Corrupt("damaged"), ErrorCode.CORRUPT_MESSAGE),
    ],
)
def test_whatever_is_raised_is_told(
    handler: Handler, is_async: bool, error: Callable[[], Exception], code: ErrorCode, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler raises, now or later, is in every API's answer, and counted; a defect leaves a stack trace."""

    def fail(context: Any, request: Any, message: Any) -> Message:
        raise error()

    async def fail_later(context: Any, request: Any, message: Any) -> Message:
        await asyncio.sleep(0)
        raise error()

    async def scenario() -> None:
        node = Node(served=[dataclasses.replace(handler, handle=fail_later if is_async else fail)])
        for version in {handler.min_version, handler.max_version}:
            response = await node.call(handler.api, version, sample(handler.api, version))
            if handler.api == ApiKey.DESCRIBE_LOG_DIRS and version < 3:
                # Before version 3 there was no place for an error; an empty answer, as Kafka gives it.
                continue
            assert set(error_codes_in(response)) == {code}
        assert node.bench.count(error_cell(code)) >= 1
        await asyncio.sleep(0)
        assert node.dispatcher.waiting_count == 0

    asyncio.run(scenario())
    has_trace = any(record.exc_info for record in caplog.records)
    assert has_trace == (code in (ErrorCode.UNKNOWN_SERVER_ERROR, ErrorCode.CORRUPT_MESSAGE))


def test_an_answer_that_cannot_be_written_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """A defect in an answer costs its connection, and no other."""

    def bad(context: Any, request: Any, message: Any) -> Message:
        return APIS[ApiKey.DESCRIBE_CLUSTER].response(controller_id=1 << 40)

    async def scenario() -> None:
        node = Node(served=[Handler(ApiKey.DESCRIBE_CLUSTER, 0, 2, bad), *_others(ApiKey.DESCRIBE_CLUSTER)])
        assert await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest()) is None
        assert await node.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest()) is not None

    asyncio.run(scenario())
    assert any(record.exc_info for record in caplog.records)


def test_bytes_that_a_handler_cannot_read_close_the_connection() -> None:
    """What is malformed inside a message is as bad as a malformed message."""

    def bad(context: Any, request: Any, message: Any) -> Message:
        raise ProtocolError("nonsense inside")

    async def scenario() -> None:
        node = Node(served=[Handler(ApiKey.DESCRIBE_CLUSTER, 0, 2, bad)])
        assert await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest()) is None
        assert node.bench.count(CONNECTIONS_CLOSED.at("protocol")) == 1

    asyncio.run(scenario())


def _others(key: ApiKey) -> list[AnyHandler]:
    return [handler for handler in handlers() if handler.api != key]


# -- what is no request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", GENERAL, ids=names)
def test_truncated_requests_close_the_connection(handler: Handler) -> None:
    """Cut at any byte, a request is never half served."""

    async def scenario() -> None:
        node = Node()
        for version in {handler.min_version, handler.max_version}:
            whole = b"".join(encode_request(APIS[handler.api], version, 7, "c", sample(handler.api, version)))[4:]
            for length in range(len(whole)):
                transport = node.connect()
                answer = await node.exchange(struct.pack(">i", length) + whole[:length], transport)
                assert answer is None, f"v{version} cut at {length} of {len(whole)} was answered"
        assert node.dispatcher.waiting_count == 0

    asyncio.run(scenario())


def test_what_follows_a_request_is_ignored() -> None:
    """As by Kafka. librdkafka's (2.16) request for all topics ends three bytes late, and wants an answer too."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        sent = bytes.fromhex("000000190003000d00000003000772646b61666b610000000000010000")
        raw = await node.exchange(sent, node.connect())
        assert raw is not None
        _, response = decode_response(APIS[ApiKey.METADATA], 13, raw, 4, len(raw))
        assert [topic.name for topic in response.topics] == ["t"]

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [4, 7, 24, 68, 99, 32767, -1])
def test_unknown_apis_close_the_connection(key: int) -> None:
    """As Kafka does."""

    async def scenario() -> None:
        node = Node()
        frame = struct.pack(">hhihx", key, 0, 1, 0)
        assert await node.exchange(struct.pack(">i", len(frame)) + frame, node.connect()) is None
        assert node.bench.count(CONNECTIONS_CLOSED.at("protocol")) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("handler", SERVED.values(), ids=names)
def test_unserved_versions_close_the_connection(handler: AnyHandler) -> None:
    """Versions outside the range, advertised or not, but for ApiVersions."""
    if handler.api == ApiKey.API_VERSIONS:
        return

    async def scenario() -> None:
        node = Node()
        for version in (handler.min_version - 1, handler.max_version + 1, 32767, -32768):
            frame = struct.pack(">hhihxx", handler.api, version, 1, 0) + bytes(20)
            assert await node.exchange(struct.pack(">i", len(frame)) + frame, node.connect()) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [5, 99, 32767])
def test_api_versions_of_the_future_are_answered(version: int) -> None:
    """A version too new gets a body of version 0 with error 35 and the list (KIP-511), and the connection goes on."""

    async def scenario() -> None:
        node = Node()
        frame = struct.pack(">hhih", ApiKey.API_VERSIONS, version, 42, 2) + b"me\0" + b"\2a\2b\0 and more"
        transport = node.connect()
        raw = await node.exchange(struct.pack(">i", len(frame)) + frame, transport)
        assert raw is not None
        correlation_id, response = decode_response(APIS[ApiKey.API_VERSIONS], 0, raw, 4, len(raw))
        assert correlation_id == 42
        assert response.error_code == ErrorCode.UNSUPPORTED_VERSION
        assert {item.api_key for item in response.api_keys} == set(SERVED)
        again = await node.call(ApiKey.API_VERSIONS, 4, ApiVersionsRequest(), transport)
        assert again.error_code == 0

    asyncio.run(scenario())


# -- guards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", SERVED.values(), ids=names)
def test_an_api_without_a_row_is_denied(handler: AnyHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even to a client to whom everything is allowed: an API that the table does not know is nobody's to call."""
    rows = {key: row for key, row in REQUIREMENTS.items() if key != handler.api}
    monkeypatch.setattr(dispatch, "REQUIREMENTS", rows)

    async def scenario() -> None:
        node = Node()
        response = await node.call(handler.api, handler.max_version, sample(handler.api, handler.max_version))
        assert not node.requests
        if isinstance(handler, Handler) and response is not None:
            assert set(error_codes_in(response)) == {ErrorCode.CLUSTER_AUTHORIZATION_FAILED}
        else:
            # There is no place for an error in it.
            assert response is None

    asyncio.run(scenario())


def test_every_api_that_is_served_has_a_row() -> None:
    """And no API that does anything to topics or groups is open to all."""
    assert {handler.api for handler in SERVED.values()} <= set(REQUIREMENTS)
    opened = {ApiKey(key) for key, row in REQUIREMENTS.items() if isinstance(row, Open)}
    assert opened == {ApiKey.API_VERSIONS, ApiKey.SASL_HANDSHAKE, ApiKey.SASL_AUTHENTICATE, ApiKey.DESCRIBE_CLUSTER}


@pytest.mark.parametrize("handler", [handler for handler in GENERAL if handler.is_admin], ids=names)
def test_admin_apis_can_be_switched_off(handler: Handler) -> None:
    """With allow_admin_apis off, what changes topics is refused as to a client without the right to it."""

    async def scenario() -> None:
        node = Node(Settings(allow_admin_apis=False))
        response = await node.call(handler.api, handler.max_version, sample(handler.api, handler.max_version))
        row = REQUIREMENTS[handler.api]
        assert isinstance(row, PerItem | OnCluster)
        assert set(error_codes_in(response)) == {row.denied}
        assert not node.requests
        assert await node.call(ApiKey.METADATA, 9, sample(ApiKey.METADATA)) is not None

    asyncio.run(scenario())


def test_without_a_lease_nothing_is_answered() -> None:
    """A worker that may have been replaced closes connections instead of answering, and answers again when it knows."""

    async def scenario() -> None:
        node = Node()
        node.lease.fresh = False
        for handler in SERVED.values():
            assert await node.call(handler.api, handler.max_version, sample(handler.api)) is None
        assert node.bench.count(CONNECTIONS_CLOSED.at("fenced")) == len(SERVED)
        node.lease.fresh = True
        assert await node.call(ApiKey.METADATA, 7, sample(ApiKey.METADATA)) is not None

    asyncio.run(scenario())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_worker_found_to_be_replaced_says_nothing(is_async: bool) -> None:
    """Fenced while handling: whatever the answer would be, it is not ours to give."""

    def fenced(context: Any, request: Any, message: Any) -> Message:
        raise Fenced("replaced")

    async def fenced_later(context: Any, request: Any, message: Any) -> Message:
        await asyncio.sleep(0)
        raise Fenced("replaced")

    async def scenario() -> None:
        handler = Handler(ApiKey.DESCRIBE_CLUSTER, 0, 2, fenced_later if is_async else fenced)
        node = Node(served=[handler])
        assert await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest()) is None
        assert node.bench.count(CONNECTIONS_CLOSED.at("fenced")) == 1

    asyncio.run(scenario())


# -- repeated answers --------------------------------------------------------------------------------------------------


def test_repeated_answers_are_the_same_and_follow_the_cluster() -> None:
    """The same request gets the same answer under its own correlation id, until topics or nodes change."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        request = MetadataRequest(topics=None)
        first = await node.call(ApiKey.METADATA, 12, request)
        assert await node.call(ApiKey.METADATA, 12, request) == first
        assert (await node.call(ApiKey.METADATA, 5, request)).topics[0].name == "t"
        await node.create("u")
        assert len((await node.call(ApiKey.METADATA, 12, request)).topics) == 2
        node.set_nodes(0)
        assert len((await node.call(ApiKey.METADATA, 12, request)).brokers) == 1
        assert node.bench.count(request_cell(ApiKey.METADATA)) == 5

    asyncio.run(scenario())


def test_answers_that_change_something_are_not_repeated() -> None:
    """A topic whose creation failed is asked for again by the next request."""

    async def scenario() -> None:
        node = Node()
        node.is_controller_silent = True
        request = MetadataRequest(topics=[MetadataRequestTopic(name="t")])
        for _ in range(2):
            node.requests.clear()
            calling = asyncio.ensure_future(node.call(ApiKey.METADATA, 12, request))
            await node.until(lambda: len(node.requests) == 1)
            node.clock.advance(30)
            response = await calling
            assert response.topics[0].error_code == ErrorCode.LEADER_NOT_AVAILABLE
        node.is_controller_silent = False
        assert (await node.call(ApiKey.METADATA, 12, request)).topics[0].error_code == 0

    asyncio.run(scenario())


def test_kept_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever different requests don't fill the memory."""
    monkeypatch.setattr(dispatch, "REPEATABLE_BYTES_MAX", 100_000)

    async def scenario() -> None:
        node = Node()
        await node.create("t", 200)
        transport = node.connect()
        kept = []
        for number in range(1, 80):
            # Different bytes that ask for the same.
            request = MetadataRequest(topics=[MetadataRequestTopic(name="t")] * number)
            await node.call(ApiKey.METADATA, 9, request, transport)
            transport.writes.clear()
            assert node.dispatcher._repeats._size <= 100_000
            kept.append(len(node.dispatcher._repeats._answers))
        assert 1 < max(kept) < 79

    asyncio.run(scenario())


def test_init_producer_id_waits_without_holding_others_up() -> None:
    """A handler that waits has one task, and other connections are served meanwhile."""
    release = asyncio.Event()

    async def wait(context: Any, request: Any, message: Any) -> Message:
        await release.wait()
        return APIS[ApiKey.INIT_PRODUCER_ID].response(producer_id=5)

    async def scenario() -> None:
        node = Node(served=[Handler(ApiKey.INIT_PRODUCER_ID, 0, 5, wait), *_others(ApiKey.INIT_PRODUCER_ID)])
        message = InitProducerIdRequest(transactional_id=None)
        waiting = asyncio.ensure_future(node.call(ApiKey.INIT_PRODUCER_ID, 4, message))
        await asyncio.sleep(0)
        assert node.dispatcher.waiting_count == 1
        assert await node.call(ApiKey.API_VERSIONS, 3, ApiVersionsRequest()) is not None
        release.set()
        assert (await waiting).producer_id == 5

    asyncio.run(scenario())
