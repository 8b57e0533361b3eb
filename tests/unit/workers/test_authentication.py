"""Goal: nobody gets past a listener with SASL who has not shown who he is; who is refused learns nothing, not even from
the time; a session ends when it must, and stays its owner's."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from scramp import ScramClient

from kafscale.config import Settings
from kafscale.control import Security
from kafscale.metrics import API_NAMES, AUTHENTICATIONS, CONNECTIONS_CLOSED
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.api_versions import ApiVersionsRequest
from kafscale.protocol.messages.metadata import MetadataRequest
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest
from kafscale.security.access import ANONYMOUS
from kafscale.security.tokens import TOKEN_BYTES_MAX
from tests.unit.security import tokens
from tests.unit.workers.sasl_client import Client, Gatehouse, credentials
from workers.authentication import UNKNOWN_FRAME_BYTES_MAX

TEXT = "Authentication failed during authentication due to invalid credentials with SASL mechanism {}"
DELAY = 0.1


def in_loop(test: Callable[[], Any]) -> None:
    """Run a coroutine function: passwords are hashed in a thread, whose results come back to a loop."""
    asyncio.run(test())


def metadata(client: Client, client_id: str | None = "c") -> Any:
    client.send(ApiKey.METADATA, 9, MetadataRequest(topics=()), client_id)
    return client.answer(ApiKey.METADATA, 9)


def test_the_way_in() -> None:
    """Versions, handshake, password; then requests are served, as the user."""

    async def run() -> None:
        house = Gatehouse()
        client = house.connect()
        client.send(ApiKey.API_VERSIONS, 3, ApiVersionsRequest())
        told = {key.api_key for key in client.answer(ApiKey.API_VERSIONS, 3).api_keys}
        assert {ApiKey.SASL_HANDSHAKE, ApiKey.SASL_AUTHENTICATE} <= told
        answer = await client.log_in()
        assert (answer.error_code, answer.session_lifetime_ms) == (0, 0)
        assert client.connection.principal == "User:alice"
        assert metadata(client).brokers
        assert house.node.bench.count(AUTHENTICATIONS.at("PLAIN", "success")) == 1
        (login,) = house.logins
        assert (login.is_granted, login.principal, login.client_host) == (True, "User:alice", "10.1.2.3")

    in_loop(run)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_scram(mechanism: str, version: int) -> None:
    """scramp logs in through all versions of SaslAuthenticate."""
    client = Gatehouse().connect()
    assert client.shake_hands(mechanism).error_code == 0
    scram = ScramClient([mechanism], "alice", "secret")
    first = client.authenticate(scram.get_client_first().encode(), version)
    scram.set_server_first(first.auth_bytes.decode())
    final = client.authenticate(scram.get_client_final().encode(), version)
    scram.set_server_final(final.auth_bytes.decode())
    assert client.connection.principal == "User:alice"


def test_raw_tokens() -> None:
    """After a handshake of version 0 tokens come bare, and so do the answers; a refusal is a closed connection."""
    house = Gatehouse()
    client = house.connect()
    assert client.shake_hands("SCRAM-SHA-256", version=0).error_code == 0
    scram = ScramClient(["SCRAM-SHA-256"], "bob", "builder")
    client.send_raw(scram.get_client_first().encode())
    first = client.frame()
    assert first is not None
    scram.set_server_first(first.decode())
    client.send_raw(scram.get_client_final().encode())
    final = client.frame()
    assert final is not None
    scram.set_server_final(final.decode())
    assert client.connection.principal == "User:bob"
    assert metadata(client).brokers
    refused = house.connect()
    refused.shake_hands("SCRAM-SHA-256", version=0)
    refused.send_raw(b"nonsense")
    refused.wait(DELAY)
    assert refused.is_closed
    assert refused.frame() is None


def test_what_follows_a_raw_token_waits() -> None:
    """A Produce that is sent right behind a raw token is not begun before the client is known."""

    async def run() -> None:
        house = Gatehouse()
        client = house.connect()
        client.shake_hands("PLAIN", version=0)
        token, produce = b"\0alice\0secret", b"\0\0\0\x09"
        client.transport.send(b"".join(struct.pack(">i", len(data)) + data for data in (token, produce)))
        await house.logged_in(1)
        assert house.logins[0].is_granted
        assert client.frame() == b""
        # It ends within its header, so it is no request at all.
        assert client.is_closed

    in_loop(run)


@pytest.mark.parametrize("key", [key for key in range(len(API_NAMES)) if key not in (17, 18)])
@pytest.mark.parametrize("after_handshake", [False, True])
def test_nothing_else_before_authentication(key: int, after_handshake: bool) -> None:
    """Any other API closes the connection, after the delay, and its body is not looked at: here it is none."""
    house = Gatehouse()
    client = house.connect()
    if after_handshake:
        client.shake_hands("PLAIN")
        if key == ApiKey.SASL_AUTHENTICATE:
            return
    header = struct.pack(">hhih", key, APIS[key].max_version if key in APIS else 0, 7, -1)
    client.send_raw(header + b"\0\xff\xff\xff\xff this is no body")
    assert not client.is_closed
    client.wait(DELAY)
    assert client.is_closed
    answer = client.answer(key, 2) if key == ApiKey.SASL_AUTHENTICATE else client.frame()
    if key == ApiKey.SASL_AUTHENTICATE:
        assert answer.error_code == ErrorCode.ILLEGAL_SASL_STATE
    else:
        assert answer is None
    assert not house.logins[0].is_granted
    assert client.connection.principal == ANONYMOUS


def test_versions_are_told_once() -> None:
    """A version that is not known may be tried again; a second answer is not given."""
    client = Gatehouse().connect()
    client.send_raw(struct.pack(">hhih", 18, 99, 1, -1) + b"\0")
    assert client.answer(ApiKey.API_VERSIONS, 0).error_code == ErrorCode.UNSUPPORTED_VERSION
    client.send(ApiKey.API_VERSIONS, 3, ApiVersionsRequest())
    assert client.answer(ApiKey.API_VERSIONS, 3).error_code == 0
    client.send(ApiKey.API_VERSIONS, 3, ApiVersionsRequest())
    client.wait(DELAY)
    assert client.is_closed


@pytest.mark.parametrize("mechanism", ["GSSAPI", "", "plain", "X" * 5000])
def test_an_unknown_mechanism(mechanism: str) -> None:
    """33 and the list of those there are, after the delay; then the connection ends."""
    client = Gatehouse().connect()
    assert client.shake_hands(mechanism) is None
    client.wait(DELAY)
    answer = client.answer(ApiKey.SASL_HANDSHAKE, 1)
    assert answer.error_code == ErrorCode.UNSUPPORTED_SASL_MECHANISM
    assert list(answer.mechanisms) == ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    assert client.is_closed


@pytest.mark.parametrize(
    "token",
    [b"\0alice\0wrong", b"\0nobody\0secret", b"bob\0alice\0secret", b"\0alice\0", b"alice", b"a\0b\0c\0d", b"\0\0"],
)
def test_refusals_can_not_be_told_apart(token: bytes) -> None:
    """Unknown user, wrong password or nonsense: the same answer at the same moment, a tenth of a second after the
    request came, however long the hash took."""

    async def run() -> None:
        house = Gatehouse()
        client = house.connect()
        client.shake_hands("PLAIN")
        assert await client.authenticate_slowly(token) is None
        client.wait(DELAY - 0.001)
        assert client.frame() is None
        assert not client.is_closed
        client.wait(0.001)
        answer = client.answer(ApiKey.SASL_AUTHENTICATE, 2)
        assert answer.error_code == ErrorCode.SASL_AUTHENTICATION_FAILED
        assert answer.error_message == TEXT.format("PLAIN")
        assert (answer.auth_bytes, answer.session_lifetime_ms) == (b"", 0)
        assert client.is_closed
        assert house.node.bench.count(AUTHENTICATIONS.at("PLAIN", "failure")) == 1
        assert house.node.bench.count(CONNECTIONS_CLOSED.at("authentication")) == 1

    in_loop(run)


def test_an_impatient_client() -> None:
    """One that goes away before it hears costs nothing more."""
    house = Gatehouse()
    client = house.connect()
    client.shake_hands("SCRAM-SHA-256")
    client.authenticate(b"nonsense")
    client.transport.lose()
    client.wait(1)
    assert client.frame() is None
    gone = house.connect()
    gone.shake_hands("PLAIN")
    gone.send(ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=b"x"))
    gone.transport.lose()


def test_who_goes_away_while_a_password_is_hashed() -> None:
    """What the hash comes to is nobody's then."""

    async def run() -> None:
        house = Gatehouse()
        client = house.connect()
        client.shake_hands("PLAIN")
        client.send(ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=b"\0alice\0secret"))
        client.transport.lose()
        other = house.connect()
        assert (await other.log_in()).error_code == 0
        assert len(house.logins) == 1

    in_loop(run)


@pytest.mark.parametrize("size", [-1, UNKNOWN_FRAME_BYTES_MAX + 1, 2**31 - 1])
def test_frames_before_authentication(size: int) -> None:
    """More than half a mebibyte closes the connection before a byte of memory is set aside."""
    house = Gatehouse()
    client = house.connect()
    client.transport.send(struct.pack(">i", size))
    assert client.is_closed
    assert house.node.bench.count(CONNECTIONS_CLOSED.at("too_large")) == 1


def test_frames_after_authentication() -> None:
    """Known clients may send what all may."""

    async def run() -> None:
        client = Gatehouse().connect()
        await client.log_in()
        client.transport.send(struct.pack(">i", UNKNOWN_FRAME_BYTES_MAX + 1))
        assert not client.is_closed

    in_loop(run)


def test_who_takes_too_long() -> None:
    """Without a login in time the connection is closed, whatever was sent meanwhile; with one it stays."""

    async def run() -> None:
        house = Gatehouse(Settings(authentication_timeout_ms=5000))
        slow, quick = house.connect(), house.connect()
        slow.shake_hands("PLAIN")
        await quick.log_in()
        slow.wait(4)
        assert not slow.is_closed
        slow.wait(2)
        assert slow.is_closed
        assert not quick.is_closed

    in_loop(run)


def test_sasl_out_of_turn() -> None:
    """On a session without an end both APIs are answered with 34, and the session goes on."""

    async def run() -> None:
        client = Gatehouse().connect()
        await client.log_in()
        assert client.shake_hands("PLAIN").error_code == ErrorCode.ILLEGAL_SASL_STATE
        assert client.authenticate(b"\0alice\0secret").error_code == ErrorCode.ILLEGAL_SASL_STATE
        assert metadata(client).brokers

    in_loop(run)


def test_re_authentication() -> None:
    """KIP-368: the lifetime is told, a second login prolongs it, and without one requests end with it."""

    async def run() -> None:
        house = Gatehouse(Settings(connections_max_reauth_ms=10_000))
        client = house.connect()
        assert (await client.log_in()).session_lifetime_ms == 10_000
        client.wait(0.5)
        assert client.shake_hands("PLAIN").error_code == ErrorCode.ILLEGAL_SASL_STATE
        client.wait(8)
        assert metadata(client).brokers
        assert (await client.log_in()).session_lifetime_ms == 10_000
        client.wait(9.9)
        assert metadata(client).brokers
        client.wait(0.2)
        assert metadata(client) is None
        assert client.is_closed
        assert house.node.bench.count(CONNECTIONS_CLOSED.at("session")) == 1
        assert [login.is_repeated for login in house.logins] == [False, True]

    in_loop(run)


def test_re_authentication_after_the_end() -> None:
    """An expired session may still be prolonged; only other requests end it, as in Kafka."""

    async def run() -> None:
        client = Gatehouse(Settings(connections_max_reauth_ms=10_000)).connect()
        await client.log_in()
        client.wait(11)
        assert (await client.log_in()).error_code == 0
        assert metadata(client).brokers

    in_loop(run)


@pytest.mark.parametrize("how", ["user", "mechanism", "password"])
def test_re_authentication_as_another(how: str) -> None:
    """Another user, another mechanism, or a wrong password: the connection ends."""

    async def run() -> None:
        client = Gatehouse(Settings(connections_max_reauth_ms=10_000)).connect()
        await client.log_in()
        client.wait(2)
        if how == "mechanism":
            assert client.shake_hands("SCRAM-SHA-256") is None
            client.wait(DELAY)
            assert client.answer(ApiKey.SASL_HANDSHAKE, 1).error_code == ErrorCode.ILLEGAL_SASL_STATE
        else:
            answer = await client.log_in(*(("bob", "builder") if how == "user" else ("alice", "wrong")))
            assert answer is None
            client.wait(DELAY)
            assert client.answer(ApiKey.SASL_AUTHENTICATE, 2).error_code == ErrorCode.SASL_AUTHENTICATION_FAILED
        assert client.is_closed

    in_loop(run)


def test_deleted_credentials() -> None:
    """New logins fail at once; a session that is open goes on until it must authenticate again."""

    async def run() -> None:
        house = Gatehouse(Settings(connections_max_reauth_ms=10_000))
        client = house.connect()
        await client.log_in()
        house.authenticator.replace_security(Security(credentials=credentials(bob="builder")))
        late = house.connect()
        late.shake_hands("PLAIN")
        assert await late.authenticate_slowly(b"\0alice\0secret") is None
        client.wait(5)
        assert metadata(client).brokers
        assert await client.log_in() is None
        client.wait(DELAY)
        assert client.is_closed

    in_loop(run)


def token_message(token: str) -> bytes:
    return b"n,,\x01auth=Bearer " + token.encode() + b"\x01\x01"


@pytest.fixture
def with_tokens() -> Gatehouse:
    house = Gatehouse(Settings(sasl_oauthbearer_audience="kafka", sasl_oauthbearer_issuer="https://issuer"))
    house.authenticator.replace_security(Security(signing_keys=tokens.key_set()))
    return house


def test_tokens(with_tokens: Gatehouse) -> None:
    """A good token opens a session that ends with it."""
    client = with_tokens.connect()
    client.shake_hands("OAUTHBEARER")
    answer = client.authenticate(token_message(tokens.token_of(now_ms=with_tokens.clock.wall_ms())))
    assert (answer.error_code, answer.session_lifetime_ms) == (0, 300_000)
    client.wait(299)
    assert metadata(client).brokers
    client.wait(2)
    assert metadata(client) is None


@pytest.mark.parametrize(
    "what", ["unsigned", "public key as secret", "other issuer", "other audience", "old", "no key"]
)
def test_tokens_that_are_refused(with_tokens: Gatehouse, what: str) -> None:
    """The provider's error first, then 58; an unknown key makes the supervisor look for new ones."""
    now_ms = with_tokens.clock.wall_ms()
    token = {
        "unsigned": tokens.unsigned_token({"alg": "none"}, now_ms=now_ms),
        "public key as secret": tokens.secret_token(tokens.RSA.as_pem(private=False), now_ms=now_ms),
        "other issuer": tokens.token_of(now_ms=now_ms, iss="https://evil"),
        "other audience": tokens.token_of(now_ms=now_ms, aud="other"),
        "old": tokens.token_of(now_ms=now_ms - 400_000),
        "no key": tokens.token_of(now_ms=now_ms, kid="unknown"),
    }[what]
    client = with_tokens.connect()
    client.shake_hands("OAUTHBEARER")
    challenge = client.authenticate(token_message(token))
    assert (challenge.error_code, challenge.auth_bytes) == (0, b'{"status":"invalid_token"}')
    assert client.authenticate(b"\x01") is None
    client.wait(DELAY)
    answer = client.answer(ApiKey.SASL_AUTHENTICATE, 2)
    assert (answer.error_code, answer.error_message) == (58, TEXT.format("OAUTHBEARER"))
    assert client.is_closed
    assert with_tokens.keys_wanted == (what == "no key")
    assert token[:20] not in str(with_tokens.logins)


def test_a_token_that_is_too_long(with_tokens: Gatehouse) -> None:
    client = with_tokens.connect()
    client.shake_hands("OAUTHBEARER")
    assert client.authenticate(token_message("a" * (TOKEN_BYTES_MAX + 1))).auth_bytes == b'{"status":"invalid_token"}'


def test_all_at_once() -> None:
    """A client that sends everything without waiting for answers gets them all, in order."""

    async def run() -> None:
        house = Gatehouse()
        client = house.connect()
        client.send(ApiKey.SASL_HANDSHAKE, 1, SaslHandshakeRequest(mechanism="PLAIN"))
        client.send(ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=b"\0alice\0secret"))
        client.send(ApiKey.METADATA, 9, MetadataRequest(topics=()))
        assert client.answer(ApiKey.SASL_HANDSHAKE, 1).error_code == 0
        await house.logged_in(1)
        assert client.answer(ApiKey.SASL_AUTHENTICATE, 2).error_code == 0
        assert client.answer(ApiKey.METADATA, 9).brokers

    in_loop(run)


def test_named_by_the_client() -> None:
    """Where the client id is the name, each request's counts; none, or a blank one, is nobody's."""
    client = Gatehouse(protocol="PLAINTEXT", principal_source="client_id").connect()
    for client_id, principal in (
        ("a", "User:a"),
        ("a", "User:a"),
        (" b ", "User: b "),
        (None, ANONYMOUS),
        ("  ", ANONYMOUS),
        ("", ANONYMOUS),
        ("a", "User:a"),
    ):
        assert metadata(client, client_id).brokers
        assert client.connection.principal == principal


@pytest.mark.parametrize("source", ["remote_addr", "proxy_addr"])
def test_named_by_address(source: str) -> None:
    """An IPv4 address that came through an IPv6 socket is the IPv4 address."""
    house = Gatehouse(protocol="PLAINTEXT", principal_source=source)
    assert house.connect("::ffff:10.0.0.1").connection.principal == "User:10.0.0.1"
    assert house.connect("10.0.0.1").connection.client_host == "10.0.0.1"
