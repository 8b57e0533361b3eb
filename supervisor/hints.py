"""Telling other brokers' supervisors that a slot was released, so that its new owner need not wait until it looks.

A datagram each, to the number of the port that serves /metrics: sent once, answered never, and lost without harm, since
new owners look in the store anyway. Where the cluster has a secret, one that is not sealed with it is dropped. An old
one that is sent again does no harm: a hint is handed on only where the cluster log says that this very release is
awaited here, and the worker believes the store alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from kafscale.clock import Clock
from kafscale.control import PeerReleased
from kafscale.coordination.cluster import ClusterState
from kafscale.logs import RateLimited
from kafscale.security.cluster_secret import ClusterSecret

log = logging.getLogger(__name__)

# What fits into a datagram that no network cuts.
SLOTS_PER_DATAGRAM = 64
MAX_DATAGRAM_BYTES = 1200
SEAL_LABEL = b"a slot was released"
COMPLAINT_INTERVAL_SECONDS = 10.0

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerReleased)


class Hints(asyncio.DatagramProtocol):
    """One socket for both ways. `deliver` gets every hint that can be read and, with a secret, is genuine."""

    def __init__(
        self, deliver: Callable[[PeerReleased], None], clock: Clock, secret: ClusterSecret | None = None
    ) -> None:
        self._deliver = deliver
        self._secret = secret
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)
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
            payload = _encoder.encode(part)
            if self._secret is not None:
                payload = self._secret.seal(SEAL_LABEL, payload)
            if self._transport is not None:
                self._transport.sendto(payload, found[0][4])

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
        payload = data if self._secret is None else self._secret.open(SEAL_LABEL, data)
        if payload is None:
            self._complaints.log(
                log,
                logging.WARNING,
                "a hint was dropped: it is not sealed with the cluster's secret",
                sender=str(addr)[:100],
            )
            return
        try:
            hint = _decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
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
