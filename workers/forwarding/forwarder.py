"""Decides for a request that came to a shared address whether it concerns this worker, another, or several.

Called by dispatch for clients of a shared listener only, before anything is served. What concerns this worker alone it
leaves to dispatch; the rest it passes on, whole as it came or in parts. It owns nothing: a client's channels are its
connection's (`clients.py`), links are the peers', a request in progress is the asker's. What is passed on passes the
same guards at its owner as here: lease, version, authorization with the client's own principal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kafscale.errors import ProtocolError
from kafscale.metrics import PASSED_FAILED, PASSED_WHOLE
from kafscale.protocol.api import Api, ApiKey, decode_request, encode_response
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.fetch import encode_fetch_response, parse_fetch
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.messages.produce import ProduceRequest, ProduceResponse
from kafscale.protocol.produce import parse_produce
from kafscale.protocol.schema import Buffer, Message
from workers.caller import Caller
from workers.connection import Connection
from workers.connections import Dispatch
from workers.errors import Failed
from workers.forwarding.clients import PassingClient
from workers.forwarding.gathering import Gathering
from workers.forwarding.passing import Failure, Passing, ServeHere
from workers.forwarding.places import Places
from workers.forwarding.produce_requests import ProducePassing, all_of, codes_in, failed_produce, failure_of, refusal
from workers.forwarding.producer_order import NumberedBatch, numbered_batches
from workers.forwarding.routes import ROUTES, Route
from workers.forwarding.split_fetch import SplitFetch
from workers.peers.peers import Peers
from workers.pending import OrderedPending, Pending

_UNREACHABLE = "the worker that this concerns can't be reached at the moment"


class Forwarder:
    """`dispatch` serves the parts that concern this worker."""

    def __init__(self, places: Places, peers: Peers, dispatch: Dispatch, fetch_max_bytes: int) -> None:
        self._places = places
        self._peers = peers
        self._dispatch = dispatch
        self._fetch_max_bytes = fetch_max_bytes

    def take(
        self,
        api: Api,
        failed: Failed | None,
        header: RequestHeader,
        caller: Caller,
        buffer: bytearray | memoryview,
        start: int,
        position: int,
        end: int,
        pending: Pending,
    ) -> bool:
        """Pass on what concerns others of the request `buffer[start:end]`, whose body is at `position`. False, and
        nothing done, where it concerns this worker alone. Raises ProtocolError."""
        route = ROUTES.get(api.key)
        if not isinstance(route, Route):
            return False
        connection = cast("Connection", caller)
        place = cast("OrderedPending", pending)
        if api.key == ApiKey.PRODUCE:
            return self._take_produce(api, route, header, connection, buffer, start, position, end, place)
        if api.key == ApiKey.FETCH:
            return self._take_fetch(header, connection, buffer, start, position, end, place)
        version = header.api_version
        message = decode_request(api, version, buffer, position, end)
        parts = route.splitter.split(self._places, message, version)
        if len(parts) == 1:
            (node,) = parts
            if node == self._places.own:
                return False
            failure = _failure(api, header, message, failed, route)
            serve_here = None if route.is_whole else self._serve_here
            return self._pass(node, connection, _kept(buffer, start, end), place, failure, serve_here)
        self._gather(api, route, header, connection, message, parts, place, failed)
        return True

    def _take_produce(
        self,
        api: Api,
        route: Route,
        header: RequestHeader,
        connection: Connection,
        buffer: bytearray | memoryview,
        start: int,
        position: int,
        end: int,
        pending: OrderedPending,
    ) -> bool:
        places = self._places
        view = parse_produce(header.api_version, buffer, position, end)
        nodes = {places.leader(topic, index) for topic, index, _ in view.partitions}
        if not nodes or (connection.forwarded is None and nodes == {places.own}):
            return False
        client = self._client(connection)
        batches = numbered_batches(view.partitions) if view.acks != 0 else []
        if not all(client.order.may_go(batch, places.leader(batch.topic, batch.partition)) for batch in batches):
            code = ErrorCode.NOT_LEADER_OR_FOLLOWER
            client.note_refused(batches, all_of(batches, code))
            pending.answer(refusal(header, view, code))
            return True
        if nodes == {places.own}:
            return False
        frame = _kept(buffer, start, end)
        if len(nodes) == 1:
            (node,) = nodes
            channel = client.channel(node)
            if channel is None:
                client.cells[PASSED_FAILED.at("unsent")] += 1
                return False
            client.cells[PASSED_WHOLE] += 1
            failure = failure_of(header, view)
            passing = ProducePassing(client, pending, failure, self._serve_here, header.api_version, batches, node)
            passing.request = channel.request([frame], passing)
            return True
        self._gather_produce(api, route, header, client, frame, position - start, view.acks, batches, pending)
        return True

    def _gather_produce(
        self,
        api: Api,
        route: Route,
        header: RequestHeader,
        client: PassingClient,
        frame: memoryview,
        position: int,
        acks: int,
        batches: list[NumberedBatch],
        pending: OrderedPending,
    ) -> None:
        places, splitter, order, version = self._places, route.splitter, client.order, header.api_version
        message = decode_request(api, version, frame, position, len(frame))
        parts = splitter.split(places, message, version)
        for batch in batches:
            order.gone([batch], places.leader(batch.topic, batch.partition))

        def merge(answers: Mapping[int, Any]) -> Message:
            merged = splitter.merge(places, message, version, answers)
            order.back(batches)
            client.note_refused(batches, codes_in(cast("ProduceResponse", merged), version))
            return merged

        def answer_of_lost(node: int) -> Message | None:
            # Whether what was sent was stored, nobody knows; a retry of an idempotent producer finds out.
            lost = cast("ProduceRequest", parts[node])
            return None if acks == 0 else failed_produce(lost, ErrorCode.REQUEST_TIMED_OUT)

        gathering = Gathering(client, self._dispatch, api, header, pending, merge, answer_of_lost, is_whole=False)
        gathering.ask(parts, places.own)

    def _take_fetch(
        self,
        header: RequestHeader,
        connection: Connection,
        buffer: bytearray | memoryview,
        start: int,
        position: int,
        end: int,
        pending: OrderedPending,
    ) -> bool:
        places = self._places
        view = parse_fetch(header.api_version, buffer, position, end)
        if view.session_id != 0:
            # There are no sessions; the handler says so.
            return False
        positions_of: dict[int, list[int]] = {}
        for number, (topic, index, *_) in enumerate(view.partitions):
            positions_of.setdefault(places.leader(topic, index), []).append(number)
        if not positions_of or (len(positions_of) == 1 and places.own in positions_of):
            return False
        if len(positions_of) == 1:
            named = [(topic, index) for topic, index, *_ in view.partitions]
            failure = _fetch_failure(header, named)
            (node,) = positions_of
            return self._pass(node, connection, _kept(buffer, start, end), pending, failure, self._serve_here)
        split = SplitFetch(self._client(connection), self._dispatch, header, view, pending, self._fetch_max_bytes)
        split.ask(positions_of, places.own)
        return True

    # Passing on

    def _client(self, connection: Connection) -> PassingClient:
        client = connection.forwarded
        if client is None:
            client = connection.forwarded = PassingClient(connection, self._peers)
        return cast("PassingClient", client)

    def _pass(
        self,
        node: int,
        connection: Connection,
        frame: memoryview,
        pending: OrderedPending,
        failure: Failure,
        serve_here: ServeHere | None,
    ) -> bool:
        """Pass the request on to the node. False where it can't be, and is to be served here."""
        client = self._client(connection)
        passing = Passing(client, pending, failure, serve_here)
        channel = client.channel(node)
        if channel is not None:
            client.cells[PASSED_WHOLE] += 1
            passing.request = channel.request([frame], passing)
        elif serve_here is None:
            passing.failed(_UNREACHABLE, False)
        else:
            client.cells[PASSED_FAILED.at("unsent")] += 1
            return False
        return True

    def _serve_here(self, frame: memoryview, pending: OrderedPending) -> None:
        """Serve a request that could not be passed on after all."""
        local = self._client(pending.caller).local
        try:
            self._dispatch(local, frame, 0, len(frame), pending)
        except ProtocolError:
            pending.close_connection("protocol")

    def _gather(
        self,
        api: Api,
        route: Route,
        header: RequestHeader,
        connection: Connection,
        message: Any,
        parts: Mapping[int, Message],
        pending: OrderedPending,
        failed: Failed | None,
    ) -> None:
        places, splitter, version = self._places, route.splitter, header.api_version

        def answer_of_lost(node: int) -> Message | None:
            told = splitter.unreachable(node)
            if told is not None or failed is None:
                return told
            return failed(parts[node], route.code, _UNREACHABLE)

        gathering = Gathering(
            self._client(connection),
            self._dispatch,
            api,
            header,
            pending,
            lambda answers: splitter.merge(places, message, version, answers),
            answer_of_lost,
            is_whole=route.is_whole,
        )
        gathering.ask(parts, places.own)


def _kept(buffer: bytearray | memoryview, start: int, end: int) -> memoryview:
    """The request in memory that stays, and can be written: the receive buffer is overwritten."""
    return buffer[start:end] if isinstance(buffer, memoryview) else memoryview(buffer[start:end])


def _failure(api: Api, header: RequestHeader, message: Any, failed: Failed | None, route: Route) -> Failure:
    def failure() -> list[Buffer] | None:
        if failed is None:
            return None
        told = failed(message, route.code, _UNREACHABLE)
        return encode_response(api, header.api_version, header.correlation_id, told)

    return failure


def _fetch_failure(header: RequestHeader, named: list[tuple[str | bytes, int]]) -> Failure:
    def failure() -> list[Buffer] | None:
        code = ErrorCode.NOT_LEADER_OR_FOLLOWER
        results: Any = [(topic, index, code, -1, -1, -1, None, None, -1, (), 0) for topic, index in named]
        return encode_fetch_response(header.api_version, header.correlation_id, 0, 0, results)

    return failure
