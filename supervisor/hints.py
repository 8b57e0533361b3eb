"""Telling other brokers' supervisors that a slot was released, so that its new owner need not wait until it looks.

A datagram each, to the number of the port that serves /metrics: sent once, answered never, and lost without harm, since
new owners look in the store anyway. What comes in is as good as its sender, who is nobody known: it is handed on only
where the cluster log says that this very release is awaited here, and the worker believes the store alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from kafscale.control import PeerReleased
from kafscale.coordination.cluster import ClusterState

log = logging.getLogger(__name__)

# What fits into a datagram that no network cuts.
SLOTS_PER_DATAGRAM = 64
MAX_DATAGRAM_BYTES = 1200

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerReleased)


class Hints(asyncio.DatagramProtocol):
    """One socket for both ways. `deliver` gets every hint that can be read."""

    def __init__(self, deliver: Callable[[PeerReleased], None]) -> None:
        self._deliver = deliver
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Where that fails this broker gets and sends no hints."""
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=(host, port))
        except OSError as error:
            log.warning("no hints between brokers", extra={"port": port, "cause": str(error)})

    async def send(self, peer: str, hint: PeerReleased) -> None:
        """Tell the supervisor at `peer` ("host:port"). What fails is forgotten."""
        host, _, port = peer.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port))
        except (OSError, ValueError):
            return
        slots = sorted(hint.slots.items())
        for start in range(0, len(slots), SLOTS_PER_DATAGRAM):
            part = PeerReleased(hint.log_id, dict(slots[start : start + SLOTS_PER_DATAGRAM]), hint.sequence)
            if self._transport is not None:
                self._transport.sendto(_encoder.encode(part), found[0][4])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # asyncio.DatagramProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is none by inheritance

    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) > MAX_DATAGRAM_BYTES:
            return
        try:
            hint = _decoder.decode(data)
        except msgspec.MsgspecError:
            return
        self._deliver(hint)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there."""


def awaited(state: ClusterState, hint: PeerReleased, log_ids: Sequence[str]) -> dict[str, PeerReleased]:
    """What of the hint the owners among `log_ids` wait for, by owner."""
    found: dict[str, dict[int, int]] = {}
    for slot, epoch in hint.slots.items():
        if not 0 <= slot < len(state.slots) or not state.slots[slot]:
            continue
        *earlier, owner = state.slots[slot]
        if owner.log_id in log_ids and any(e.epoch == epoch and e.log_id == hint.log_id for e in earlier):
            found.setdefault(owner.log_id, {})[slot] = epoch
    return {log_id: PeerReleased(hint.log_id, slots, hint.sequence) for log_id, slots in found.items()}
