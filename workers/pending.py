"""Where the answer to one request goes: to its place in its connection's order, or elsewhere.

A `Pending` belongs to whoever serves the request, until it is answered or closed, once. What a connection makes of it
(`OrderedPending`) keeps the order of the requests; answers that are charged to a quota pass that on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from kafscale.protocol.fetch import FetchResult
from kafscale.protocol.schema import Buffer
from workers.caller import Caller

if TYPE_CHECKING:
    from workers.connection import Connection
    from workers.quotas import Charge

Answer = Buffer | list[Buffer]


class Pending:
    """Where one request's answer goes. To be answered exactly once, or closed.

    `on_close` is called, once, if the client goes away first; nothing need be answered then. `on_hurry` is called if
    the answer is wanted now, with whatever there is: for a request that waits for more. `wants_results`: a Fetch is
    answered by `give_results`, not encoded.
    """

    __slots__ = ("on_close", "on_hurry")

    def __init__(self) -> None:
        self.on_close: Callable[[], None] | None = None
        self.on_hurry: Callable[[], None] | None = None

    @property
    def caller(self) -> Caller:
        """Who asked."""
        raise NotImplementedError

    @property
    def wants_results(self) -> bool:
        return False

    def answer(self, buffers: Answer | None) -> None:
        """Give the bytes of the answer, size and header included; None where the request gets no answer (acks=0).

        Buffers must stay unchanged until they are written.
        """
        raise NotImplementedError

    def answer_with_others(self, buffers: Answer) -> None:
        """`answer`, for one of many answers that are given together: they go out at the end of the loop's turn, and
        what waits for them begins then."""
        self.answer(buffers)

    def close_connection(self, reason: str) -> None:
        """In place of an answer: close the connection, once everything before it is answered. Counted by `reason`."""
        raise NotImplementedError

    def give_results(self, results: Sequence[FetchResult]) -> None:
        """Answer a Fetch of which other workers serve a part. Only where `wants_results`."""
        raise NotImplementedError

    def charged(self, charge: Charge) -> Pending:
        """Where the answer goes from now on, so that its client is charged for the request. The same, and nothing done,
        where others see to that."""
        return self

    def note_errors(self) -> None:
        """Some of what a Produce sent is refused. Of interest where others must know before the client does."""

    def report(self, found: int) -> None:
        """A Fetch that waits for more has found so many bytes. Of interest where others look for the rest."""


class OrderedPending(Pending):
    """The place of a request's answer in its connection's order: it goes out once everything before it did."""

    __slots__ = ("_answer", "_close_reason", "_connection", "_is_answered", "_next", "on_writable")

    def __init__(self, connection: Connection) -> None:
        self.on_close = None
        self.on_hurry = None
        # For an answer in parts: called when the client takes more again.
        self.on_writable: Callable[[], None] | None = None
        self._connection = connection
        self._next: OrderedPending | None = None
        self._answer: Answer | None = None
        self._is_answered = False
        self._close_reason: str | None = None

    @property
    def caller(self) -> Connection:
        return self._connection

    def answer(self, buffers: Answer | None) -> None:
        assert not self._is_answered, "a request was answered twice"
        self._is_answered = True
        self._answer = buffers
        connection = self._connection
        if connection.head is self:
            connection.emit()

    def answer_with_others(self, buffers: Answer) -> None:
        assert not self._is_answered, "a request was answered twice"
        self._is_answered = True
        self._answer = buffers
        connection = self._connection
        if connection.head is self and not connection.is_dirty:
            connection._shared.mark_dirty(connection)

    def close_connection(self, reason: str) -> None:
        self._close_reason = reason
        self.answer(None)

    def answer_and_close(self, buffers: Answer | None, reason: str) -> None:
        """Answer, and close the connection behind it."""
        self._close_reason = reason
        self.answer(buffers)

    @property
    def is_first(self) -> bool:
        """Whether everything before it is answered, so that it may be answered in parts."""
        return self._connection.head is self

    def answer_part(self, buffer: Buffer) -> None:
        """Give some bytes of the answer, while `is_first`; `answer` ends it with the last."""
        assert self._connection.head is self and not self._is_answered
        self._connection.emit_part(buffer)

    def charged(self, charge: Charge) -> Pending:
        charged = ChargedPending(self._connection)
        self._connection.begin_charging(self, charged)
        return charged.charged(charge)


class ChargedPending(OrderedPending):
    """The same, on a connection whose requests may be charged to somebody's quota. Those of all others cost nothing."""

    __slots__ = ("_charge",)

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._charge: Charge | None = None

    def charged(self, charge: Charge) -> Pending:
        # What could not be passed on and is served here has been charged before.
        if self._charge is None:
            self._charge = charge
            charge.begin(self._connection)
        return self

    def answer(self, buffers: Answer | None) -> None:
        super().answer(self._settled(buffers))

    def answer_with_others(self, buffers: Answer) -> None:
        super().answer_with_others(cast("Answer", self._settled(buffers)))

    def answer_part(self, buffer: Buffer) -> None:
        charge, self._charge = self._charge, None
        super().answer_part(buffer if charge is None else charge.settle_parts(self._connection, buffer))

    def _settled(self, answer: Answer | None) -> Answer | None:
        charge, self._charge = self._charge, None
        return answer if charge is None else charge.settle(self._connection, answer)
