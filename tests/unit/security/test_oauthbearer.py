"""Goal: OAUTHBEARER finds the token in the first message, fails in two steps, and takes no other message."""

from __future__ import annotations

import pytest

from kafscale.security.exchange import Accepted, Challenge, Refused
from kafscale.security.oauthbearer import OauthbearerExchange
from kafscale.security.tokens import Bearer, TokenError


def check(token: str) -> Bearer:
    if token != "good.token-1_2.x":
        raise TokenError("no")
    return Bearer("alice", 1234)


@pytest.mark.parametrize(
    "message",
    [
        b"n,,\x01auth=Bearer good.token-1_2.x\x01\x01",
        b"n,a=alice,\x01auth=bearer good.token-1_2.x\x01\x01",
        b"n,,\x01traceId=7\x01auth=Bearer good.token-1_2.x\x01logicalCluster=lkc 1\x01\x01",
    ],
)
def test_a_good_token(message: bytes) -> None:
    """With or without a name to act as, and with extensions."""
    assert OauthbearerExchange(check).step(message) == Accepted(b"", "alice", 1234)


@pytest.mark.parametrize(
    "message", [b"n,,\x01auth=Bearer bad\x01\x01", b"n,a=bob,\x01auth=Bearer good.token-1_2.x\x01\x01"]
)
def test_a_refusal_takes_two_steps(message: bytes) -> None:
    """RFC 7628 section 3.2.3: first the server's error, then the client's byte, whatever it is, then the end."""
    exchange = OauthbearerExchange(check)
    assert exchange.step(message) == Challenge(b'{"status":"invalid_token"}')
    assert isinstance(exchange.step(b"\x01"), Refused)
    assert isinstance(exchange.step(b"n,,\x01auth=Bearer good.token-1_2.x\x01\x01"), Refused)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01",
        b"n,,\x01\x01",
        b"y,,\x01auth=Bearer good.token-1_2.x\x01\x01",
        b"p=x,,\x01auth=Bearer good.token-1_2.x\x01\x01",
        b"n,,\x01auth=Bearer good.token-1_2.x\x01",
        b"n,,\x01auth=Bearer good.token-1_2.x\x01\x01x",
        b"n,,\x01auth=Basic good.token-1_2.x\x01\x01",
        b"n,,\x01auth=Bearer \x01\x01",
        b"n,,\x01auth=Bearer good.token-1_2.x\x01auth=Bearer bad\x01\x01",
        b"n,,\x01a1=x\x01auth=Bearer good.token-1_2.x\x01\x01",
        b"n,,\x01auth=Bearer good.token-1_2.x " + b"a" * 200_000 + b"\x01\x01",
    ],
)
def test_messages_that_are_refused(message: bytes) -> None:
    """Anything but one token in the RFC's form, without channel binding."""
    assert isinstance(OauthbearerExchange(check).step(message), Refused)
