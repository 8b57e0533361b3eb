"""The listening sockets: which ports, bound once, before any worker exists, and kept open until the broker ends.

The shared ones are bound here and begin to listen in the worker that accepts on them: the kernel spreads connections
over those SO_REUSEPORT sockets that listen, so one that listened before its worker is ready would collect connections
that nobody reads. The private ones listen at once. A copy of all stays open here, so that a worker's restart loses no
connection that waits in its backlog.
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from kafscale.config import Endpoint
from kafscale.config.listeners import ListenerSettings
from kafscale.control import ListenerSockets, NodeAddress, PeerSockets
from kafscale.errors import StartError

PRIVATE_PORT_OFFSET = 10_000
PEER_PORT_OFFSET = 20_000
BACKLOG = 4096


class BoundListener:
    """One listener: a shared bootstrap port, with a socket for each of `workers` workers, and a private port for each,
    unless it is behind a shared address (`is_shared`). `setting` is what a person would change."""

    def __init__(
        self,
        listen: Endpoint,
        worker_ports: int | None,
        workers: int,
        setting: str = "--listen",
        *,
        is_shared: bool = False,
    ) -> None:
        """Raises StartError if a port is taken or the address is none of this machine's."""
        with ExitStack() as undo:
            self._claim = undo.enter_context(_claim(listen, setting))
            _probe(listen, setting)
            first = undo.enter_context(_bound(listen, shared=True, setting=setting))
            host, port = first.getsockname()[:2]
            # The bootstrap address, with the port that was bound.
            self.endpoint = Endpoint(host, port)
            self.bootstrap = [first]
            for _ in range(1, workers):
                bound = _bound(self.endpoint, shared=True, setting=setting)
                self.bootstrap.append(undo.enter_context(bound))
            ports = [] if is_shared else _near(self.endpoint, worker_ports, PRIVATE_PORT_OFFSET, workers)
            self.private = [undo.enter_context(bound) for bound in ports]
            # Noted, since they are told of after the sockets are closed too.
            self.private_ports = [_port(bound) for bound in self.private]
            undo.pop_all()

    def descriptors(self) -> list[int]:
        """What workers inherit."""
        return [bound.fileno() for bound in (*self.bootstrap, *self.private)]

    def close(self) -> None:
        """Give the ports back, as far as this process goes."""
        for bound in (*self.bootstrap, *self.private, self._claim):
            bound.close()


class MeetingPlaces:
    """Where workers meet: a socket of each for its siblings, which nobody outside this machine reaches, and with
    `peer_host`, under which others know this broker, a port of each for other brokers' workers."""

    def __init__(self, listen: Endpoint, workers: int, peer_host: str | None, peer_ports: int | None) -> None:
        """`listen` is the address whose neighbouring ports are taken by default. Raises StartError."""
        self.host = peer_host
        # 128 random bits: no other broker's, and nobody's to guess.
        self.sibling_name = f"\0kafscale-worker-{secrets.token_hex(16)}-"
        self.siblings: list[socket.socket] = []
        self.peers: list[socket.socket] = []
        with ExitStack() as undo:
            for index in range(workers):
                self.siblings.append(undo.enter_context(_listening_siblings(f"{self.sibling_name}{index}")))
            if peer_host is not None:
                found = _near(listen, peer_ports, PEER_PORT_OFFSET, workers, "--peer-ports")
                self.peers = [undo.enter_context(bound) for bound in found]
            self._peer_ports = [_port(bound) for bound in self.peers]
            undo.pop_all()

    def peer(self, index: int) -> str:
        """Where other brokers' workers reach the worker of this index; empty for nowhere."""
        if self.host is None:
            return ""
        return str(Endpoint(self.host, self._peer_ports[index]))

    def sockets(self, worker_index: int) -> PeerSockets:
        """What the worker finds of them among its descriptors."""
        peer_fd = self.peers[worker_index].fileno() if self.peers else -1
        return PeerSockets(self.siblings[worker_index].fileno(), self.sibling_name, peer_fd)

    def descriptors(self) -> list[int]:
        return [bound.fileno() for bound in (*self.siblings, *self.peers)]

    def close(self) -> None:
        for bound in (*self.siblings, *self.peers):
            bound.close()


class Listeners:
    """The listeners of a broker, by name; and where its workers meet, if one of them is behind a shared address."""

    def __init__(
        self,
        listeners: Sequence[ListenerSettings],
        workers: int,
        peer_host: str | None = None,
        peer_ports: int | None = None,
    ) -> None:
        """`peer_host` and `peer_ports` as for `MeetingPlaces`. Raises StartError, as `BoundListener`."""
        self.settings = tuple(listeners)
        self.bound: dict[str, BoundListener] = {}
        self.meeting_places: MeetingPlaces | None = None
        try:
            for listener in listeners:
                setting = "--listen" if len(listeners) == 1 else f"listener {listener.name}"
                self.bound[listener.name] = BoundListener(
                    listener.listen,
                    listener.worker_ports,
                    workers,
                    setting,
                    is_shared=bool(listener.shared_address),
                )
            if any(listener.shared_address for listener in listeners):
                first = self.bound[listeners[0].name].endpoint
                self.meeting_places = MeetingPlaces(first, workers, peer_host, peer_ports)
        except BaseException:
            self.close()
            raise

    def resolved(self) -> tuple[ListenerSettings, ...]:
        """The listeners with the ports that were bound, and with what clients are told."""
        found = []
        for listener in self.settings:
            port = self.bound[listener.name].endpoint.port
            told = listener.advertised
            listen = Endpoint(listener.listen.host, port)
            advertise = Endpoint(told.host, told.port or port)
            found.append(msgspec.structs.replace(listener, listen=listen, advertise=advertise))
        return tuple(found)

    def nodes(self, node_ids: Sequence[int]) -> list[NodeAddress]:
        """The workers as clients are told of them, by worker index."""
        first, *others = self.settings
        resolved = self.resolved()
        found = []
        for index, node_id in enumerate(node_ids):
            told = {one.name: (one.advertised.host, self._port(one, index)) for one in resolved}
            peer = "" if self.meeting_places is None else self.meeting_places.peer(index)
            found.append(NodeAddress(node_id, *told[first.name], addresses=told if others else {}, peer=peer))
        return found

    def _port(self, listener: ListenerSettings, worker_index: int) -> int:
        """Where clients reach the worker: by a port of its own, or the one that leads to any."""
        private_ports = self.bound[listener.name].private_ports
        return private_ports[worker_index] if private_ports else listener.advertised.port

    def sockets(self, worker_index: int) -> list[ListenerSockets]:
        """What the worker finds of them among its descriptors."""
        return [
            ListenerSockets(
                name,
                [one.fileno() for one in bound.bootstrap],
                bound.private[worker_index].fileno() if bound.private else -1,
            )
            for name, bound in self.bound.items()
        ]

    def peer_sockets(self, worker_index: int) -> PeerSockets | None:
        """Where the worker meets others."""
        return None if self.meeting_places is None else self.meeting_places.sockets(worker_index)

    def descriptors(self) -> list[int]:
        """What workers inherit."""
        meeting = [] if self.meeting_places is None else self.meeting_places.descriptors()
        return [*(fd for bound in self.bound.values() for fd in bound.descriptors()), *meeting]

    def close(self) -> None:
        for bound in self.bound.values():
            bound.close()
        if self.meeting_places is not None:
            self.meeting_places.close()


def bind_http(endpoint: Endpoint) -> socket.socket:
    """A listening socket for /metrics and the like. Raises StartError."""
    return _listening(endpoint, "--metrics")


def bind_hints(endpoint: Endpoint) -> socket.socket:
    """A socket for datagrams of other brokers' supervisors (`hints.py`). Raises StartError."""
    return _bound(endpoint, shared=False, setting="--metrics", kind=socket.SOCK_DGRAM)


def _port(bound: socket.socket) -> int:
    port: int = bound.getsockname()[1]
    return port


def _claim(endpoint: Endpoint, setting: str) -> socket.socket:
    """Hold the address against another Kafscale that starts at the same moment.

    Bound sockets that don't listen yet are seen by no probe that allows for TIME_WAIT. A name in Linux's abstract
    namespace (unix(7)) belongs to one process and goes away with it.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if endpoint.port:
        try:
            claim.bind(f"\0kafscale-listen-{endpoint.port}-{endpoint.host}")
        except OSError as error:
            claim.close()
            if error.errno == errno.EADDRINUSE:
                raise StartError(_taken(endpoint, setting)) from error
            raise
    return claim


def _probe(endpoint: Endpoint, setting: str) -> None:
    """Make sure that nobody has the port: with SO_REUSEPORT a second bind by the same user would succeed."""
    _bound(endpoint, shared=False, setting=setting).close()


def _bound(
    endpoint: Endpoint, *, shared: bool, setting: str, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    family, address = _resolve(endpoint, setting)
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            # Lets a port be bound whose old connections are in TIME_WAIT; not one that listens. (One for datagrams
            # could be taken from whoever has it.)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if endpoint.is_wildcard else 1)
        bound.setblocking(False)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(_taken(endpoint, setting)) from error
        raise StartError(f"{setting} {endpoint}: {error.strerror or error}") from error
    return bound


def _listening(endpoint: Endpoint, setting: str) -> socket.socket:
    bound = _bound(endpoint, shared=False, setting=setting)
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise StartError(_taken(endpoint, setting)) from error
    return bound


def _taken(endpoint: Endpoint, setting: str) -> str:
    return f"{endpoint} is in use by another process: stop it, or choose another address with {setting}"


def _resolve(endpoint: Endpoint, setting: str) -> tuple[int, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as error:
        raise StartError(f"{setting} {endpoint}: {error.strerror or error}") from error
    # IPv4 first: what a name such as localhost is expected to mean.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def _near(
    endpoint: Endpoint, first_port: int | None, offset: int, workers: int, setting: str = "--worker-ports"
) -> Sequence[socket.socket]:
    """A port for each worker: from `first_port` on, else so far above the endpoint's or further, else free ones."""
    if first_port is not None:
        return _consecutive(endpoint.host, first_port, workers, setting)
    # Where several listeners have neighbouring ports the usual ones of the second may be those of the first.
    for preferred in range(endpoint.port + offset, 65536 - workers, PRIVATE_PORT_OFFSET):
        try:
            return _consecutive(endpoint.host, preferred, workers, setting)
        except StartError:
            continue
    return [_listening(Endpoint(endpoint.host, 0), setting) for _ in range(workers)]


def _listening_siblings(name: str) -> socket.socket:
    """A socket of this machine alone, in Linux's abstract namespace: no file is left behind."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.bind(name)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise StartError(f"workers can't meet at a Unix socket: {error.strerror or error}") from error
    return bound


def _consecutive(host: str, first_port: int, workers: int, setting: str) -> list[socket.socket]:
    with ExitStack() as undo:
        found = [
            undo.enter_context(_listening(Endpoint(host, first_port + index), setting)) for index in range(workers)
        ]
        undo.pop_all()
    return found
