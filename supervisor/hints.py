"""Telling other brokers' supervisors that a slot was released, so that its new owner need not wait until it looks.

A datagram each, sent once, answered never, and lost without harm, since new owners look in the store anyway. Brokers
register where they are reached (`Member.peer`): at the host at which other brokers reach them, by the port number of
/metrics. Hints arrive on the first listener's host, as links between brokers do; /metrics may be on another. Where the
cluster has a secret, one that is not sealed with it is dropped. A forged one, or an old one that is sent again, costs
reads of the store and holds nothing up: a hint is handed on only where the cluster log says that this very release is
awaited here, and the worker believes the store alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from kafscale.clock import Clock
from kafscale.config import Endpoint
from kafscale.control import PeerReleased
from kafscale.coordination.cluster import ClusterState
from kafscale.errors import StartError
from kafscale.logs import RateLimited
from kafscale.security.cluster_secret import ClusterSecret
from supervisor.sockets import bind_hints

log = logging.getLogger(__name__)

# What fits into a datagram that no network cuts.
SLOTS_PER_DATAGRAM = 64
MAX_DATAGRAM_BYTES = 1200
# Of a name that has many, so many are told.
ADDRESSES_PER_PEER = 8
SEAL_LABEL = b"a slot was released"
COMPLAINT_INTERVAL_SECONDS = 10.0

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerReleased)


class Hints(asyncio.DatagramProtocol):
    """Owns the socket that hints come to. `deliver` gets every one that can be read and, with a secret, is genuine."""

    def __init__(
        self, deliver: Callable[[PeerReleased], None], clock: Clock, secret: ClusterSecret | None = None
    ) -> None:
        self._deliver = deliver
        self._secret = secret
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, listen: Endpoint) -> None:
        """Listen. Where that fails this broker gets no hints."""
        try:
            bound = bind_hints(listen)
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=bound)
        except (OSError, StartError) as error:
            log.warning("no hints from other brokers", extra={"listen": str(listen), "cause": str(error)})

    async def send(self, peer: str, hint: PeerReleased) -> None:
        """Tell the supervisor at `peer` ("host:port"), at every address that its name has: which of them leads there
        can't be seen. What fails is said in the log, at times, and forgotten."""
        payloads = self._payloads(hint)
        try:
            endpoint = Endpoint.parse(peer)
            found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
            sent = [_send(family, address, payloads) for family, _, _, _, address in found[:ADDRESSES_PER_PEER]]
            cause: object = None if None in sent else next(iter(sent), "its name has no address")
        except (OSError, ValueError) as error:
            cause = error
        if cause is not None:
            self._complaints.log(log, logging.WARNING, "a hint could not be sent", peer=peer, cause=str(cause))

    def _payloads(self, hint: PeerReleased) -> list[bytes]:
        slots = sorted(hint.slots.items())
        parts = [dict(slots[start : start + SLOTS_PER_DATAGRAM]) for start in range(0, len(slots), SLOTS_PER_DATAGRAM)]
        payloads = [_encoder.encode(PeerReleased(hint.log_id, part, hint.sequence)) for part in parts]
        return payloads if self._secret is None else [self._secret.seal(SEAL_LABEL, payload) for payload in payloads]

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


def _send(family: int, address: tuple[object, ...], payloads: Sequence[bytes]) -> OSError | None:
    """Send from a socket of that family, which the kernel gives the address that leads there; returns what failed."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as outlet:
            outlet.setblocking(False)
            for payload in payloads:
                outlet.sendto(payload, address)
    except OSError as error:
        return error
    return None


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
