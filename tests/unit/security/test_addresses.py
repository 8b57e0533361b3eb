"""Goal: an address has one spelling, and lies in a network or not, however it was written."""

from __future__ import annotations

import pytest

from kafscale.security.addresses import is_within, normalized_address, parse_networks


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("0:0:0:0:0:ffff:10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", "unknown"),
        ("no:address", "no:address"),
    ],
)
def test_one_spelling(written: str, read: str) -> None:
    assert normalized_address(written) == read


def test_networks() -> None:
    """Addresses and CIDR networks of both families; a v4-mapped network is the IPv4 one."""
    networks = parse_networks(["10.0.0.0/8", " 2001:db8::/32", "192.0.2.7", "::ffff:198.51.100.0/120"])
    for inside in ("10.255.0.1", "2001:db8::9", "192.0.2.7", "198.51.100.3"):
        assert is_within(inside, networks)
    for outside in ("11.0.0.1", "2001:db9::1", "192.0.2.8", "198.51.101.0", "unknown", "::1"):
        assert not is_within(outside, networks)


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="no address or network"):
        parse_networks([text])
