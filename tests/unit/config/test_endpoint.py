"""Goal: addresses are read as people write them, or refused with a reason; nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.config import Endpoint

NAMES = st.from_regex(r"\A[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,10}){0,3}\Z")
HOSTS = NAMES | st.ip_addresses().map(str)


@given(HOSTS, st.integers(0, 65535))
def test_what_is_shown_can_be_read_back(host: str, port: int) -> None:
    """Goal: parse is the inverse of str for names, IPv4 and IPv6."""
    assert Endpoint.parse(str(Endpoint(host, port))) == Endpoint(host, port)


@given(st.text(max_size=40) | st.text("[]:.0123456789abc", max_size=20))
def test_any_text_is_an_address_or_a_clear_refusal(text: str) -> None:
    """Goal: no text raises anything but ValueError, and what is accepted is shown and read back the same."""
    for parse in (Endpoint.parse, Endpoint.parse_advertised):
        try:
            endpoint = parse(text)
        except ValueError as error:
            assert str(error)
        else:
            assert endpoint.host and 0 <= endpoint.port <= 65535
            assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("localhost", "no port"),
        ("::1:9092", "brackets"),
        ("[::1]", "no port"),
        ("[::1", "IPv6"),
        ("[localhost]:9092", "no IPv6"),
        ("127.0.0.256:1", "neither"),
        ("1:2", "neither"),
        ("*:9092", "neither"),
        ("a b:1", "neither"),
        ("a:65536", "port"),
        ("a:-1", "port"),
        ("a:٣", "port"),
        ("a:", "port"),
        ("tcp://10.0.0.1:9092", "brackets"),
    ],
)
def test_listen_addresses_that_are_refused(text: str, reason: str) -> None:
    """Goal: the message says what is wrong."""
    with pytest.raises(ValueError, match=reason):
        Endpoint.parse(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "", "[0:0::0]", "[::ffff:0.0.0.0]"])
def test_wildcards_are_recognised_and_never_advertised(host: str) -> None:
    """Goal: every spelling of "all addresses" is one, and clients are never told it."""
    assert Endpoint.parse(f"{host}:9092").is_wildcard
    with pytest.raises(ValueError):
        Endpoint.parse_advertised(f"{host}:9092")


def test_an_advertised_address_may_lack_the_port() -> None:
    """Goal: HOST alone is read, IPv6 too, and port 0 is refused, since nobody can connect to it."""
    assert Endpoint.parse_advertised("broker.example") == Endpoint("broker.example", 0)
    assert Endpoint.parse_advertised("[2001:db8::1]") == Endpoint("2001:db8::1", 0)
    assert not Endpoint.parse("127.0.0.1:1").is_wildcard
    with pytest.raises(ValueError, match="port 0"):
        Endpoint.parse_advertised("broker.example:0")


def test_loopback() -> None:
    """Goal: an address that others reach is never taken for one that only this machine reaches."""
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"):
        assert Endpoint(host, 1).is_loopback
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "broker", "127.0.0.1.example.com"):
        assert not Endpoint(host, 1).is_loopback
