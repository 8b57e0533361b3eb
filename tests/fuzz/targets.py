"""What is fuzzed: everything that reads what a stranger may send, or what a person wrote.

A target draws its input and reads it. It returns if the input was read or refused as it should be; whatever else is
raised, an AssertionError of its own among it, is a find. Where something could be let in, it says what may be.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.errors import Corrupt, Invalid, ProtocolError
from kafscale.protocol import batches
from kafscale.protocol.api import APIS, decode_request, encode_request
from kafscale.protocol.fetch import parse_fetch
from kafscale.protocol.headers import parse_request_header
from kafscale.protocol.produce import parse_produce
from kafscale.protocol.records import check_records
from kafscale.protocol.table import Api
from kafscale.security.acl_rules import RuleSet
from kafscale.security.distinguished_names import rfc2253_name, subject_of
from kafscale.security.exchange import Accepted, Challenge, Verification
from kafscale.security.kafscale_document import DocumentError, parse_document
from kafscale.security.oauthbearer import OauthbearerExchange
from kafscale.security.peer_handshake import PeerRefused
from kafscale.security.plain import KnownPasswords, PlainExchange
from kafscale.security.proxy_protocol import SIGNATURE_V2, V1_BYTES_MAX, V2_BODY_BYTES_MAX, HeaderReader
from kafscale.security.questions import ask
from kafscale.security.scram import HASH_OF
from kafscale.security.scram_client import ScramClient
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from kafscale.security.tokens import Bearer, SigningKeys, TokenError, TokenRules
from tests.fuzz.mutations import bent, pieces
from tests.unit.protocol.batch_samples import NOW_MS, recrc, small
from tests.unit.protocol.test_hostile import filled
from tests.unit.security import tokens
from tests.unit.security.test_distinguished_names import CN, ORG, name_of
from tests.unit.security.test_peer_handshake import acceptor, body, initiator
from tests.unit.security.test_proxy_protocol import GOOD
from tests.unit.security.test_scram import book_of, exchange_of
from tests.unit.workers.guarded_worker import binding, document
from tests.unit.workers.sasl_client import Gatehouse

Draw = Callable[[st.SearchStrategy[Any]], Any]
# The key and version of ApiVersions, SaslHandshake and SaslAuthenticate, which come before a login.
_VERSIONS, _HANDSHAKE, _AUTHENTICATE = 18, 17, 36


class Target(NamedTuple):
    """`run` draws and reads one input."""

    name: str
    run: Callable[[Draw], None]


# Frames


@cache
def _requests() -> list[tuple[Api, int, bytes]]:
    """A request of every API in every version, with its header and without its size."""
    found = []
    for api in APIS.values():
        for version in range(api.min_version, api.max_version + 1):
            frame = b"".join(encode_request(api, version, 7, "client", filled(api.request, version)))
            found.append((api, version, frame[4:]))
    return found


def frames(draw: Draw) -> None:
    """Header and body of a request; Produce and Fetch by the readers of the hot path too, which agree."""
    _, _, good = draw(st.sampled_from(_requests()))
    frame = draw(bent([good]))
    try:
        header, position = parse_request_header(frame, 0, len(frame))
    except ProtocolError:
        return
    api = APIS.get(header.api_key)
    if api is None or not api.min_version <= header.api_version <= api.max_version:
        return
    by_hand = {0: parse_produce, 1: parse_fetch}.get(header.api_key)
    outcomes = []
    readers: list[Callable[[], Any]] = [lambda: decode_request(api, header.api_version, frame, position, len(frame))]
    if by_hand is not None:
        readers.append(lambda: by_hand(header.api_version, frame, position, len(frame)))
    for read in readers:
        try:
            read()
            outcomes.append("read")
        except ProtocolError:
            outcomes.append("refused")
    assert len(set(outcomes)) == 1, outcomes


def record_batches(draw: Draw) -> None:
    """What a Produce request holds: refused, or a batch whose records can be walked or are refused."""
    samples = [bytes(small(codec=codec)) for codec in range(5)]
    batch = bytearray(draw(bent(samples)))
    if len(batch) >= batches.HEADER_BYTES and draw(st.booleans()):
        recrc(batch)
    try:
        header = batches.check_produced(memoryview(batch), 1 << 20, NOW_MS, max_decompressed_bytes=1 << 20)
        assert header.record_count == header.last_offset + 1 > 0
        check_records(bytes(batch), max_bytes=1 << 20)
    except (Invalid, Corrupt):
        pass


@contextmanager
def _no_errors() -> Iterator[None]:
    """A stack trace in the log is a find."""
    found: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    watch = Watch(logging.ERROR)
    logging.getLogger().addHandler(watch)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(watch)
    assert not found, found[0]


@cache
def _gatehouse() -> Gatehouse:
    # PLAIN hashes in a thread, and is a target of its own.
    return Gatehouse(Settings(authentication_timeout_ms=3000), mechanisms=("SCRAM-SHA-256", "OAUTHBEARER"))


def connections(draw: Draw) -> None:
    """The bytes of a connection to a listener with SASL, in any pieces: it may hear answers, it may be closed, it never
    belongs to anybody (here is no token with a password that is right), and nothing is set aside for it."""
    samples = [
        struct.pack(">i", len(frame)) + frame
        for api, _, frame in _requests()
        if api.key in (_VERSIONS, _HANDSHAKE, _AUTHENTICATE, 3)
    ]
    for mechanism in ("SCRAM-SHA-256", "OAUTHBEARER"):
        handshake = struct.pack(">hhih", _HANDSHAKE, 1, 7, -1) + struct.pack(">h", len(mechanism)) + mechanism.encode()
        token = struct.pack(">hhih", _AUTHENTICATE, 1, 8, -1) + struct.pack(">i", 14) + b"n,,n=alice,r=a"
        samples.append(b"".join(struct.pack(">i", len(frame)) + frame for frame in (handshake, token, token)))
    stream = b"".join(draw(st.lists(bent(samples), min_size=1, max_size=4)))
    with _no_errors():
        client = _gatehouse().connect()
        for piece in pieces(stream, draw(st.lists(st.integers(1, 200), max_size=4))):
            if client.is_closed:
                break
            client.transport.send(piece)
            client.wait(0.01)
        client.wait(1)
        while client.frame() is not None:
            pass
        assert not client.connection.is_authenticated
        client.wait(5)
        assert client.is_closed, "a client that is not known is still there after its time"


def peer_handshakes(draw: Draw) -> None:
    """What comes to the ports that brokers have for each other: refused; only the true proof is taken."""
    calling, called = initiator(), acceptor()
    try:
        challenge = called.challenge(draw(bent([body(calling.hello())])))
        proof = body(calling.prove(body(challenge)))
        said = draw(bent([proof]))
        called.finish(said)
    except (ProtocolError, PeerRefused):
        return
    assert said == proof


def proxy_headers(draw: Draw) -> None:
    """A header, or the protocol error, within bounded bytes and in any pieces; whoever is named has an address."""
    stream = draw(bent(list(GOOD), [b"PROXY ", b"TCP4", b"TCP6", SIGNATURE_V2, b"::ffff:"]))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    outcomes: list[Any] = []
    for limit in (sizes, [1 << 16]):
        reader, position, number = HeaderReader(), 0, 0
        try:
            while reader.wanted:
                data = stream[position : position + min(limit[number % len(limit)], reader.wanted)]
                if not data:
                    break
                reader.feed(data)
                position += len(data)
                number += 1
            assert position <= max(V1_BYTES_MAX, len(SIGNATURE_V2) + 4 + V2_BODY_BYTES_MAX)
            outcomes.append((reader.wanted > 0, reader.source, position))
        except ProtocolError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1], "what is read depends on the pieces"
    if outcomes[0] != "refused" and outcomes[0][1] is not None:
        assert ipaddress.ip_address(outcomes[0][1].host)


# SASL


@cache
def _scram_book(mechanism: str) -> Any:
    return book_of("alice", "pencil", mechanism)


def scram_messages(draw: Draw) -> None:
    """Challenge, refusal, or acceptance; the last for the very message that proves the password, and nothing else."""
    mechanism = draw(st.sampled_from(sorted(HASH_OF)))
    exchange = exchange_of(_scram_book(mechanism), mechanism)
    client = ScramClient(mechanism, "alice", "pencil", b"nonce")
    step = exchange.step(draw(bent([client.first()], [b"n=", b"r=", b"n,,", b"y,,", b"p=tls-unique", b"m=", b"a="])))
    if not isinstance(step, Challenge):
        assert not isinstance(step, Accepted)
        return
    good = b""
    try:
        good = client.final(step.data)
    except ProtocolError:
        pass  # The first message was bent: there is no right answer any more.
    final = draw(bent([good or b"c=biws,r=noncex,p=AAAA"], [b"c=biws", b"r=", b"p=", b"m=x"]))
    if isinstance(exchange.step(final), Accepted):
        assert final == good


def plain_messages(draw: Draw) -> None:
    """Whoever is let in has said the password."""
    book = _scram_book("SCRAM-SHA-256")
    message = draw(bent([b"\0alice\0pencil", b"alice\0alice\0pencil", b"\0bob\0pencil"], [b"\0", b"alice", b"pencil"]))
    exchange = PlainExchange(book.find_any, book.decoy_for_any, KnownPasswords())
    step = exchange.step(message)
    if isinstance(step, Verification):
        step = exchange.settle(step.work())
    if isinstance(step, Accepted):
        assert message in (b"\0alice\0pencil", b"alice\0alice\0pencil") and step.user == "alice"


def oauthbearer_messages(draw: Draw) -> None:
    """The token that is checked is one that the message holds."""
    seen: list[str] = []

    def check(token: str) -> Bearer:
        seen.append(token)
        return Bearer("alice", NOW_MS)

    message = draw(
        bent(
            [b"n,,\x01auth=Bearer abc.def.ghi\x01\x01", b"n,a=alice,\x01auth=Bearer x\x01key=value\x01\x01"],
            [b"\x01", b"auth=", b"Bearer ", b"n,,", b"a=alice"],
        )
    )
    OauthbearerExchange(check).step(message)
    assert len(seen) < 2
    assert all(token.encode() in message for token in seen)


# Tokens

_RULES = TokenRules(issuer="https://issuer", audience="kafka")


@cache
def _keys() -> SigningKeys:
    return SigningKeys(tokens.key_set())


@cache
def _good_tokens() -> list[bytes]:
    return [tokens.token_of(algorithm).encode() for algorithm in ("ES256", "Ed25519", "RS256")]


def web_tokens(draw: Draw) -> None:
    """A token that was touched after it was signed names nobody."""
    token = draw(bent(_good_tokens(), [b".", b"=", b"..", b"eyJhbGciOiJub25lIn0"]))
    try:
        bearer = _keys().bearer_of(token.decode("latin-1"), _RULES, tokens.NOW_MS)
    except TokenError:
        return
    assert bearer.name == "alice" and token in _good_tokens()


def signed_tokens(draw: Draw) -> None:
    """Any header and claims, rightly signed or not at all: nobody, or a name that they hold, until a time they hold."""
    header = {"alg": "ES256", "kid": "ec"} | draw(
        st.dictionaries(
            st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "jku", "b64", "zip", "x"]), _values, max_size=2
        )
    )
    names = ["sub", "iss", "aud", "iat", "exp", "nbf", "scope", "scp", "x"]
    claims = tokens.claims_of() | draw(st.dictionaries(st.sampled_from(names), _values, max_size=3))
    is_signed = draw(st.booleans())
    signed = f"{_part(header)}.{_part(claims)}"
    signature = tokens.signature_of(signed.encode()) if is_signed else b""
    token = f"{signed}.{tokens.text_of(signature)}"
    try:
        bearer = _keys().bearer_of(token, _RULES, tokens.NOW_MS)
    except TokenError:
        return
    assert is_signed and (header["alg"], header["kid"]) == ("ES256", "ec")
    assert bearer.name == claims["sub"].strip() and claims["iss"] == "https://issuer"
    assert claims["aud"] == "kafka" or "kafka" in claims["aud"]
    assert bearer.expires_at_ms == int(claims["exp"] * 1000)


_times = st.sampled_from([0, -1, 1 << 63, 10**400, tokens.NOW_MS // 1000, tokens.NOW_MS // 1000 + 60.5])
_values = st.recursive(
    st.none()
    | st.booleans()
    | _times
    | st.floats()
    | st.sampled_from(["none", "ES256", "HS256", "ec", "kafka", "", " alice"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "kty"]), inner, max_size=1),
    max_leaves=3,
)


def _part(value: Any) -> str:
    return tokens.text_of(json.dumps(value).encode())


def key_sets(draw: Draw) -> None:
    """What an identity provider says: keys, or the complaint that there are none; no private part is taken."""
    try:
        found = SigningKeys(draw(bent([tokens.key_set()], [b'"kty"', b'"oct"', b'"use"', b'"enc"', b'"keys"'])))
    except ValueError:
        return
    assert len(found) > 0


# ACLs

_DOCUMENTS = [
    document(["fetch topic orders-*", "* group *"], ["produce topic t"]).encode(),
    document(["admin cluster *"], default="allow").encode(),
    b'{"enabled":true,"default_policy":"allow","principals":[{"name":"alice","deny":[{}]},{"name":"*","allow":[{}]}]}',
]
_FIELDS = [b'"name":', b'"allow":', b'"deny":', b'"action":', b'"default_policy":', b'"principals":', b"[{}]", b'"*"']


def acl_documents(draw: Draw) -> None:
    """A document, or the complaint with a text; a document compiles and decides, and by `deny` allows who is named."""
    try:
        parsed = parse_document(draw(bent(_DOCUMENTS, _FIELDS)))
    except DocumentError as error:
        assert str(error)
        return
    rules = RuleSet(document=parsed, document_source="fuzz", broken="")
    snapshot = Snapshot(compile_snapshot(rules, 1))
    named = {one.name for one in parsed.principals}
    for principal in ("alice", "nobody in particular", "*"):
        verdict = ask(snapshot, principal, "10.0.0.1", "fetch", "topic", "orders-x")
        assert not verdict.is_allowed or parsed.allows_by_default or principal in named


@cache
def _snapshots() -> list[bytes]:
    return [
        bytes(compile_snapshot(RuleSet(bindings=[binding(text) for text in texts]), 1))
        for texts in ([], ["allow read topic t"], ["deny all topic p*", "allow all topic *", "allow read group g"])
    ]


def acl_snapshots(draw: Draw) -> None:
    """What a worker is handed: whatever is not exactly a snapshot is refused."""
    data = draw(bent(_snapshots()))
    try:
        Snapshot(data)
    except Corrupt:
        return
    assert data in _snapshots()


# Certificates


def certificate_names(draw: Draw) -> None:
    """The subject of a certificate: a name, or the protocol error."""
    samples = [name_of((CN, "admin"), (ORG, "Acme, Inc")), name_of((CN, "a\\,OU=x"))]
    data = draw(bent(samples, [b"\x30", b"\x31", b"\x06\x03\x55\x04\x03", b"\x0c", b"\x84\xff\xff\xff\xff"]))
    for read in (rfc2253_name, subject_of):
        try:
            read(data)
        except ProtocolError:
            pass


TARGETS = [
    Target(run.__name__, run)
    for run in (
        frames,
        record_batches,
        connections,
        peer_handshakes,
        proxy_headers,
        scram_messages,
        plain_messages,
        oauthbearer_messages,
        web_tokens,
        signed_tokens,
        key_sets,
        acl_documents,
        acl_snapshots,
        certificate_names,
    )
]
