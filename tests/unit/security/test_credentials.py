"""Goal: a credential is found where it was put last, its file is read exactly, and a decoy can't be told from one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.security.credentials import (
    CredentialBook,
    format_credential,
    make_credential,
    parse_credentials,
)
from kafscale.security.scram import SCRAM_SHA_256, SCRAM_SHA_512, Keys, is_password

A = make_credential(SCRAM_SHA_256, "a", b"0123456789abcdefghijklmnop", 4096)
B = make_credential(SCRAM_SHA_256, "b", b"0123456789abcdefghijklmnop", 4096)


def test_the_catalogue_wins_over_the_file() -> None:
    """Another credential, or that there is none any more: the catalogue's word counts, mechanism by mechanism."""
    file = {"alice": {SCRAM_SHA_256: A, SCRAM_SHA_512: A}, "carol": {SCRAM_SHA_256: A}}
    book = CredentialBook({"alice": {SCRAM_SHA_256: B}, "carol": {SCRAM_SHA_256: None}}, file, b"k")
    assert book.find("alice", SCRAM_SHA_256) == B
    assert book.find("alice", SCRAM_SHA_512) == A
    assert book.find("carol", SCRAM_SHA_256) is None
    assert book.find_any("carol") is None
    assert book.users() == ["alice"]
    assert book.mechanisms("alice") == {SCRAM_SHA_256: 4096, SCRAM_SHA_512: 4096}
    assert book.is_of_file("carol", SCRAM_SHA_256)


def test_a_file_comes_back_as_it_was_written() -> None:
    """What `format_credential` writes, `parse_credentials` reads, and the password still fits."""
    keys = make_credential(SCRAM_SHA_512, "pencil", bytes(range(40)), 16384)
    lines = [format_credential("alice", SCRAM_SHA_512, keys), format_credential("alice", SCRAM_SHA_256, A)]
    text = "# users\n\n  " + "\n".join(lines)
    found = parse_credentials(text)
    assert found == {"alice": {SCRAM_SHA_512: keys, SCRAM_SHA_256: A}}
    assert is_password(SCRAM_SHA_512, b"pencil", found["alice"][SCRAM_SHA_512])


GOOD = format_credential("alice", SCRAM_SHA_256, A)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice secret", "line 1 is no credential"),
        (GOOD + "\n" + GOOD, "line 2: its user has another"),
        (GOOD.replace("=4096", "=4095"), "line 1: 4095 iterations"),
        (GOOD.replace("=4096", "=16385"), "line 1: 16385 iterations"),
        (GOOD.replace("SHA-256", "SHA-1"), "line 1: SCRAM-SHA-1 is none"),
        (GOOD.replace("SHA-256", "SHA-512"), "line 1: salt, stored_key or server_key has the wrong length"),
        (GOOD.replace("stored_key=", "stored_key=!"), "base64"),
        (GOOD + " trailing", "line 1 is no credential"),
    ],
)
def test_files_that_are_refused(text: str, says: str) -> None:
    """The message names the line and repeats nothing of a key."""
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        parse_credentials(text)
    assert GOOD.split("stored_key=")[1][:20] not in str(raised.value)


@given(st.text(max_size=60), st.text(max_size=60))
def test_decoys_are_constant_and_differ(first: str, second: str) -> None:
    """The same user always gets the same decoy, of the kind that real credentials are; another gets another."""
    book = CredentialBook({"alice": {SCRAM_SHA_256: A}}, {}, b"k")
    decoy = book.decoy(first, SCRAM_SHA_256)
    assert decoy == CredentialBook({"alice": {SCRAM_SHA_256: A}}, {}, b"k").decoy(first, SCRAM_SHA_256)
    assert decoy.iterations == A.iterations
    assert len(decoy.salt) == len(A.salt)
    # Java's AdminClient writes salts in base 36, so they are recognised by that.
    assert re.fullmatch(rb"[0-9a-z]+", decoy.salt)
    if first != second:
        assert decoy.salt != book.decoy(second, SCRAM_SHA_256).salt
    assert decoy != CredentialBook({"alice": {SCRAM_SHA_256: A}}, {}, b"other").decoy(first, SCRAM_SHA_256)


def test_decoys_hardly_change_when_credentials_do() -> None:
    """A credential of a new kind changes the decoys of a part of the users only, and one of a known kind of none."""
    binary = Keys(bytes(range(200, 232)), b"x" * 32, b"x" * 32, 8192)
    one = CredentialBook({"alice": {SCRAM_SHA_256: A}}, {}, b"k")
    same = CredentialBook({"alice": {SCRAM_SHA_256: A}, "bob": {SCRAM_SHA_256: B}}, {}, b"k")
    two = CredentialBook({"alice": {SCRAM_SHA_256: A}, "bob": {SCRAM_SHA_256: binary}}, {}, b"k")
    users = [f"user-{number}" for number in range(200)]
    assert [one.decoy(u, SCRAM_SHA_256) for u in users] == [same.decoy(u, SCRAM_SHA_256) for u in users]
    changed = sum(one.decoy(u, SCRAM_SHA_256) != two.decoy(u, SCRAM_SHA_256) for u in users)
    assert 50 < changed < 150
