"""A client as it is known to other workers: its channels to them, and who it is for the parts that are served here.

Made when the first request of a connection is passed on, closed with the connection, which calls off everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from workers.caller import Caller
from workers.forwarding.producer_order import NumberedBatch, ProducerOrder
from workers.peers.frames import Identity
from workers.refused_batches import RefusedBatches

if TYPE_CHECKING:
    from workers.connection import Connection
    from workers.peers.outgoing import Channel
    from workers.peers.peers import Peers


class PassingClient:
    """Owns the channels of one connection."""

    __slots__ = ("_channels", "_held", "_local", "_peers", "_retired", "cells", "connection", "order")

    def __init__(self, connection: Connection, peers: Peers) -> None:
        self.connection = connection
        self.cells = peers.cells
        self._peers = peers
        self._channels: dict[int, Channel] = {}
        # Those of links that take no more, on which something is still asked.
        self._retired: list[Channel] = []
        self._held = 0
        self._local: Caller | None = None
        # One record for what is refused here, of requests of any kind, and elsewhere.
        if connection.refused_batches is None:
            connection.refused_batches = RefusedBatches()
        self.order = ProducerOrder(connection.refused_batches)

    def channel(self, node_id: int) -> Channel | None:
        """The channel to a node, as who the client is now; None if the node can't be had at the moment."""
        connection = self.connection
        channel = self._channels.get(node_id)
        if channel is not None:
            if channel.is_usable and channel.identity.principal == connection.principal:
                return channel
            del self._channels[node_id]
            self._retired = [old for old in (*self._retired, channel) if old.requests]
        link = self._peers.link(node_id)
        if link is None:
            return None
        identity = Identity(connection.principal, connection.client_host, connection.listener.name)
        channel = self._channels[node_id] = link.open_channel(identity)
        return channel

    @property
    def local(self) -> Caller:
        """Who asks for the parts that are served here."""
        connection = self.connection
        local = self._local
        if local is None or local.principal != connection.principal:
            local = self._local = Caller(
                connection.listener, connection.client_host, connection.principal, forwards=False
            )
            local.refused_batches = connection.refused_batches
        return local

    def note_refused(self, batches: Sequence[NumberedBatch], codes: Iterable[tuple[str | bytes, int, int]]) -> None:
        """Of these batches some were answered with an error: (topic, partition, code)."""
        if batches:
            self.order.refused(batches, codes)
            # The short way does not look at what was refused.
            self.connection.repeated_produce = None

    def held(self) -> None:
        """A request can't be sent yet: the connection is not read meanwhile."""
        self._held += 1
        self.connection.hold_back()

    def sent(self) -> None:
        """It was sent."""
        self._held -= 1
        if not self._held:
            self.connection.release_held()

    def close(self) -> None:
        for channel in (*self._channels.values(), *self._retired):
            channel.close()
        self._channels.clear()
        self._retired.clear()
