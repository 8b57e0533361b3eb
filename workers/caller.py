"""Who asks: what dispatch and handlers know of a client's connection, be it one to this worker or one to another worker
that passes the client's requests on.

A `Caller` has no bytes and no socket. Who makes one vouches for what it says: a connection for what it has seen itself,
a link to another worker for what that one has proven its right to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kafscale.security.access import ANONYMOUS, Access
from kafscale.security.principals import principal_of

if TYPE_CHECKING:
    from workers.listener import Listener
    from workers.pending import Pending
    from workers.refused_batches import RefusedBatches
    from workers.repeated_produce import RepeatedProduce
    from workers.zones import SentAway


class Gate(Protocol):
    """Stands before dispatch: true if it has dealt with the request. Raises ProtocolError."""

    def intercept(self, buffer: bytearray | memoryview, start: int, end: int, pending: Pending, now: float) -> bool: ...


class Caller:
    """`listener`: the address that the client came to. `forwards`: whether requests that concern other workers are
    passed on to them. `repeated_produce`: how to serve a Produce that is like an earlier one; None until there is one.
    `refused_batches`: what of its producers' has to come again first; None while nothing was refused. `access`: what
    the principal may do; None until it asks for something. `records_at`: where in a large Produce its records are
    likely to begin, as they did in the last one; memory for the next is chosen by that. `gate`: what every request must
    pass first, if anything. `is_named_by_client`: the principal is what each request's client id says. `sent_away`:
    what it was told to read in its own zone; None while that was nothing."""

    __slots__ = (
        "access",
        "client_host",
        "client_id",
        "forwards",
        "gate",
        "is_named_by_client",
        "listener",
        "principal",
        "records_at",
        "refused_batches",
        "repeated_produce",
        "sent_away",
    )

    def __init__(self, listener: Listener, client_host: str, principal: str, *, forwards: bool) -> None:
        self.listener = listener
        self.forwards = forwards
        self.client_host = client_host
        self.principal = principal
        self.repeated_produce: RepeatedProduce | None = None
        self.refused_batches: RefusedBatches | None = None
        self.access: Access | None = None
        self.records_at = 0
        self.sent_away: SentAway | None = None
        self.gate: Gate | None = None
        self.is_named_by_client = False
        # The client id that the principal was made of.
        self.client_id: str | None = None

    def take_name(self, client_id: str | None) -> None:
        """From now on the client is who it says."""
        self.client_id = client_id
        self.principal = principal_of(client_id) if client_id and not client_id.isspace() else ANONYMOUS
