"""A connection's SASL conversation, from its first request to its last re-authentication: what may come next, and what
that leads to.

Sans-I/O and without a clock: requests in, what to answer out. It follows Kafka's SaslServerAuthenticator, KIP-152
(tokens in SaslAuthenticate requests, or raw after a handshake of version 0) and KIP-368 (re-authentication). It knows
mechanisms by name and speaks to them as `Exchange`s; of a refusal it says the same to every client, whatever the cause.
What must always hold: a session exists only after an exchange was accepted, and a later exchange can prolong it but
never make it another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from kafscale.protocol.error_codes import ErrorCode
from kafscale.security.exchange import Accepted, Challenge, Exchange, Refused, Verification

# Kafka's: who authenticates anew more often is told that this is not the time for it.
REAUTHENTICATION_INTERVAL_SECONDS: Final = 1.0


class Stage(Enum):
    """Where a conversation is."""

    START = "start"
    HANDSHAKE_NEXT = "handshake next"
    TOKENS = "tokens"
    RAW_TOKENS = "raw tokens"
    VERIFYING = "verifying"
    OPEN = "open"
    FAILED = "failed"


class Input(Enum):
    """What a client may send."""

    VERSIONS = "ApiVersions"
    HANDSHAKE = "SaslHandshake"
    TOKEN = "SaslAuthenticate"  # nosec B105
    RAW_TOKEN = "raw token"  # nosec B105


# What may come at which stage. In an open session all other requests are not this file's matter.
_ALLOWED: Final = {
    Stage.START: {Input.VERSIONS, Input.HANDSHAKE},
    Stage.HANDSHAKE_NEXT: {Input.HANDSHAKE},
    Stage.TOKENS: {Input.TOKEN},
    Stage.RAW_TOKENS: {Input.RAW_TOKEN},
    Stage.VERIFYING: set(),
    Stage.OPEN: {Input.VERSIONS, Input.HANDSHAKE},
    Stage.FAILED: set(),
}


class Session(NamedTuple):
    """Whom a connection belongs to, since when, and until when (both in seconds of the monotonic clock)."""

    user: str
    mechanism: str
    since: float
    expires_at: float | None


class Handshaken(NamedTuple):
    """The answer to a SaslHandshake. `failure` says why the connection ends after it, for the log."""

    code: int
    mechanisms: Sequence[str]
    failure: str | None = None


class Continue(NamedTuple):
    """Send this, and expect another token."""

    data: bytes


class Opened(NamedTuple):
    """Authenticated. `lifetime_ms` is told to the client: 0 for a session without end."""

    data: bytes
    session: Session
    lifetime_ms: int


class Failed(NamedTuple):
    """Refused: the client gets SASL_AUTHENTICATION_FAILED with `client_text` after a delay, then the connection ends.
    `reason` and `user` are for the log."""

    client_text: str
    reason: str
    user: str


Outcome = Continue | Opened | Failed | Verification


class Conversation:
    """One connection's. `begin` starts an exchange of a mechanism; `session_max_ms` (Kafka's connections.max.reauth.ms)
    bounds every session, 0 says that none is."""

    def __init__(self, mechanisms: Sequence[str], begin: Callable[[str], Exchange], session_max_ms: int = 0) -> None:
        self.stage = Stage.START
        self.session: Session | None = None
        self.mechanism = ""
        self._mechanisms = mechanisms
        self._begin = begin
        self._session_max_ms = session_max_ms
        self._exchange: Exchange | None = None
        self._resumes = Stage.FAILED

    def allows(self, what: Input) -> bool:
        """Whether `what` may come now. Anything else ends the connection."""
        return what in _ALLOWED[self.stage]

    def versions_served(self) -> None:
        """ApiVersions was answered: it is asked for once, unless the version was none that is served."""
        if self.stage is Stage.START:
            self.stage = Stage.HANDSHAKE_NEXT

    def handshake(self, version: int, mechanism: str, now: float) -> Handshaken:
        """The client chooses a mechanism, for the first time or anew."""
        assert self.allows(Input.HANDSHAKE)
        session = self.session
        if session is not None:
            if session.expires_at is None or now - session.since < REAUTHENTICATION_INTERVAL_SECONDS:
                return Handshaken(ErrorCode.ILLEGAL_SASL_STATE, ())
            if mechanism != session.mechanism:
                self.stage = Stage.FAILED
                failure = f"wants to go on with {mechanism!r:.80}, having begun with {session.mechanism}"
                return Handshaken(ErrorCode.ILLEGAL_SASL_STATE, self._mechanisms, failure)
        if mechanism not in self._mechanisms:
            self.stage = Stage.FAILED
            failure = f"wants the mechanism {mechanism!r:.80}, which is not enabled"
            return Handshaken(ErrorCode.UNSUPPORTED_SASL_MECHANISM, self._mechanisms, failure)
        self.mechanism = mechanism
        self._exchange = self._begin(mechanism)
        self.stage = Stage.RAW_TOKENS if version == 0 else Stage.TOKENS
        return Handshaken(ErrorCode.NONE, self._mechanisms)

    def token(self, data: bytes, now: float, wall_ms: int) -> Outcome:
        """The next message of the exchange."""
        assert self._exchange is not None and self.stage in (Stage.TOKENS, Stage.RAW_TOKENS)
        step = self._exchange.step(data)
        if isinstance(step, Verification):
            self._resumes = self.stage
            self.stage = Stage.VERIFYING
            return step
        return self._follow(step, now, wall_ms)

    def settle(self, is_right: bool, now: float, wall_ms: int) -> Outcome:
        """What a `Verification` came to."""
        assert self._exchange is not None and self.stage is Stage.VERIFYING
        self.stage = self._resumes
        step = self._exchange.settle(is_right)
        assert not isinstance(step, Verification)
        return self._follow(step, now, wall_ms)

    def fail(self) -> None:
        """The connection ends for another reason; nothing more is accepted on it."""
        self.stage = Stage.FAILED

    def _follow(self, step: Challenge | Accepted | Refused, now: float, wall_ms: int) -> Outcome:
        match step:
            case Challenge(data):
                return Continue(data)
            case Refused(reason, user):
                return self._failed(reason, user)
            case Accepted(data, user, expires_at_ms):
                if self.session is not None and user != self.session.user:
                    return self._failed(f"became {user!r:.80} in re-authentication", self.session.user)
                return self._open(data, user, expires_at_ms, now, wall_ms)

    def _open(self, data: bytes, user: str, expires_at_ms: int | None, now: float, wall_ms: int) -> Outcome:
        lifetimes = [] if self._session_max_ms == 0 else [self._session_max_ms]
        if expires_at_ms is not None:
            # What holds only thanks to clock skew is over at once.
            lifetimes.append(max(1, expires_at_ms - wall_ms))
        lifetime_ms = min(lifetimes, default=0)
        expires_at = now + lifetime_ms / 1000 if lifetimes else None
        self.session = Session(user, self.mechanism, now, expires_at)
        self.stage = Stage.OPEN
        self._exchange = None
        return Opened(data, self.session, lifetime_ms)

    def _failed(self, reason: str, user: str) -> Failed:
        self.stage = Stage.FAILED
        self._exchange = None
        return Failed(failure_text(self.mechanism), reason, user)


def failure_text(mechanism: str) -> str:
    """What a client is told of a refusal: Kafka's text, the same for whatever was wrong."""
    return f"Authentication failed during authentication due to invalid credentials with SASL mechanism {mechanism}"
