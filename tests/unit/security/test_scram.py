"""Goal: SCRAM lets in who has the password, as an independent client speaks it, and nobody else, whatever is bent."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient

from kafscale.security.credentials import CredentialBook, make_credential
from kafscale.security.exchange import Accepted, Challenge, Refused, Step
from kafscale.security.scram import HASH_OF, SCRAM_SHA_256, SCRAM_SHA_512, Keys, ScramExchange

NONCE = b"server-nonce"
SALT = b"salt of thirty-two bytes, or so.."
MECHANISMS = sorted(HASH_OF)


def book_of(user: str, password: str, mechanism: str, iterations: int = 4096) -> CredentialBook:
    keys = make_credential(mechanism, password, SALT, iterations)
    return CredentialBook({user: {mechanism: keys}}, {}, b"decoy key")


def exchange_of(book: CredentialBook, mechanism: str, nonce: bytes = NONCE) -> ScramExchange:
    return ScramExchange(
        mechanism, lambda user: book.find(user, mechanism), lambda user: book.decoy(user, mechanism), nonce
    )


def log_in(exchange: ScramExchange, mechanism: str, user: str, password: str) -> Step:
    """Speak as scramp does; checks the server's signature too."""
    client = ScramClient([mechanism], user, password)
    first = exchange.step(client.get_client_first().encode())
    assert isinstance(first, Challenge)
    client.set_server_first(first.data.decode())
    final = exchange.step(client.get_client_final().encode())
    if isinstance(final, Accepted):
        client.set_server_final(final.data.decode())
    return final


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["alice", "a,b=c", "jürgen", "用户"])
def test_an_independent_client_gets_in(mechanism: str, user: str) -> None:
    """scramp logs in with the right password and takes the server's signature for genuine."""
    step = log_in(exchange_of(book_of(user, "pencil", mechanism), mechanism), mechanism, user, "pencil")
    assert isinstance(step, Accepted)
    assert step.user == user


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_wrong_password_and_unknown_user_are_refused_alike(mechanism: str) -> None:
    """Both go through the same steps with messages of the same form, and end the same way."""
    book = book_of("alice", "pencil", mechanism)
    for user, password in (("alice", "pen"), ("bob", "pencil")):
        assert isinstance(log_in(exchange_of(book, mechanism), mechanism, user, password), Refused)
    shapes = []
    for user in ("alice", "bob"):
        first = exchange_of(book, mechanism).step(f"n,,n={user},r=abc".encode())
        assert isinstance(first, Challenge)
        match = re.fullmatch(rb"r=abcserver-nonce,s=([^,]+),i=(\d+)", first.data)
        assert match is not None
        shapes.append((len(base64.b64decode(match[1])), match[2]))
    assert shapes[0] == shapes[1]


def test_the_published_example() -> None:
    """RFC 7677 section 3: user, pencil, 4096 iterations, down to the server's signature."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    keys = make_credential(SCRAM_SHA_256, "pencil", salt, 4096)
    exchange = ScramExchange(SCRAM_SHA_256, lambda _: keys, lambda _: keys, rb"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    first = exchange.step(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert first == Challenge(
        rb"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = exchange.step(
        rb"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        rb"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert final == Accepted(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "user")


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n,,n=alice",
        b"y,,n=alice,r=abc",
        b"p=tls-unique,,n=alice,r=abc",
        b"n,,m=x,n=alice,r=abc",
        b"n,a=bob,n=alice,r=abc",
        b"n,,n=,r=abc",
        b"n,,n=ali=ce,r=abc",
        b"n,,n=alice,r=",
        b"n,,n=alice,r=a b",
        b"n,,n=alice,r=a\x00b",
        b"n,,n=\xff\xfe,r=abc",
        b"n,,n=alice,r=abc,tokenauth=true",
        b"n,,n=" + b"a" * 1025 + b",r=abc",
        b"n,,n=alice,r=" + b"a" * 20_000,
    ],
)
def test_first_messages_that_are_refused(first: bytes) -> None:
    """Anything but the plain form, without channel binding and for oneself, is no login."""
    assert isinstance(exchange_of(book_of("alice", "pencil", SCRAM_SHA_256), SCRAM_SHA_256).step(first), Refused)


def bend(what: Callable[[bytes], bytes]) -> Step:
    """A login that is right but for what is done to its final message."""
    exchange = exchange_of(book_of("alice", "pencil", SCRAM_SHA_512), SCRAM_SHA_512)
    client = ScramClient([SCRAM_SHA_512], "alice", "pencil")
    first = exchange.step(client.get_client_first().encode())
    assert isinstance(first, Challenge)
    client.set_server_first(first.data.decode())
    return exchange.step(what(client.get_client_final().encode()))


@pytest.mark.parametrize(
    "what",
    [
        lambda final: final.replace(b"c=biws", b"c=" + base64.b64encode(b"y,,")),
        lambda final: final.replace(b"c=biws", b"c=" + base64.b64encode(b"p=tls-unique,,")),
        lambda final: final.replace(b"c=biws", b"c=" + base64.b64encode(b"n,a=bob,")),
        lambda final: final.replace(NONCE, b"other"),
        lambda final: final.replace(NONCE, b""),
        lambda final: final[: final.index(b",p=")] + b",p=",
        lambda final: final[: final.index(b",p=")] + b",p=AAAA",
        lambda final: final + b"AAAA",
        lambda final: final.replace(b",p=", b",m=x,p="),
        lambda final: b"x" + final,
        lambda final: b"",
    ],
)
def test_final_messages_that_are_refused(what: Callable[[bytes], bytes]) -> None:
    """A nonce, header or proof that was changed, or an extension slipped in, is no login."""
    assert isinstance(bend(what), Refused)
    assert isinstance(bend(lambda final: final), Accepted)


def test_a_login_can_not_be_replayed() -> None:
    """CVE-2024-56128: messages of one login, heard on the wire, open no other."""
    book = book_of("alice", "pencil", SCRAM_SHA_256)
    heard: list[bytes] = []
    client = ScramClient([SCRAM_SHA_256], "alice", "pencil")
    exchange = exchange_of(book, SCRAM_SHA_256)
    heard.append(client.get_client_first().encode())
    first = exchange.step(heard[0])
    assert isinstance(first, Challenge)
    client.set_server_first(first.data.decode())
    heard.append(client.get_client_final().encode())
    assert isinstance(exchange.step(heard[1]), Accepted)
    other = exchange_of(book, SCRAM_SHA_256, b"another-nonce")
    assert isinstance(other.step(heard[0]), Challenge)
    assert isinstance(other.step(heard[1]), Refused)


@pytest.mark.parametrize("iterations", [1, 4095, 16385])
def test_credentials_out_of_bounds_let_nobody_in(iterations: int) -> None:
    """A credential that slipped past every check still opens nothing, and looks like one that doesn't exist."""
    keys = make_credential(SCRAM_SHA_256, "pencil", SALT, iterations)
    book = CredentialBook({"alice": {SCRAM_SHA_256: keys}}, {}, b"k")
    exchange = ScramExchange(SCRAM_SHA_256, lambda _: keys, lambda user: Keys(SALT, b"0" * 32, b"0" * 32, 4096), NONCE)
    first = exchange.step(b"n,,n=alice,r=abc")
    assert isinstance(first, Challenge)
    assert first.data.endswith(b",i=4096")
    assert book.find("alice", SCRAM_SHA_256) == keys


@settings(max_examples=60)
@given(
    user=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30),
    password=st.text(st.sampled_from("abcXYZ019 ,=/+"), min_size=1, max_size=30),
    other=st.text(st.sampled_from("abcXYZ019 ,=/+"), min_size=1, max_size=30),
)
def test_only_the_password_opens(user: str, password: str, other: str) -> None:
    """For any name and password: that password logs in, another doesn't."""
    book = book_of(user, password, SCRAM_SHA_256)
    escaped = user.replace("=", "=3D").replace(",", "=2C")

    def log_in_with(tried: str) -> Step:
        # scramp prepares names as RFC 4013 wants it; Kafka takes them as they are. So only its arithmetic is used.
        exchange = exchange_of(book, SCRAM_SHA_256)
        first = exchange.step(f"n,,n={escaped},r=abc".encode())
        assert isinstance(first, Challenge)
        client = ScramClient([SCRAM_SHA_256], "x", tried, c_nonce="abc")
        client.get_client_first()
        client.client_first_bare = f"n={escaped},r=abc"
        client.set_server_first(first.data.decode())
        return exchange.step(client.get_client_final().encode())

    assert isinstance(log_in_with(password), Accepted)
    if other != password:
        assert isinstance(log_in_with(other), Refused)
