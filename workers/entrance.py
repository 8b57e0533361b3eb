"""The way in: from an accepted socket to a connection whose client is known as far as its listener asks.

One `Entrance` per listener and worker. In this order: limits; a PROXY header, from trusted addresses alone; TLS; then
the `Connection`, with the principal that the address or certificate gives, or with a gate that lets nothing pass before
SASL has. Each step is bounded in time, and none leaves a byte unread that belongs to the next. It owns the tasks of
sockets on their way; a task ends with the handshake. What is refused here has never been a connection.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final, Literal

from kafscale.config import Settings
from kafscale.config.listeners import ListenerSettings
from kafscale.control import TlsFiles
from kafscale.errors import ProtocolError
from kafscale.metrics import HANDSHAKES
from kafscale.security.access import ANONYMOUS
from kafscale.security.addresses import is_within, normalized_address, parse_networks
from kafscale.security.distinguished_names import rfc2253_name, subject_of
from kafscale.security.principals import principal_of
from kafscale.security.proxy_protocol import HeaderReader
from workers.authentication import TLS, UNKNOWN_FRAME_BYTES_MAX, Authenticator, Login, SaslGate
from workers.connection import Connection
from workers.connections import Connections
from workers.listener import Listener

# How long a client whose handshake failed has to read why.
LAST_WORDS_SECONDS: Final = 1.0
LAST_WORDS_READ_BYTES_MAX: Final = 64 * 1024
# What OpenSSL calls a client certificate that is missing or no good.
_CERTIFICATE_REASONS: Final = ("CERTIFICATE", "NO_CERT", "UNKNOWN_CA", "BAD_SIGNATURE")
# A client that does not answer the end of TLS is not waited for.
TLS_END_SECONDS: Final = 5.0


class Entrance:
    """A listener's. `arrive` for every socket that was accepted."""

    def __init__(
        self,
        settings: Settings,
        own: ListenerSettings,
        listener: Listener,
        connections: Connections,
        authenticator: Authenticator,
    ) -> None:
        self.name = own.name
        self._own = own
        self._listener = listener
        self._connections = connections
        self._authenticator = authenticator
        self._handshake_seconds = settings.handshake_timeout_ms / 1000
        self._min_version: Literal["1.2", "1.3"] = settings.broker_tls_min_version
        self._is_strict = settings.broker_tls_strict
        self._trusted = parse_networks(own.trusted_proxies)
        self._rules: Any = None
        self._files: TlsFiles | None = None
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if own.principal_source == "mtls":
            # Imported where there are client certificates.
            from kafscale.security.principal_rules import PrincipalRules

            self._rules = PrincipalRules(own.principal_mapping_rules or "DEFAULT")

    async def use(self, files: TlsFiles) -> None:
        """From now on new connections get this certificate, and are held to these CAs. What was open stays open.

        Raises CertificateProblem: the supervisor has found them sound, so that is a surprise.
        """
        if files == self._files:
            return
        from kafscale.security.tls import TlsMaterial, server_context

        material = TlsMaterial(files.certificate, files.key, files.key_password, files.client_ca, files.revoked)
        # A thread's work: a key with a password takes long to open.
        self._context = await asyncio.to_thread(
            server_context,
            material,
            self._own.client_auth or "none",
            min_version=self._min_version,
            is_strict=self._is_strict,
        )
        self._files = files

    def connection(self, client_host: str = "") -> Connection:
        """The protocol of a new connection; without a host it is the transport's."""
        connection = Connection(self._connections, self._listener, self._welcome)
        connection.client_host = client_host
        return connection

    def arrive(self, accepted: socket.socket, host: str) -> None:
        """Take a socket, or close it."""
        connections = self._connections
        host = normalized_address(host)
        if connections.is_draining:
            accepted.close()
            return
        if connections.is_full:
            connections.refuse(host, "limit", "there are as many connections as there may be (connections_max)")
            accepted.close()
            return
        if self._own.proxy_protocol and not is_within(host, self._trusted):
            connections.refuse(host, "proxy", "only trusted proxies may come to this listener (trusted_proxies)")
            accepted.close()
            return
        connections.arrive()
        task = asyncio.get_running_loop().create_task(self._arrive(accepted, host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Let nobody in who is not in yet."""
        for task in list(self._tasks):
            task.cancel()

    async def _arrive(self, accepted: socket.socket, host: str) -> None:
        connections = self._connections
        connection: Connection | None = None
        is_counted = False
        # A second hold on the connection, of which the loop lets go when a handshake fails.
        tail: socket.socket | None = None
        try:
            if self._own.proxy_protocol:
                host = await self._proxied_host(accepted, host)
            is_counted = connections.enter(host)
            if not is_counted:
                connections.refuse(host, "limit", "too many connections from one address (connections_max_per_address)")
                return
            connection = self.connection(host)
            connection.counted_at = host
            tail = accepted.dup() if self._own.has_tls else None
            await self._connect(accepted, connection)
        except ProtocolError as error:
            connections.refuse(host, "proxy", str(error))
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._failed(host, error)
            if tail is not None:
                await _tell(tail, error)
        finally:
            if tail is not None:
                tail.close()
            connections.settle()
            if connection is None or not connection.was_made:
                accepted.close()
                if is_counted:
                    connections.leave(host)

    async def _proxied_host(self, accepted: socket.socket, proxy: str) -> str:
        """The client's address as the proxy says; its own where it speaks for itself. Raises ProtocolError, OSError."""
        reader = HeaderReader()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._handshake_seconds):
                while reader.wanted:
                    data = await loop.sock_recv(accepted, reader.wanted)
                    if not data:
                        raise ProtocolError("the connection ended within the PROXY header")
                    reader.feed(data)
        except TimeoutError:
            raise ProtocolError("no PROXY header came in time") from None
        return proxy if reader.source is None else reader.source.host

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if not self._own.has_tls:
            await loop.connect_accepted_socket(lambda: connection, accepted)
            return
        context = self._context
        assert context is not None, "nobody arrives before `use`"
        await loop.connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=context,
            ssl_handshake_timeout=self._handshake_seconds,
            ssl_shutdown_timeout=TLS_END_SECONDS,
        )
        self._connections.cells[HANDSHAKES.at("success")] += 1

    def _failed(self, host: str, error: Exception) -> None:
        if not self._own.has_tls:
            return  # The client was gone before it was in.
        self._connections.cells[HANDSHAKES.at("failure")] += 1
        reason = (error.reason if isinstance(error, ssl.SSLError) else "") or str(error) or type(error).__name__
        self._connections.refuse(host, "handshake", reason)
        if self._own.client_auth != "none" and any(word in reason.upper() for word in _CERTIFICATE_REASONS):
            self._refuse_certificate(host, reason)

    def _refuse_certificate(self, host: str, reason: str) -> None:
        self._authenticator.record(Login(False, ANONYMOUS, TLS, self.name, host, reason))

    # Who the client is

    def _welcome(self, connection: Connection, transport: asyncio.Transport) -> None:
        match self._own.principal_source:
            case "sasl":
                gate = SaslGate(self._authenticator, connection, self._own.mechanisms)
                connection.must_authenticate(gate, UNKNOWN_FRAME_BYTES_MAX)
            case "mtls":
                self._welcome_by_certificate(connection, transport)
            case "client_id" | None:
                connection.is_named_by_client = True
            case "remote_addr" | "proxy_addr":
                # The client's own, where a trusted proxy speaks for it.
                connection.principal = principal_of(connection.client_host)

    def _welcome_by_certificate(self, connection: Connection, transport: asyncio.Transport) -> None:
        tls: Any = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        if certificate is None:
            return  # Only asked for, and not given: it stays User:ANONYMOUS.
        if not self._authenticator.may_log_in():
            connection.close("audit")
            return
        try:
            subject = rfc2253_name(subject_of(certificate))
        except ProtocolError as error:
            self._turn_away(connection, str(error))
            return
        name = self._rules.name_of(subject)
        if name is None:
            self._turn_away(connection, f"no rule makes a principal of {subject!r:.200}")
            return
        principal = principal_of(name)
        connection.authenticated(principal)
        self._authenticator.record(Login(True, principal, TLS, self.name, connection.client_host))

    def _turn_away(self, connection: Connection, reason: str) -> None:
        self._refuse_certificate(connection.client_host, reason)
        connection.close("authentication")


async def _tell(connection: socket.socket, error: Exception) -> None:
    """Send TLS's alert to a client whose handshake failed, and read on for a moment: closing a connection with unread
    bytes would have the kernel throw the alert away."""
    from kafscale.security.tls import last_words

    words = last_words(error)
    if not words:
        return
    loop = asyncio.get_running_loop()
    left = LAST_WORDS_READ_BYTES_MAX
    try:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            connection.setblocking(False)
            await loop.sock_sendall(connection, words)
            connection.shutdown(socket.SHUT_WR)
            while left > 0 and (data := await loop.sock_recv(connection, left)):
                left -= len(data)
    except (OSError, TimeoutError):
        return
