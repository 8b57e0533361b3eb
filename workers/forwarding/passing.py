"""A request that concerns one other worker: passed on as it came, and its answer passed back as it comes.

Owns the place of the answer. The answer of a request that is first in its connection's order goes out piece by piece,
and more of it is granted as the client takes it: a slow client costs a window's memory, no more. That of a pipelined
Produce, which is small, waits whole for its turn. A client never hears of the hop but by an error that it retries.
"""

from __future__ import annotations

from collections.abc import Callable

from kafscale.metrics import PASSED_FAILED
from kafscale.protocol.schema import Buffer
from workers.forwarding.clients import PassingClient
from workers.peers.frames import ERRORS
from workers.peers.outgoing import ANSWER_WINDOW_BYTES, PassedRequest
from workers.pending import OrderedPending

# What is told to clients by closing their connection, whoever's it is.
CLOSING_REASONS = frozenset({"protocol", "error", "too_large", "slow_request"})
# More is granted once so much was taken: half a window, so that the owner never waits for it.
GRANT_BYTES = ANSWER_WINDOW_BYTES // 4

# Makes the answer that says of everything that it was lost; None: close instead.
Failure = Callable[[], list[Buffer] | None]
# Serves a request here, where its owner could not be asked: that the owner is another is an answer, too.
ServeHere = Callable[[memoryview, OrderedPending], None]


class Passing:
    """The asker of one request (see `workers.peers.outgoing.Asker`)."""

    __slots__ = ("_client", "_failure", "_has_begun", "_owed", "_parts", "_pending", "_serve_here", "request")

    def __init__(
        self, client: PassingClient, pending: OrderedPending, failure: Failure, serve_here: ServeHere | None
    ) -> None:
        self._client = client
        self._pending = pending
        self._failure = failure
        self._serve_here = serve_here
        self._parts: list[bytes] = []
        self._has_begun = False
        self._owed = 0
        self.request: PassedRequest | None = None

    def held(self) -> None:
        self._client.held()

    def sent(self) -> None:
        self._client.sent()

    def answered(self, data: bytes, is_last: bool, flags: int) -> None:
        pending = self._pending
        if is_last:
            self.ended(data, has_errors=flags & ERRORS != 0)
            pending.on_writable = None
            pending.answer([*self._parts, data] if self._parts else data)
        elif not pending.is_first:
            self._parts.append(data)
        else:
            for part in self._parts:
                pending.answer_part(part)
            self._parts.clear()
            self._has_begun = True
            pending.answer_part(data)
            self._owed += len(data)
            if self._client.connection.is_congested:
                pending.on_writable = self._grant
            elif self._owed >= GRANT_BYTES:
                self._grant()

    def _grant(self) -> None:
        owed, self._owed = self._owed, 0
        if owed and self.request is not None:
            self.request.grant(owed)

    def unanswered(self) -> None:
        self.ended(b"", has_errors=False)
        self._pending.answer(None)

    def ended(self, answer: bytes, *, has_errors: bool) -> None:
        """The owner is done with the request; its answer is about to go out. Empty where there is none."""

    def was_lost(self, was_sent: bool) -> None:
        """The owner could not be asked, or can't answer any more."""

    def found(self, byte_count: int) -> None:
        """Of no interest: the owner knows of the whole request."""

    def failed(self, reason: str, was_sent: bool) -> None:
        pending = self._pending
        pending.on_writable = None
        if reason in CLOSING_REASONS:
            # With the connection goes all that is known of it.
            pending.close_connection(reason)
            return
        self._client.cells[PASSED_FAILED.at("lost" if was_sent else "unsent")] += 1
        self.was_lost(was_sent)
        request = self.request
        if not was_sent and self._serve_here is not None and request is not None:
            self._serve_here(request.frame, pending)
            return
        answer = None if self._has_begun else self._failure()
        if answer is None:
            pending.close_connection("peer")
        else:
            pending.answer(answer)
