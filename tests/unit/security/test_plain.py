"""Goal: PLAIN takes exactly three parts, lets in who has the password, and does the same work for anyone else."""

from __future__ import annotations

import pytest

from kafscale.security.credentials import CredentialBook, make_credential
from kafscale.security.exchange import Accepted, Challenge, Refused, Step, Verification
from kafscale.security.plain import KNOWN_MAX, KnownPasswords, PlainExchange
from kafscale.security.scram import SCRAM_SHA_512

SALT = b"some salt"


def book_of(password: str = "secret") -> CredentialBook:
    return CredentialBook({"alice": {SCRAM_SHA_512: make_credential(SCRAM_SHA_512, password, SALT, 4096)}}, {}, b"k")


def log_in(token: bytes, known: KnownPasswords, book: CredentialBook) -> tuple[Step, bool]:
    """How it ends, and whether the password had to be hashed for it."""
    exchange = PlainExchange(book.find_any, book.decoy_for_any, known)
    step = exchange.step(token)
    if isinstance(step, Verification):
        return exchange.settle(step.work()), True
    return step, False


@pytest.mark.parametrize("token", [b"\0alice\0secret", b"alice\0alice\0secret"])
def test_the_right_password(token: bytes) -> None:
    """It is hashed the first time, and remembered, whichever mechanism the credential is for."""
    known = KnownPasswords()
    assert log_in(token, known, book_of()) == (Accepted(b"", "alice"), True)
    assert log_in(token, known, book_of()) == (Accepted(b"", "alice"), False)


def test_a_changed_password_is_not_remembered() -> None:
    """What was right before the credential changed is hashed anew, and refused."""
    known = KnownPasswords()
    log_in(b"\0alice\0secret", known, book_of())
    step, hashed = log_in(b"\0alice\0secret", known, book_of("other"))
    assert isinstance(step, Refused)
    assert hashed


@pytest.mark.parametrize("token", [b"\0alice\0wrong", b"\0nobody\0secret"])
def test_wrong_password_and_unknown_user(token: bytes) -> None:
    """Both cost a hash, every time."""
    known = KnownPasswords()
    for _ in range(2):
        step, hashed = log_in(token, known, book_of())
        assert isinstance(step, Refused)
        assert hashed


@pytest.mark.parametrize(
    "token",
    [
        b"alice\0secret",
        b"\0alice\0secret\0",
        b"\0alice\0sec\0ret",
        b"\0alice\0",
        b"\0\0secret",
        b"bob\0alice\0secret",
        b"\0\xff\xfe\0secret",
        b"\0" + b"a" * 1025 + b"\0secret",
        b"\0alice\0" + b"a" * 4097,
        b"\0\0",
    ],
)
def test_messages_that_are_refused(token: bytes) -> None:
    """Two or four parts, an empty one, or somebody else's name: refused without any work."""
    step, hashed = log_in(token, KnownPasswords(), book_of())
    assert isinstance(step, Refused)
    assert not hashed


def test_an_empty_first_message_asks_for_one() -> None:
    """RFC 4422: a client may send no initial response."""
    exchange = PlainExchange(book_of().find_any, book_of().decoy_for_any, KnownPasswords())
    assert exchange.step(b"") == Challenge(b"")
    step = exchange.step(b"\0alice\0secret")
    assert isinstance(step, Verification)


def test_what_is_remembered_is_bounded() -> None:
    """The password that was not used for longest is forgotten."""
    known = KnownPasswords()
    for number in range(KNOWN_MAX):
        known.remember(b"%d" % number)
    assert known.knows(b"0")
    known.remember(b"one more")
    assert known.knows(b"0")
    assert not known.knows(b"1")
