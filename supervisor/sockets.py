"""The listening sockets: which ports, bound once, before any worker exists, and kept open until the broker ends.

The shared ones are bound here and begin to listen in the worker that accepts on them: the kernel spreads connections
over those SO_REUSEPORT sockets that listen, so one that listened before its worker is ready would collect connections
that nobody reads. The private ones listen at once. A copy of all stays open here, so that a worker's restart loses no
connection that waits in its backlog.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from kafscale.config import Endpoint
from kafscale.config.listeners import ListenerSettings
from kafscale.control import ListenerSockets, NodeAddress
from kafscale.errors import StartError

PRIVATE_PORT_OFFSET = 10_000
BACKLOG = 4096


class BoundListener:
    """One listener: a shared bootstrap port, with a socket for each of `workers` workers, and a private port for each.
    `setting` is what a person would change."""

    def __init__(self, listen: Endpoint, worker_ports: int | None, workers: int, setting: str = "--listen") -> None:
        """Raises StartError if a port is taken or the address is none of this machine's."""
        with ExitStack() as undo:
            self._claim = undo.enter_context(_claim(listen, setting))
            _probe(listen, setting)
            self.bootstrap: list[socket.socket] = []
            for _ in range(workers):
                bound = _bound(listen if not self.bootstrap else self.endpoint, shared=True, setting=setting)
                self.bootstrap.append(undo.enter_context(bound))
            self.private = [undo.enter_context(s) for s in _private(self.endpoint, worker_ports, workers)]
            undo.pop_all()

    @property
    def endpoint(self) -> Endpoint:
        """The bootstrap address, with the port that was bound."""
        name = self.bootstrap[0].getsockname()
        return Endpoint(name[0], name[1])

    @property
    def private_ports(self) -> list[int]:
        return [bound.getsockname()[1] for bound in self.private]

    def descriptors(self) -> list[int]:
        """What workers inherit."""
        return [bound.fileno() for bound in (*self.bootstrap, *self.private)]

    def close(self) -> None:
        """Give the ports back, as far as this process goes."""
        for bound in (*self.bootstrap, *self.private, self._claim):
            bound.close()


class Listeners:
    """The listeners of a broker, by name."""

    def __init__(self, listeners: Sequence[ListenerSettings], workers: int) -> None:
        """Raises StartError, as `BoundListener`."""
        self.settings = tuple(listeners)
        self.bound: dict[str, BoundListener] = {}
        try:
            for listener in listeners:
                setting = "--listen" if len(listeners) == 1 else f"listener {listener.name}"
                self.bound[listener.name] = BoundListener(listener.listen, listener.worker_ports, workers, setting)
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
        found = []
        for index, node_id in enumerate(node_ids):
            told = {one.name: (one.advertised.host, self.bound[one.name].private_ports[index]) for one in self.settings}
            found.append(NodeAddress(node_id, *told[first.name], addresses=told if others else {}))
        return found

    def sockets(self, worker_index: int) -> list[ListenerSockets]:
        """What the worker finds of them among its descriptors."""
        return [
            ListenerSockets(name, [one.fileno() for one in bound.bootstrap], bound.private[worker_index].fileno())
            for name, bound in self.bound.items()
        ]

    def descriptors(self) -> list[int]:
        """What workers inherit."""
        return [fd for bound in self.bound.values() for fd in bound.descriptors()]

    def close(self) -> None:
        for bound in self.bound.values():
            bound.close()


def bind_http(endpoint: Endpoint) -> socket.socket:
    """A listening socket for /metrics and the like. Raises StartError."""
    return _listening(endpoint, "--metrics")


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


def _bound(endpoint: Endpoint, *, shared: bool, setting: str) -> socket.socket:
    family, address = _resolve(endpoint, setting)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a port be bound whose old connections are in TIME_WAIT; not one that listens.
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


def _private(endpoint: Endpoint, first_port: int | None, workers: int) -> Sequence[socket.socket]:
    if first_port is not None:
        return _consecutive(endpoint.host, first_port, workers, "--worker-ports")
    # Where several listeners have neighbouring ports the usual ones of the second may be those of the first.
    for preferred in range(endpoint.port + PRIVATE_PORT_OFFSET, 65536 - workers, PRIVATE_PORT_OFFSET):
        try:
            return _consecutive(endpoint.host, preferred, workers, "--worker-ports")
        except StartError:
            continue
    return [_listening(Endpoint(endpoint.host, 0), "--worker-ports") for _ in range(workers)]


def _consecutive(host: str, first_port: int, workers: int, setting: str) -> list[socket.socket]:
    with ExitStack() as undo:
        found = [
            undo.enter_context(_listening(Endpoint(host, first_port + index), setting)) for index in range(workers)
        ]
        undo.pop_all()
    return found
