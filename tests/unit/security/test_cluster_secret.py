"""Goal: who does not know the cluster's secret can neither make nor change a datagram; a bad secret is named early."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import StartError
from kafscale.security.cluster_secret import SECRETS_MAX, ClusterSecret, read_secret

ONE = "0123456789abcdef-one"
TWO = "0123456789abcdef-two"


@given(payload=st.binary(max_size=200), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_datagram_that_was_changed_anywhere_is_refused(payload: bytes, at: int, bit: int) -> None:
    """Every single bit counts: of the key's id, of the proof, of the payload."""
    secret = ClusterSecret([ONE])
    sealed = secret.seal(b"news", payload)
    assert secret.open(b"news", sealed) == payload
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1 << bit
    assert secret.open(b"news", bytes(changed)) is None


@given(datagram=st.binary(max_size=64))
def test_what_was_never_sealed_is_refused(datagram: bytes) -> None:
    """Short, empty and random datagrams are nothing, and no error."""
    assert ClusterSecret([ONE]).open(b"news", datagram) is None


def test_a_proof_for_one_use_is_good_for_no_other() -> None:
    """The label is part of what is proven."""
    secret = ClusterSecret([ONE])
    assert secret.open(b"orders", secret.seal(b"news", b"x")) is None


def test_another_secret_opens_nothing() -> None:
    """A cluster with another secret is heard by nobody here."""
    assert ClusterSecret([TWO]).open(b"news", ClusterSecret([ONE]).seal(b"news", b"x")) is None


def test_a_secret_is_changed_one_broker_at_a_time() -> None:
    """While some brokers have (new, old) and others (old, new) or the old alone, all understand each other."""
    old, both, turned = (
        ClusterSecret.parse(ONE),
        ClusterSecret.parse(f"{ONE},{TWO}"),
        ClusterSecret.parse(f"{TWO}\n{ONE}"),
    )
    for sender in (old, both, turned):
        for receiver in (both, turned):
            assert receiver.open(b"news", sender.seal(b"news", b"x")) == b"x"
    assert old.open(b"news", both.seal(b"news", b"x")) == b"x"


@pytest.mark.parametrize("text", ["", "short", f"{ONE},short", ",".join([ONE] * (SECRETS_MAX + 1))])
def test_secrets_that_are_no_good_are_refused(text: str) -> None:
    """None, too short, too many; and the message repeats none of them."""
    with pytest.raises(ValueError) as raised:
        ClusterSecret.parse(text)
    assert ONE not in str(raised.value) and "'short'" not in str(raised.value)


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    """As a mounted secret is: with a line's end behind it. What is set directly comes first."""
    file = tmp_path / "secret"
    file.write_text(ONE + "\n")
    assert ClusterSecret.parse(read_secret(None, str(file)) or "").keys[0].key_id == ClusterSecret([ONE]).keys[0].key_id
    assert read_secret(TWO, str(file)) == TWO
    assert read_secret(None, None) is None


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """A missing, an unreadable and an empty file are errors that name the file; no secret is invented instead."""
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "missing", empty, binary, tmp_path):
        with pytest.raises(StartError, match=str(file)):
            read_secret(None, str(file))
