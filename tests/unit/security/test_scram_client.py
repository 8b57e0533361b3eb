"""Goal: our own client logs in where the password is right, tells a server that does not know it, and sends nothing
from which one could learn it more cheaply than Kafka allows.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.security.credentials import make_credential
from kafscale.security.exchange import Accepted, Challenge, Refused
from kafscale.security.scram import HASH_OF, ScramExchange
from kafscale.security.scram_client import ScramClient

SALT = b"0123456789abcdefghij"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def exchange(mechanism: str, user: str, password: str) -> ScramExchange:
    """The server's side, which knows one user."""
    known = make_credential(mechanism, password, SALT, 4096)
    return ScramExchange(mechanism, lambda name: known if name == user else None, lambda name: known, b"server")


@settings(max_examples=20)
@given(st.sampled_from(list(HASH_OF)), texts, texts)
def test_who_knows_the_password_is_let_in(mechanism: str, user: str, password: str) -> None:
    """Any user and password, commas and equals signs included; and both sides have proven it."""
    server, client = exchange(mechanism, user, password), ScramClient(mechanism, user, password, b"client")
    challenge = server.step(client.first())
    assert isinstance(challenge, Challenge)
    accepted = server.step(client.final(challenge.data))
    assert isinstance(accepted, Accepted) and accepted.user == user
    client.verify(accepted.data)
    for forged in (b"", b"v=", b"v=" + accepted.data[2:-4] + b"AAA=", b"e=other-error"):
        with pytest.raises(ProtocolError):
            client.verify(forged)


def test_a_wrong_password_is_refused() -> None:
    server, client = exchange("SCRAM-SHA-256", "alice", "right"), ScramClient("SCRAM-SHA-256", "alice", "wrong", b"c")
    challenge = server.step(client.first())
    assert isinstance(challenge, Challenge)
    assert isinstance(server.step(client.final(challenge.data)), Refused)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"e=unknown-user",
        b"r=client,s=AAAA,i=4096",
        b"r=other,s=AAAA,i=4096",
        b"r=clientserver,s=AAAA,i=1",
        b"r=clientserver,s=AAAA,i=999999999",
        b"r=clientserver,s=,i=4096",
        b"m=what,r=clientserver,s=AAAA,i=4096",
    ],
)
def test_a_server_that_would_learn_the_password_is_refused(answer: bytes) -> None:
    """Few iterations, a nonce that is not fresh, anything that is not SCRAM's."""
    with pytest.raises(ProtocolError):
        ScramClient("SCRAM-SHA-256", "alice", "secret", b"client").final(answer)
