"""A request that concerns several workers: its parts asked for at the same time, and one answer made of theirs.

Owns the place of the answer and the parts that are out. A part is a request of the same version; what is served here is
dispatched here, like any request. A part that fails is answered with an error that clients retry, in its owner's place;
a part that closes its connection closes the client's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kafscale.errors import ProtocolError
from kafscale.metrics import PASSED_FAILED, PASSED_PARTS
from kafscale.protocol.api import Api, decode_response, encode_request, encode_response
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.schema import Buffer, Message
from workers.caller import Caller
from workers.connections import Dispatch
from workers.forwarding.clients import PassingClient
from workers.forwarding.passing import CLOSING_REASONS
from workers.peers.outgoing import PassedRequest
from workers.pending import Answer, OrderedPending, Pending

log = logging.getLogger(__name__)


class Gathering:
    """One request in parts. `merge` makes the answer of the parts' answers by node, None where a part gets none;
    `failed` the answer of a part that was lost. `is_whole`: one that could not be asked is lost, too; else it is asked
    for here, where its owner is known to be another."""

    def __init__(
        self,
        client: PassingClient,
        dispatch: Dispatch,
        api: Api,
        header: RequestHeader,
        pending: OrderedPending,
        merge: Callable[[Mapping[int, Any]], Message],
        failed: Callable[[int], Message | None],
        *,
        is_whole: bool,
    ) -> None:
        self._client = client
        self._dispatch = dispatch
        self._api = api
        self._header = header
        self._pending = pending
        self._merge = merge
        self._failed = failed
        self._is_whole = is_whole
        self._parts: Mapping[int, Message] = {}
        self._waiting: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._local: list[LocalPart] = []
        self._is_over = False

    def ask(self, parts: Mapping[int, Message], own: int) -> None:
        """Ask for every part. `own`: this worker's node id."""
        self._parts = parts
        self._waiting.update(parts)
        self._pending.on_close = self._abandon
        for node in sorted(parts, key=lambda node: node == own):
            if self._is_over:
                return
            if node == own:
                self._ask_here(node)
            else:
                self._ask_there(node)

    def _request_of(self, node: int) -> list[Buffer]:
        header = self._header
        request = encode_request(
            self._api, header.api_version, header.correlation_id, header.client_id, self._parts[node]
        )
        # Behind the size, which is the first four bytes.
        request[0] = memoryview(request[0])[4:]
        return request

    def _ask_here(self, node: int) -> None:
        # Writable: batches are stamped where they lie.
        frame = memoryview(bytearray(b"".join(self._request_of(node))))
        part = LocalPart(self, node, self._client.local)
        self._local.append(part)
        try:
            self._dispatch(self._client.local, frame, 0, len(frame), part)
        except ProtocolError:
            part.close_connection("protocol")

    def _ask_there(self, node: int) -> None:
        self._client.cells[PASSED_PARTS] += 1
        part = RemotePart(self, node, self._client)
        channel = self._client.channel(node)
        if channel is None:
            part.failed("can't be reached", False)
        else:
            part.request = channel.request(self._request_of(node), part)

    # What the parts say

    def got(self, node: int, raw: Buffer) -> None:
        """A part's answer, as bytes for a client."""
        try:
            _, answer = decode_response(self._api, self._header.api_version, raw, 4, len(raw))
        except ProtocolError:
            log.exception("a part's answer can't be read")
            self.close("error")
            return
        self._done(node, answer)

    def got_nothing(self, node: int) -> None:
        """The part gets no answer."""
        self._done(node, None)

    def lost(self, node: int, was_sent: bool) -> None:
        """The part could not be asked, or its answer was lost."""
        self._client.cells[PASSED_FAILED.at("lost" if was_sent else "unsent")] += 1
        if self._is_over:
            return
        if not was_sent and not self._is_whole:
            self._ask_here(node)
            return
        answer = self._failed(node)
        if answer is None:
            self.close("peer")
        else:
            self._done(node, answer)

    def close(self, reason: str) -> None:
        """Close the client's connection."""
        if not self._is_over:
            self._is_over = True
            self._pending.on_close = None
            self._pending.close_connection(reason)

    def _done(self, node: int, answer: Any) -> None:
        if self._is_over:
            return
        self._answers[node] = answer
        self._waiting.discard(node)
        if self._waiting:
            return
        self._is_over = True
        self._pending.on_close = None
        if all(answer is None for answer in self._answers.values()):
            self._pending.answer(None)
            return
        header = self._header
        try:
            merged = self._merge(self._answers)
            encoded = encode_response(self._api, header.api_version, header.correlation_id, merged)
        except Exception:
            # A defect must cost one connection, not the worker.
            log.exception("the parts of an answer can't be joined", extra={"api": self._api.name})
            self._pending.close_connection("error")
        else:
            self._pending.answer(encoded)

    def _abandon(self) -> None:
        """The client is gone. What others do for it is called off with its channels."""
        self._is_over = True
        for part in self._local:
            if part.on_close is not None:
                part.on_close()


class RemotePart:
    """The asker of a part (see `workers.peers.outgoing.Asker`)."""

    __slots__ = ("_client", "_data", "_gathering", "_node", "request")

    def __init__(self, gathering: Gathering, node: int, client: PassingClient) -> None:
        self._gathering = gathering
        self._node = node
        self._client = client
        self._data: list[bytes] = []
        self.request: PassedRequest | None = None

    def held(self) -> None:
        self._client.held()

    def sent(self) -> None:
        self._client.sent()

    def answered(self, data: bytes, is_last: bool, flags: int) -> None:
        self._data.append(data)
        if is_last:
            self._gathering.got(self._node, b"".join(self._data))
        elif self.request is not None:
            # As large as it is: one owner of everything would have made it in one piece, too.
            self.request.grant(len(data))

    def unanswered(self) -> None:
        self._gathering.got_nothing(self._node)

    def found(self, byte_count: int) -> None:
        """Only fetches find something, and these are joined elsewhere."""

    def failed(self, reason: str, was_sent: bool) -> None:
        if reason in CLOSING_REASONS:
            self._gathering.close(reason)
        else:
            self._gathering.lost(self._node, was_sent)


class LocalPart(Pending):
    """The place of the answer to the part that is served here."""

    __slots__ = ("_caller", "_gathering", "_node")

    def __init__(self, gathering: Gathering, node: int, caller: Caller) -> None:
        super().__init__()
        self._gathering = gathering
        self._node = node
        self._caller = caller

    @property
    def caller(self) -> Caller:
        return self._caller

    def answer(self, buffers: Answer | None) -> None:
        if buffers is None:
            self._gathering.got_nothing(self._node)
        else:
            self._gathering.got(self._node, b"".join(buffers) if isinstance(buffers, list) else buffers)

    def close_connection(self, reason: str) -> None:
        if reason in CLOSING_REASONS:
            self._gathering.close(reason)
        else:
            self._gathering.lost(self._node, True)
