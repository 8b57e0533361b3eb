"""Listeners of all kinds, for tests of settings."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from kafscale.config import Endpoint
from kafscale.config.listeners import MECHANISMS, PROTOCOLS, ListenerSettings

_hosts = st.sampled_from(["127.0.0.1", "10.0.0.1", "2001:db8::1", "broker.example.com", "0.0.0.0"])
_texts = st.text(st.sampled_from("abc/,.:;&%#?= ü$()*[]+"), min_size=1, max_size=20).map(str.strip).filter(bool)


def _some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


_listeners = st.builds(
    ListenerSettings,
    name=st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,20}\Z"),
    protocol=st.sampled_from(PROTOCOLS),
    listen=st.builds(Endpoint, _hosts, st.integers(1, 65535)),
    advertise=_some(st.builds(Endpoint, st.sampled_from(["10.0.0.1", "broker"]), st.integers(1, 65535))),
    worker_ports=_some(st.integers(1, 65535)),
    shared_address=_some(st.booleans()),
    mechanisms=st.lists(st.sampled_from(MECHANISMS), unique=True, max_size=4).map(tuple),
    client_auth=_some(st.sampled_from(["none", "requested", "required"])),
    principal_source=_some(st.sampled_from(["client_id", "remote_addr", "proxy_addr", "sasl", "mtls"])),
    principal_mapping_rules=_some(_texts),
    proxy_protocol=_some(st.booleans()),
    trusted_proxies=st.lists(st.sampled_from(["10.0.0.0/8", "::1", "192.0.2.7"]), unique=True, max_size=3).map(tuple),
    tls_cert_file=_some(_texts),
    tls_key_file=_some(_texts),
    tls_key_password_file=_some(_texts),
    tls_client_ca_file=_some(_texts),
    tls_crl_file=_some(_texts),
)
listener_lists = st.lists(
    _listeners, min_size=1, max_size=4, unique_by=(lambda one: one.name, lambda one: str(one.listen))
).map(tuple)
