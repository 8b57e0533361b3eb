"""Goal: a conversation takes only what may come next, gives a session to whom the mechanism named and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.protocol.error_codes import ErrorCode
from kafscale.security.exchange import Accepted, Challenge, Refused, Step, Verification
from kafscale.security.sasl import Continue, Conversation, Failed, Handshaken, Input, Opened, Stage

WALL_MS = 1_790_000_000_000


class Scripted:
    """A mechanism in which a token says what becomes of it: `ok:NAME[:MS]`, `more`, `no`, `check:NAME`."""

    def __init__(self) -> None:
        self._user = ""

    def step(self, token: bytes) -> Step:
        word, _, rest = token.decode().partition(":")
        name, _, end = rest.partition(":")
        if word == "ok":
            return Accepted(b"done", name, WALL_MS + int(end) if end else None)
        if word == "more":
            return Challenge(b"go on")
        if word == "check":
            self._user = name
            return Verification(lambda: True)
        return Refused("no good", name)

    def settle(self, is_right: bool) -> Step:
        return Accepted(b"", self._user) if is_right else Refused("wrong password", self._user)


def conversation(session_max_ms: int = 0) -> Conversation:
    return Conversation(["A", "B"], lambda _: Scripted(), session_max_ms)


def logged_in(session_max_ms: int = 0, token: bytes = b"ok:alice", now: float = 100.0) -> Conversation:
    talk = conversation(session_max_ms)
    assert talk.handshake(1, "A", now) == Handshaken(ErrorCode.NONE, ["A", "B"])
    assert isinstance(talk.token(token, now, WALL_MS), Opened)
    return talk


def test_the_way_in() -> None:
    """Versions once, a handshake, tokens until the mechanism is content."""
    talk = conversation()
    assert talk.allows(Input.VERSIONS)
    talk.versions_served()
    assert not talk.allows(Input.VERSIONS)
    assert not talk.allows(Input.TOKEN)
    assert talk.handshake(1, "A", 100.0).code == ErrorCode.NONE
    assert not talk.allows(Input.HANDSHAKE)
    assert not talk.allows(Input.RAW_TOKEN)
    assert talk.token(b"more", 100.0, WALL_MS) == Continue(b"go on")
    outcome = talk.token(b"ok:alice", 101.0, WALL_MS)
    assert isinstance(outcome, Opened)
    assert (outcome.session.user, outcome.session.expires_at, outcome.lifetime_ms) == ("alice", None, 0)
    assert talk.stage is Stage.OPEN


def test_raw_tokens_after_the_old_handshake() -> None:
    """Version 0 is followed by tokens without a header, and by no SaslAuthenticate."""
    talk = conversation()
    talk.handshake(0, "A", 100.0)
    assert talk.allows(Input.RAW_TOKEN)
    assert not talk.allows(Input.TOKEN)


def test_an_unknown_mechanism() -> None:
    """The client is told which there are, and that is the end."""
    talk = conversation()
    answer = talk.handshake(1, "GSSAPI", 100.0)
    assert (answer.code, answer.mechanisms) == (ErrorCode.UNSUPPORTED_SASL_MECHANISM, ["A", "B"])
    assert answer.failure is not None
    assert talk.stage is Stage.FAILED


@pytest.mark.parametrize("token", [b"no:alice", b"no:bob", b"no"])
def test_refusals_say_the_same(token: bytes) -> None:
    """Whatever was wrong, the client reads one text, and nothing more is taken."""
    talk = conversation()
    talk.handshake(1, "A", 100.0)
    outcome = talk.token(token, 100.0, WALL_MS)
    assert isinstance(outcome, Failed)
    assert outcome.client_text == (
        "Authentication failed during authentication due to invalid credentials with SASL mechanism A"
    )
    assert not any(talk.allows(what) for what in Input)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_verification_elsewhere(is_right: bool) -> None:
    """While a password is hashed nothing may come; then it is as with any other token."""
    talk = conversation()
    talk.handshake(1, "A", 100.0)
    assert isinstance(talk.token(b"check:alice", 100.0, WALL_MS), Verification)
    assert not any(talk.allows(what) for what in Input)
    outcome = talk.settle(is_right, 100.0, WALL_MS)
    assert isinstance(outcome, Opened if is_right else Failed)


@pytest.mark.parametrize(
    ("session_max_ms", "token", "lifetime_ms"),
    [
        (0, b"ok:alice", 0),
        (60_000, b"ok:alice", 60_000),
        (0, b"ok:alice:5000", 5000),
        (60_000, b"ok:alice:5000", 5000),
        (2000, b"ok:alice:5000", 2000),
        (0, b"ok:alice:-5000", 1),
    ],
)
def test_how_long_a_session_lasts(session_max_ms: int, token: bytes, lifetime_ms: int) -> None:
    """KIP-368: the shorter of the broker's limit and the credential's end."""
    talk = conversation(session_max_ms)
    talk.handshake(1, "A", 100.0)
    outcome = talk.token(token, 100.0, WALL_MS)
    assert isinstance(outcome, Opened)
    assert outcome.lifetime_ms == lifetime_ms
    assert outcome.session.expires_at == (100.0 + lifetime_ms / 1000 if lifetime_ms else None)


def test_re_authentication() -> None:
    """The same mechanism and user prolong a session."""
    talk = logged_in(session_max_ms=10_000)
    assert talk.handshake(1, "A", 105.0).code == ErrorCode.NONE
    outcome = talk.token(b"ok:alice", 106.0, WALL_MS)
    assert isinstance(outcome, Opened)
    assert outcome.session.expires_at == 116.0


def test_re_authentication_as_somebody_else() -> None:
    """Another user, or another mechanism, ends the connection."""
    talk = logged_in(session_max_ms=10_000)
    talk.handshake(1, "A", 105.0)
    assert isinstance(talk.token(b"ok:bob", 106.0, WALL_MS), Failed)
    talk = logged_in(session_max_ms=10_000)
    answer = talk.handshake(1, "B", 105.0)
    assert answer.code == ErrorCode.ILLEGAL_SASL_STATE
    assert talk.stage is Stage.FAILED


def test_re_authentication_out_of_turn() -> None:
    """Within a second, or where sessions have no end, it is refused, and the session goes on."""
    for talk, now in ((logged_in(session_max_ms=10_000), 100.9), (logged_in(), 200.0)):
        answer = talk.handshake(1, "A", now)
        assert (answer.code, answer.failure) == (ErrorCode.ILLEGAL_SASL_STATE, None)
        assert talk.stage is Stage.OPEN


events = st.lists(
    st.one_of(
        st.tuples(st.just("handshake"), st.integers(0, 1), st.sampled_from(["A", "B", "C"])),
        st.tuples(
            st.just("token"),
            st.booleans(),
            st.sampled_from([b"more", b"no", b"ok:alice", b"ok:bob", b"ok:alice:3000", b"check:alice"]),
        ),
        st.tuples(st.just("settle"), st.booleans(), st.just(None)),
        st.tuples(st.just("wait"), st.integers(0, 20), st.just(None)),
        st.tuples(st.just("versions"), st.just(None), st.just(None)),
    ),
    max_size=30,
)


@given(events, st.sampled_from([0, 5000]))
def test_any_order_of_events(script: list[tuple[str, object, object]], session_max_ms: int) -> None:
    """Whatever comes when: a session opens only on an accepted token, and its user and mechanism never change."""
    talk = conversation(session_max_ms)
    now = 100.0
    first: tuple[str, str] | None = None
    for kind, one, two in script:
        opened = None
        if kind == "wait":
            now += float(one)  # type: ignore[arg-type]
        elif kind == "versions" and talk.allows(Input.VERSIONS):
            talk.versions_served()
        elif kind == "handshake" and talk.allows(Input.HANDSHAKE):
            talk.handshake(one, two, now)  # type: ignore[arg-type]
        elif kind == "token" and talk.allows(Input.RAW_TOKEN if one else Input.TOKEN):
            opened = talk.token(two, now, WALL_MS)  # type: ignore[arg-type]
            assert not isinstance(opened, Opened) or two.startswith(b"ok:")  # type: ignore[union-attr]
        elif kind == "settle" and talk.stage is Stage.VERIFYING:
            opened = talk.settle(bool(one), now, WALL_MS)
            assert not isinstance(opened, Opened) or one
        if isinstance(opened, Opened):
            who = (opened.session.user, opened.session.mechanism)
            assert first in (None, who)
            first = who
        assert (talk.session is not None) == (first is not None)
