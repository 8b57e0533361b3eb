"""From a frame to a handler and from its answer to bytes: the guards that every request passes, in one place.

What is served is a list of handlers (`workers/apis.py`); the versions told to clients, authorization and counting
follow from it. Nothing here knows what a request means, nor how bytes arrive. A request that can't be read, or is of an
API or version that is not served, closes its connection, as Kafka does; only ApiVersions is answered in any version
(KIP-511).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from kafscale.errors import Fenced, Invalid, ProtocolError
from kafscale.logs import RateLimited
from kafscale.metrics import error_cell, request_cell
from kafscale.protocol.api import APIS, Api, ApiKey, decode_request, encode_response
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.headers import RequestHeader, parse_request_header
from kafscale.protocol.schema import Buffer, Message
from workers.audited_access import AuditedAccess
from workers.authorization import REQUIREMENTS, Authority, OnCluster, PerItem, Row
from workers.caller import Caller
from workers.context import Context, Request
from workers.errors import Failed, code_of, deserves_stack_trace, error_codes_in, top_level_failure
from workers.listener import Listener
from workers.pending import Pending

log = logging.getLogger(__name__)

# Answers kept for requests that are repeated word for word (Metadata, above all).
REPEATABLE_REQUEST_BYTES_MAX: Final = 4096
REPEATABLE_BYTES_MAX: Final = 8 * 1024 * 1024
SURPRISE_INTERVAL_SECONDS: Final = 1.0

_SIZE_AND_CORRELATION: Final = struct.Struct(">ii")

Handle = Callable[[Context, Request, Any], Message | Awaitable[Message]]
RawHandle = Callable[[Context, Request, bytearray | memoryview, int, int, Pending], None]


@dataclass(frozen=True, slots=True)
class Handler:
    """An API that is served: `handle(context, request, message)` returns the answer, or an awaitable of it.

    `failed` makes the answer that says an error of everything asked for, where the answer has no field of its own for
    it. `is_admin`: switched off by `allow_admin_apis`. `is_repeatable`: an answer that is not awaited depends on
    nothing but the request and the cluster's state, so that the next request that is the same may get the same bytes.
    """

    api: ApiKey
    min_version: int
    max_version: int
    handle: Handle
    failed: Failed | None = None
    is_admin: bool = False
    is_repeatable: bool = False

    @property
    def advertised_from(self) -> int:
        """The lowest version told to clients."""
        return self.min_version


@dataclass(frozen=True, slots=True)
class RawHandler:
    """An API on the hot path: `handle(context, request, buffer, start, end, pending)` reads the body
    `buffer[start:end]` itself and answers `pending` when it can. `workers.connection` says what of it may be kept.
    """

    api: ApiKey
    min_version: int
    max_version: int
    handle: RawHandle
    advertised_from: int


AnyHandler = Handler | RawHandler

# (API, how it fails, header, who asks, buffer, start of the request, start of its body, end, where the answer goes) →
# whether it was passed on. Raises ProtocolError.
Forward = Callable[[Api, Failed | None, RequestHeader, Caller, bytearray | memoryview, int, int, int, Pending], bool]


class _Row:
    """A handler with all that dispatch needs of it at hand."""

    __slots__ = (
        "api",
        "failed",
        "handler",
        "is_listed",
        "is_off",
        "max_version",
        "min_version",
        "needs",
        "raw",
        "requests",
        "requirement",
    )

    def __init__(self, handler: AnyHandler, allow_admin_apis: bool) -> None:
        api: Api = APIS[handler.api]
        self.api = api
        self.handler = handler
        self.min_version = handler.min_version
        self.max_version = handler.max_version
        self.raw: RawHandle | None = handler.handle if isinstance(handler, RawHandler) else None
        self.failed: Failed | None = None
        self.is_off = False
        if isinstance(handler, Handler):
            self.failed = handler.failed or top_level_failure(api.response)
            self.is_off = handler.is_admin and not allow_admin_apis
        self.requests = request_cell(api.key)
        # Without a row in the table nobody may.
        self.requirement: Row | None = REQUIREMENTS.get(api.key)
        self.is_listed = self.requirement is not None
        self.needs = self.requirement.need if isinstance(self.requirement, OnCluster) else None


class Dispatcher:
    """Called by connections with every frame. Owns the tasks of handlers that wait and the answers kept for repeats."""

    def __init__(self, context: Context, handlers: Sequence[AnyHandler]) -> None:
        self._context = context
        self._authority: Authority = context.authority
        self._audit = context.audit
        self._quotas = context.quotas
        self._cells = context.metrics.cells
        self._rows = {int(h.api): _Row(h, context.settings.allow_admin_apis) for h in handlers}
        assert len(self._rows) == len(handlers), "an API is listed twice"
        self._tasks: set[asyncio.Task[None]] = set()
        self._repeats = _RepeatedAnswers(context)
        self._surprises = RateLimited(context.clock, SURPRISE_INTERVAL_SECONDS)
        # Passes on what concerns other workers, for callers whose requests may be: `workers.forwarding`.
        self.forward: Forward | None = None

    def __call__(
        self, connection: Caller, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
    ) -> None:
        """Serve one request. ProtocolError where the connection must be closed; all else is told to the client."""
        context = self._context
        now = context.clock.monotonic()
        if not context.lease.is_fresh(now):
            # We may have been replaced without knowing it. The client comes back, here or to our successor.
            pending.close_connection("fenced")
            return
        gate = connection.gate
        if gate is not None and gate.intercept(buffer, start, end, pending, now):
            return
        repeated = connection.repeated_produce
        if repeated is not None and repeated.serve(buffer, start, end, pending, now):
            return
        header, position = parse_request_header(buffer, start, end)
        row = self._rows.get(header.api_key)
        if row is None:
            raise ProtocolError(f"there is no API {header.api_key} here")
        if not row.min_version <= header.api_version <= row.max_version:
            self._refuse_version(row, header, pending)
            return
        if connection.is_named_by_client and header.client_id != connection.client_id:
            connection.take_name(header.client_id)
        if not self._quotas.are_set:
            self._pass_or_serve(row, header, connection, buffer, start, position, end, pending)
            return
        charge = self._quotas.charge(connection.principal, header, end - start + 4, now)
        if charge is not None:
            pending = pending.charged(charge)
            charge.narrow(buffer, position, end)
        self._pass_or_serve(row, header, connection, buffer, start, position, end, pending)
        if charge is not None:
            charge.left_to_others()

    def _pass_or_serve(
        self,
        row: _Row,
        header: RequestHeader,
        connection: Caller,
        buffer: bytearray | memoryview,
        start: int,
        position: int,
        end: int,
        pending: Pending,
    ) -> None:
        if connection.forwards and self.forward is not None:
            passed = self.forward(row.api, row.failed, header, connection, buffer, start, position, end, pending)
            if passed:
                return
        self._cells[row.requests] += 1
        access = connection.access
        if access is None or access.rules is not self._authority.rules or access.principal is not connection.principal:
            access = connection.access = self._authority.access(connection.principal, connection.client_host)
            # The same text, not just an equal one, so that the next request need not ask.
            connection.principal = access.principal
        if self._audit is not None:
            access = self._audit.watch(access, header, connection)
        request = Request(header, connection.client_host, connection.principal, connection.listener, access)
        is_allowed = row.is_listed and (row.needs is None or access.allows_cluster(row.needs))
        if row.raw is None:
            self._serve(row, request, is_allowed, buffer, position, end, pending)
        elif not is_allowed:
            # What a client is told per topic is for the handler, which alone reads the topics.
            raise ProtocolError(f"{request.principal} may not {row.api.name}")
        elif self._audit is None or not self._audit.is_stopped(row.api.key):
            self._serve_raw(row, request, buffer, position, end, pending)
        else:
            frame = memoryview(buffer[position:end])
            self._audit.stop(
                pending, lambda: self._serve_raw(row, request, frame, 0, len(frame), pending, is_late=True)
            )

    def _serve_raw(
        self,
        row: _Row,
        request: Request,
        buffer: bytearray | memoryview,
        position: int,
        end: int,
        pending: Pending,
        is_late: bool = False,
    ) -> None:
        assert row.raw is not None
        try:
            row.raw(self._context, request, buffer, position, end, pending)
        except ProtocolError:
            if not is_late:
                raise
            pending.close_connection("protocol")
        except Exception as error:  # noqa: BLE001 - a defect must cost one connection, not the worker
            self._report(row, error)
            pending.close_connection("error")

    @property
    def waiting_count(self) -> int:
        """Requests whose handlers are waiting for something."""
        return len(self._tasks)

    def _refuse_version(self, row: _Row, header: RequestHeader, pending: Pending) -> None:
        if row.api.key != ApiKey.API_VERSIONS or row.failed is None:
            raise ProtocolError(f"{row.api.name} v{header.api_version} is not served")
        code = ErrorCode.UNSUPPORTED_VERSION
        self._cells[row.requests] += 1
        self._answer(row, 0, header.correlation_id, row.failed(None, code, ""), pending)

    def _serve(
        self,
        row: _Row,
        request: Request,
        is_allowed: bool,
        buffer: bytearray | memoryview,
        position: int,
        end: int,
        pending: Pending,
    ) -> None:
        handler = cast("Handler", row.handler)
        header = request.header
        key = None
        audit = self._audit
        may_keep = audit is None or not audit.records_allowed(header.api_key)
        if handler.is_repeatable and may_keep and is_allowed and end - position <= REPEATABLE_REQUEST_BYTES_MAX:
            key = (
                header.api_key,
                header.api_version,
                request.access.scope,
                request.listener,
                bytes(buffer[position:end]),
            )
            kept = self._repeats.get(key)
            if kept is not None:
                pending.answer([_SIZE_AND_CORRELATION.pack(len(kept) + 4, header.correlation_id), kept])
                return
        message = decode_request(row.api, header.api_version, buffer, position, end)
        try:
            if not is_allowed or row.is_off:
                raise _denial(row)
            if audit is not None and handler.is_admin:
                result: Message | Awaitable[Message] = audit.change(
                    row.api, request, message, lambda: handler.handle(self._context, request, message)
                )
            else:
                result = handler.handle(self._context, request, message)
        except Exception as error:  # noqa: BLE001 - turned into an answer
            self._fail(row, header, message, error, pending)
            return
        if not isinstance(result, Message):
            task = asyncio.get_running_loop().create_task(self._wait(row, header, message, result, pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        encoded = self._answer(row, header.api_version, header.correlation_id, result, pending)
        has_told = isinstance(request.access, AuditedAccess) and request.access.told
        if key is not None and encoded is not None and not has_told:
            self._repeats.keep(key, encoded)

    async def _wait(
        self, row: _Row, header: RequestHeader, message: Message, result: Awaitable[Message], pending: Pending
    ) -> None:
        try:
            response = await result
        except Exception as error:  # noqa: BLE001 - turned into an answer
            self._fail(row, header, message, error, pending)
        else:
            self._answer(row, header.api_version, header.correlation_id, response, pending)

    def _answer(
        self, row: _Row, version: int, correlation_id: int, response: Message, pending: Pending
    ) -> list[Buffer] | None:
        for code in error_codes_in(response):
            self._cells[error_cell(code)] += 1
        try:
            encoded = encode_response(row.api, version, correlation_id, response)
        except Exception as error:  # noqa: BLE001 - an answer that can't be written is a defect of ours
            self._report(row, error)
            pending.close_connection("error")
            return None
        pending.answer(encoded)
        return encoded

    def _fail(self, row: _Row, header: RequestHeader, message: Message, error: Exception, pending: Pending) -> None:
        """Answer with what was raised, or close the connection where the answer has no way to say it."""
        code, text = code_of(error)
        if deserves_stack_trace(error):
            self._report(row, error)
        response = None
        if row.failed is not None and not isinstance(error, ProtocolError | Fenced):
            try:
                response = row.failed(message, code, text)
            except Exception as second:  # noqa: BLE001 - as above
                self._report(row, second)
        if response is None:
            pending.close_connection(_close_reason(error))
        else:
            self._answer(row, header.api_version, header.correlation_id, response, pending)

    def _report(self, row: _Row, error: Exception) -> None:
        held = self._surprises.permit((row.api.key, type(error)))
        if held is not None:
            log.error("request failed", exc_info=error, extra={"api": row.api.name, "held_back": held})


def _close_reason(error: Exception) -> str:
    if isinstance(error, ProtocolError):
        return "protocol"
    # A replaced worker's clients find its successor when they connect anew.
    return "fenced" if isinstance(error, Fenced) else "error"


def _denial(row: _Row) -> Invalid:
    """Why the request may not be served, with the code that Kafka gives a client without the right to it."""
    needs = row.requirement
    code = needs.denied if isinstance(needs, OnCluster | PerItem) else ErrorCode.CLUSTER_AUTHORIZATION_FAILED
    if row.is_off:
        return Invalid(code, "admin APIs are switched off on this broker (allow_admin_apis)")
    return Invalid(code, "not authorized")


# API, version, whose rights, listener, body.
_Repeatable = tuple[int, int, object, Listener, bytes]


class _RepeatedAnswers:
    """Encoded answers by request and by what its sender may see, less size and correlation id. Forgotten when the
    cluster's state, its nodes or the rules change."""

    def __init__(self, context: Context) -> None:
        self._cluster = context.cluster
        self._authority = context.authority
        self._state: object = None
        self._nodes: object = None
        self._rules: object = None
        self._answers: dict[_Repeatable, bytes] = {}
        self._size = 0

    def get(self, key: _Repeatable) -> bytes | None:
        if (
            self._cluster.state is not self._state
            or self._cluster.nodes is not self._nodes
            or self._authority.rules is not self._rules
        ):
            self._state = self._cluster.state
            self._nodes = self._cluster.nodes
            self._rules = self._authority.rules
            self._answers.clear()
            self._size = 0
        return self._answers.get(key)

    def keep(self, key: _Repeatable, encoded: list[Buffer]) -> None:
        answer = b"".join(encoded)[_SIZE_AND_CORRELATION.size :]
        size = len(answer) + len(key[4]) + 200
        if size > REPEATABLE_BYTES_MAX:
            return
        if self._size + size > REPEATABLE_BYTES_MAX:
            self._answers.clear()
            self._size = 0
        self._answers[key] = answer
        self._size += size
