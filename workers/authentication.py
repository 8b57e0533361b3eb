"""Who a client is: SASL on a connection, what was learnt from its certificate, and the one place where all of it is
recorded.

`Authenticator` is one per worker: it knows the credentials and keys of the moment, hashes passwords in a thread of its
own, and hears of every login, granted or refused (`record`). `SaslGate` stands before dispatch on a connection whose
listener has SASL, until the client is known; where sessions end it stays there. The conversation itself is
`kafscale.security.sasl`'s, which has no bytes of Kafka's; these are here. Until a client is known no request's body is
looked at but those of the two SASL APIs.

A refusal is answered, and the connection closed, a set time after the request came, however long it took to find out:
so nothing can be learnt from the time, and guessing is slow.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.control import Security
from kafscale.coordination.cluster import ClusterState
from kafscale.errors import ProtocolError
from kafscale.logs import RateLimited
from kafscale.metrics import AUTHENTICATIONS, MetricsBlock, request_cell
from kafscale.protocol.api import APIS, ApiKey, decode_request, encode_response
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.headers import RequestHeader, parse_request_header
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest, SaslAuthenticateResponse
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest, SaslHandshakeResponse
from kafscale.security.credentials import CredentialBook
from kafscale.security.exchange import Exchange, Verification
from kafscale.security.plain import PLAIN, KnownPasswords, PlainExchange
from kafscale.security.principals import principal_of
from kafscale.security.sasl import Continue, Conversation, Failed, Input, Opened, Outcome, Stage
from kafscale.security.scram import HASH_OF, NONCE_BYTES, Keys, ScramExchange
from kafscale.storage.threads import Threads

if TYPE_CHECKING:
    from kafscale.security.tokens import Bearer, SigningKeys
    from workers.connection import Connection
    from workers.pending import OrderedPending, Pending

log = logging.getLogger(__name__)

# What a client that is not known yet may send at once (Kafka's sasl.server.max.receive.size).
UNKNOWN_FRAME_BYTES_MAX: Final = 512 * 1024
FAILURE_INTERVAL_SECONDS: Final = 10.0
KEYS_WANTED_INTERVAL_SECONDS: Final = 1.0
API_VERSIONS_MAX: Final = 4
HANDSHAKE_MAX: Final = 1
AUTHENTICATE_MAX: Final = 2
SHOWN_MAX: Final = 256
TLS: Final = "TLS"


class Login(NamedTuple):
    """A login as an audit would tell it. `reason` is why it was refused, empty if it was not; it holds no secret."""

    is_granted: bool
    principal: str
    mechanism: str
    listener: str
    client_host: str
    reason: str = ""
    is_repeated: bool = False


class Authenticator:
    """What all connections of a worker need to know their clients. `on_login` gets every login, for an audit; while
    `may_log_in` says no, who comes to log in is turned away."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        metrics: MetricsBlock,
        want_keys: Callable[[], None],
        on_login: Callable[[Login], None] = lambda login: None,
        may_log_in: Callable[[], bool] = lambda: True,
    ) -> None:
        self.clock = clock
        self.delay_seconds = settings.connection_failed_authentication_delay_ms / 1000
        self.session_max_ms = settings.connections_max_reauth_ms
        self.cells = metrics.cells
        self.on_login = on_login
        self.may_log_in = may_log_in
        self._settings = settings
        self._want_keys = want_keys
        self._known = KnownPasswords()
        # One: hashing lets go of the interpreter, but every core has a worker already.
        self._threads = Threads("passwords", 1)
        self._bootstrap: dict[str, dict[str, Keys]] = {}
        self._state: ClusterState | None = None
        self._book = CredentialBook({}, {}, b"")
        self._signing_keys: SigningKeys | None = None
        self._jwks = b""
        self._failures = RateLimited(clock, FAILURE_INTERVAL_SECONDS)
        self._wishes = RateLimited(clock, KEYS_WANTED_INTERVAL_SECONDS)
        self._tasks: set[asyncio.Task[None]] = set()

    # What there is to know

    @property
    def book(self) -> CredentialBook:
        """Whose password is what, now."""
        return self._book

    def replace_security(self, security: Security) -> None:
        """The files have changed."""
        found: dict[str, dict[str, Keys]] = {}
        for one in security.credentials:
            keys = Keys(one.salt, one.stored_key, one.server_key, one.iterations)
            found.setdefault(one.user, {})[one.mechanism] = keys
        self._bootstrap = found
        self._make_book()
        if security.signing_keys and security.signing_keys != self._jwks:
            from kafscale.security.tokens import SigningKeys

            # The supervisor has found them sound.
            self._signing_keys = SigningKeys(security.signing_keys)
            self._jwks = security.signing_keys

    def follow(self, state: ClusterState) -> None:
        """The catalogue may have changed."""
        before, self._state = self._state, state
        if before is None or before.credentials is not state.credentials:
            self._make_book()

    def _make_book(self) -> None:
        if self._state is not None:
            self._book = CredentialBook(self._state.credentials, self._bootstrap, self._state.decoy_key)

    def begin(self, mechanism: str) -> Exchange:
        """An exchange of one of the listener's mechanisms."""
        book = self._book
        if mechanism == PLAIN:
            return PlainExchange(book.find_any, book.decoy_for_any, self._known)
        if mechanism in HASH_OF:
            nonce = secrets.token_urlsafe(NONCE_BYTES).encode()
            return ScramExchange(
                mechanism, lambda user: book.find(user, mechanism), lambda user: book.decoy(user, mechanism), nonce
            )
        # Imported where tokens are taken.
        from kafscale.security.oauthbearer import OauthbearerExchange

        return OauthbearerExchange(self._bearer_of)

    def _bearer_of(self, token: str) -> Bearer:
        from kafscale.security.tokens import TokenError, TokenRules, UnknownKey

        if self._signing_keys is None:
            raise TokenError("there are no keys to check it with")
        settings = self._settings
        rules = TokenRules(
            issuer=settings.sasl_oauthbearer_issuer,
            audience=settings.sasl_oauthbearer_audience,
            clock_skew_ms=settings.sasl_oauthbearer_clock_skew_ms,
            principal_claim=settings.sasl_oauthbearer_principal_claim,
            required_scope=settings.sasl_oauthbearer_required_scope,
        )
        try:
            return self._signing_keys.bearer_of(token, rules, self.clock.wall_ms())
        except UnknownKey:
            if self._wishes.permit() is not None:
                self._want_keys()
            raise

    # What is done with it

    def verify(self, verification: Verification, settled: Callable[[bool], None]) -> None:
        """Hash a password in the thread, and call `settled` with what came of it."""

        async def run() -> None:
            settled(await self._threads.call(verification.work))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Give up what is being verified."""
        for task in list(self._tasks):
            task.cancel()

    def record(self, login: Login) -> None:
        """Count it, log a refusal (rarely enough), and let the audit know: every login passes here."""
        label = login.mechanism if login.mechanism in AUTHENTICATIONS.labels["mechanism"] else "other"
        self.cells[AUTHENTICATIONS.at(label, "success" if login.is_granted else "failure")] += 1
        if login.is_granted:
            log.debug("logged in", extra=_fields(login))
        else:
            held = self._failures.permit((login.client_host, login.reason))
            if held is not None:
                log.warning("login refused", extra={**_fields(login), "held_back": held})
        self.on_login(login)


def _fields(login: Login) -> dict[str, object]:
    fields: dict[str, object] = {
        "principal": login.principal[:SHOWN_MAX],
        "mechanism": login.mechanism[:SHOWN_MAX],
        "listener": login.listener,
        "client": login.client_host,
    }
    if login.reason:
        fields["why"] = login.reason[:SHOWN_MAX]
    return fields


class SaslGate:
    """One connection's. Every request passes `intercept` first."""

    __slots__ = ("_authenticator", "_connection", "_conversation", "_reply_version")

    def __init__(self, authenticator: Authenticator, connection: Connection, mechanisms: tuple[str, ...]) -> None:
        self._authenticator = authenticator
        self._connection = connection
        self._conversation = Conversation(mechanisms, authenticator.begin, authenticator.session_max_ms)

    def intercept(self, buffer: bytearray | memoryview, start: int, end: int, pending: Pending, now: float) -> bool:
        """Whether the request is dealt with here. ProtocolError where the connection must be closed at once."""
        conversation = self._conversation
        ordered: OrderedPending = pending  # type: ignore[assignment]  # a connection's own
        if conversation.allows(Input.RAW_TOKEN):
            if not self._authenticator.may_log_in():
                pending.close_connection("audit")
                return True
            self._take_token(bytes(buffer[start:end]), None, ordered, now)
            return True
        header, position = parse_request_header(buffer, start, end)
        if header.api_key == ApiKey.SASL_HANDSHAKE and conversation.allows(Input.HANDSHAKE):
            self._shake_hands(header, buffer, position, end, ordered, now)
            return True
        if header.api_key == ApiKey.SASL_AUTHENTICATE and conversation.allows(Input.TOKEN):
            if not self._authenticator.may_log_in():
                pending.close_connection("audit")
                return True
            self._authenticate(header, buffer, position, end, ordered, now)
            return True
        session = conversation.session
        if conversation.stage is Stage.OPEN and session is not None:
            if session.expires_at is None or now < session.expires_at:
                return False
            pending.close_connection("session")
            return True
        if header.api_key == ApiKey.API_VERSIONS and conversation.allows(Input.VERSIONS):
            if header.api_version <= API_VERSIONS_MAX:
                conversation.versions_served()
            return False
        self._refuse_request(header, ordered, now)
        return True

    # Requests

    def _shake_hands(
        self,
        header: RequestHeader,
        buffer: bytearray | memoryview,
        position: int,
        end: int,
        pending: OrderedPending,
        now: float,
    ) -> None:
        if not 0 <= header.api_version <= HANDSHAKE_MAX:
            raise ProtocolError(f"SaslHandshake v{header.api_version} is not served")
        self._authenticator.cells[request_cell(header.api_key)] += 1
        request = decode_request(APIS[header.api_key], header.api_version, buffer, position, end)
        assert isinstance(request, SaslHandshakeRequest)
        answer = self._conversation.handshake(header.api_version, request.mechanism, now)
        encoded = _encoded(header, SaslHandshakeResponse(error_code=answer.code, mechanisms=answer.mechanisms))
        if answer.failure is None:
            pending.answer(encoded)
        else:
            self._fail(pending, encoded, now, answer.failure, "", request.mechanism)

    def _authenticate(
        self,
        header: RequestHeader,
        buffer: bytearray | memoryview,
        position: int,
        end: int,
        pending: OrderedPending,
        now: float,
    ) -> None:
        if not 0 <= header.api_version <= AUTHENTICATE_MAX:
            raise ProtocolError(f"SaslAuthenticate v{header.api_version} is not served")
        self._authenticator.cells[request_cell(header.api_key)] += 1
        request = decode_request(APIS[header.api_key], header.api_version, buffer, position, end)
        assert isinstance(request, SaslAuthenticateRequest)
        self._take_token(bytes(request.auth_bytes), header, pending, now)

    def _take_token(self, token: bytes, header: RequestHeader | None, pending: OrderedPending, now: float) -> None:
        """A step of the exchange; `header` is None for a raw token."""
        outcome = self._conversation.token(token, now, self._authenticator.clock.wall_ms())
        if not isinstance(outcome, Verification):
            self._answer(outcome, header, pending, now)
            return

        def settled(is_right: bool) -> None:
            if not self._connection.is_closed:
                clock = self._authenticator.clock
                later = self._conversation.settle(is_right, clock.monotonic(), clock.wall_ms())
                self._answer(later, header, pending, now)

        self._authenticator.verify(outcome, settled)

    def _answer(self, outcome: Outcome, header: RequestHeader | None, pending: OrderedPending, came_at: float) -> None:
        match outcome:
            case Continue(data):
                pending.answer(_token_answer(header, SaslAuthenticateResponse(auth_bytes=data)))
            case Opened(data, session, lifetime_ms):
                self._open(session.user, session.mechanism, session.expires_at is not None)
                response = SaslAuthenticateResponse(auth_bytes=data, session_lifetime_ms=lifetime_ms)
                pending.answer(_token_answer(header, response))
            case Failed(text, reason, user):
                failed = SaslAuthenticateResponse(error_code=ErrorCode.SASL_AUTHENTICATION_FAILED, error_message=text)
                # To a raw token there is no way to say no but to close.
                encoded = None if header is None else _encoded(header, failed)
                self._fail(pending, encoded, came_at, reason, user, self._conversation.mechanism)

    def _open(self, user: str, mechanism: str, has_end: bool) -> None:
        connection = self._connection
        principal = principal_of(user)
        is_repeated = connection.is_authenticated
        connection.authenticated(principal)
        # Without an end there is nothing left to watch.
        connection.gate = self if has_end else None
        self._authenticator.record(
            Login(True, principal, mechanism, connection.listener.name, connection.client_host, is_repeated=is_repeated)
        )

    # Refusals

    def _refuse_request(self, header: RequestHeader, pending: OrderedPending, now: float) -> None:
        """Something that may not come now; its body is not looked at. The two that can say so, do."""
        code = ErrorCode.ILLEGAL_SASL_STATE
        encoded = None
        if header.api_key == ApiKey.SASL_AUTHENTICATE and 0 <= header.api_version <= AUTHENTICATE_MAX:
            text = "SaslAuthenticate came before a SaslHandshake, or after the end"
            encoded = _encoded(header, SaslAuthenticateResponse(error_code=code, error_message=text))
        elif header.api_key == ApiKey.SASL_HANDSHAKE and 0 <= header.api_version <= HANDSHAKE_MAX:
            encoded = _encoded(header, SaslHandshakeResponse(error_code=code))
        reason = f"sent a request of API {header.api_key} where it must authenticate"
        self._fail(pending, encoded, now, reason, "", self._conversation.mechanism)

    def _fail(
        self,
        pending: OrderedPending,
        encoded: Any,
        came_at: float,
        reason: str,
        user: str,
        mechanism: str,
    ) -> None:
        """Record the refusal, and tell the client of it when its time has come."""
        authenticator, connection = self._authenticator, self._connection
        self._conversation.fail()
        connection.stop_reading()
        authenticator.record(
            Login(
                False,
                principal_of(user),
                mechanism,
                connection.listener.name,
                connection.client_host,
                reason,
                connection.is_authenticated,
            )
        )
        clock, due = authenticator.clock, came_at + authenticator.delay_seconds

        def tell() -> None:
            # A loop's timers go by whole milliseconds, and may be early by one.
            if (left := due - clock.monotonic()) > 0:
                pending.on_close = clock.call_later(left, tell).cancel
            else:
                pending.answer_and_close(encoded, "authentication")

        pending.on_close = clock.call_later(max(0.0, due - clock.monotonic()), tell).cancel


def _encoded(header: RequestHeader, response: Any) -> Any:
    return encode_response(APIS[header.api_key], header.api_version, header.correlation_id, response)


def _token_answer(header: RequestHeader | None, response: SaslAuthenticateResponse) -> Any:
    """A message of the broker's: in an answer to SaslAuthenticate, or as raw bytes behind their size."""
    if header is not None:
        return _encoded(header, response)
    return len(response.auth_bytes).to_bytes(4, "big") + response.auth_bytes
