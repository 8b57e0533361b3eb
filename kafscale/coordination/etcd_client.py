"""etcd's client: calls that get their answer from whichever endpoint gives one. The one file that knows etcd3.

An `EtcdConnection` has one client at a time, at one endpoint. Where that gives no answer, silent, refusing or without a
leader, the client is closed and the same call made at the next endpoint, until each has had its turn; what failed is
asked last from then on. The caller sees no more of it than that a call took longer and may have been done twice, and
that `client` is another: a watch that was set by the last one is gone. Every endpoint is told the password anew, since
a member of etcd may have forgotten a token that another still knows.

How long an endpoint is waited for is the caller's to say. Blocking: for threads, several at once.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import etcd3
import grpc
import msgspec
from etcd3.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
    InternalServerError,
    WatchTimedOut,
)

from kafscale.errors import StartError

log = logging.getLogger(__name__)


class NoAnswer(OSError):
    """An endpoint ended a call without a word. For a call to raise, so that it is made at another."""


# What a call of etcd's client may raise.
FAILURES = (Etcd3Exception, grpc.RpcError, ValueError, OSError)
_NO_ANSWER = (NoAnswer, ConnectionFailedError, ConnectionTimeoutError, InternalServerError, WatchTimedOut)
_NO_ANSWER_CODES = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL),
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED),
)

_Result = TypeVar("_Result")
Address = tuple[str, int]


class EtcdServers(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and how to be let in. With a CA, or a certificate, connections are TLS ones in any case."""

    endpoints: tuple[Address, ...]
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def is_secure(self) -> bool:
        return self.tls or self.ca_file is not None or self.cert_file is not None

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.endpoints)


def open_client(servers: EtcdServers, endpoint: Address, call_seconds: float) -> Any:
    """An etcd3 client of one endpoint, whose calls wait for so long. It connects with its first call, and here where
    there is a password. Raises StartError where a file is not what it should be."""
    host, port = endpoint
    # With connections of its own: what others found out about an endpoint, and how long they wait, is theirs.
    only = etcd3.Endpoint(
        host,
        port,
        secure=servers.is_secure,
        creds=credentials(servers),
        time_retry=0.0,
        opts=(("grpc.use_local_subchannel_pool", 1),),
    )
    try:
        client = etcd3.MultiEndpointEtcd3Client(
            [only], timeout=call_seconds, user=servers.username, password=servers.password
        )
    except BaseException:
        only.close()
        raise
    if not servers.is_secure:
        # gRPC lets nobody send these in the clear; the token goes along as metadata anyway.
        client.call_credentials = None
    return client


def credentials(servers: EtcdServers) -> Any:
    """gRPC's, or None without TLS. Raises StartError that names the file that can't be read or used: gRPC itself would
    end the process, or say nothing and never connect."""
    if not servers.is_secure:
        return None
    ca = _content("etcd_ca_file", servers.ca_file)
    certificate = _content("etcd_cert_file", servers.cert_file)
    key = _content("etcd_key_file", servers.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if servers.ca_file is not None:
        try:
            context.load_verify_locations(servers.ca_file)
        except ssl.SSLError as error:
            reason = f"holds no certificate in PEM ({_reason(error)})"
            raise StartError(f"etcd_ca_file: {servers.ca_file} {reason}") from None
    if servers.cert_file is not None:
        try:
            # Never without a password: OpenSSL would ask the terminal for it.
            context.load_cert_chain(servers.cert_file, servers.key_file, "")
        except ssl.SSLError as error:
            raise StartError(
                f"etcd_cert_file: {servers.cert_file} can't be used with its key, {servers.key_file} "
                f"({_reason(error)}); both must be PEM, the key without a password"
            ) from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


class EtcdConnection:
    """See the module. `order` holds the servers' endpoints, the one to ask first. It is shared with the connections to
    come, so that they begin with one that answered."""

    def __init__(
        self,
        servers: EtcdServers,
        order: deque[Address],
        call_seconds: float,
        open_client: Callable[[EtcdServers, Address, float], Any],
    ) -> None:
        self._servers = servers
        self._order = order
        self._call_seconds = call_seconds
        self._open_client = open_client
        self._lock = threading.Lock()
        self._client: Any = None
        self._is_closed = False
        # Endpoints that were passed over since the last answer, and why.
        self._silent: dict[str, str] = {}

    @property
    def client(self) -> Any:
        """The one in use; None between two."""
        return self._client

    def ask(self, call: Callable[[Any], _Result]) -> _Result:
        """What `call` returns, given a client. It is called once for every endpoint at most, until one answers. Raises
        what it raises where that is an answer, and what the last endpoint brought; OSError once this is closed."""
        left = len(self._order)
        while True:
            left -= 1
            client = None
            try:
                client = self._opened()
                answer = call(client)
            except FAILURES as error:
                if not self._may_go_on(client, error) or not left:
                    raise
            else:
                self._report()
                return answer

    def close(self) -> None:
        """Calls that are under way fail."""
        with self._lock:
            self._is_closed = True
            self._drop()

    def _opened(self) -> Any:
        with self._lock:
            if self._is_closed:
                raise OSError("the session has ended")
            if self._client is None:
                try:
                    self._client = self._open_client(self._servers, self._order[0], self._call_seconds)
                except FAILURES as error:
                    self._move_on(error)
                    raise
            return self._client

    def _may_go_on(self, client: Any, error: BaseException) -> bool:
        """Whether another endpoint may know better. Goes to the next one, unless that has been done."""
        with self._lock:
            if client is None:
                return _is_no_answer(error)
            if client is not self._client:
                # Another thread closed it: what this one was told is no answer of etcd's.
                return True
            if not _is_no_answer(error):
                return False
            self._drop()
            self._move_on(error)
            return True

    def _move_on(self, error: BaseException) -> None:
        host, port = self._order[0]
        self._silent[f"{host}:{port}"] = text_of(error)
        self._order.rotate(-1)

    def _report(self) -> None:
        """Once per failure that another endpoint made good; that all of them fail is for the caller to tell."""
        if self._silent and len(self._order) > 1:
            silent, self._silent = self._silent, {}
            log.warning(
                "an endpoint of etcd gives no answer, another does",
                extra={"endpoints": ", ".join(silent), "cause": ", ".join(silent.values())},
            )

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _is_no_answer(error: BaseException) -> bool:
    if isinstance(error, grpc.RpcError):
        return error.code() in _NO_ANSWER_CODES
    return isinstance(error, _NO_ANSWER)


def text_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or type(error).__name__


def _content(setting: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StartError(f"{setting}: cannot read {path!r}: {error.strerror or error}") from None


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)
