"""Listeners as people write them: any number of addresses, each with its own protocol, and who its clients are.

Texts and tables to `ListenerSettings` and back; what may not stand together is said here. It reads no file and binds
nothing. A broker without `listeners` has one, made of `listen`, `advertise`, `worker_ports` and what is set for TLS and
SASL (`listeners_of`); what a listener leaves open is taken from those settings too.

As text, a listener is NAME://HOST:PORT?key=value&…, several with commas or spaces between them; values are
percent-encoded where they hold one of `&,#%` or a space. As TOML it is a table of `[[listeners]]`, as JSON an object of
an array, with the same keys and `name` and `listen`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, unquote

import msgspec

from kafscale.config.endpoint import Endpoint

if TYPE_CHECKING:
    from kafscale.config.declarations import Settings

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
ClientCertificates = Literal["none", "requested", "required"]
PrincipalSource = Literal["client_id", "remote_addr", "proxy_addr", "sasl", "mtls"]

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
LISTENERS_MAX: Final = 32
# The one listener of a broker that names none.
DEFAULT_NAME: Final = "clients"
CLEARTEXT_MECHANISMS: Final = frozenset({"PLAIN", "OAUTHBEARER"})

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_BETWEEN: Final = re.compile(r"[,;\s]+(?=[A-Za-z][A-Za-z0-9_.-]*://)")
# A listener's keys and what they take, name and listen excepted.
_KEYS: Final = {
    "protocol": "choice",
    "advertise": "endpoint",
    "worker_ports": "int",
    "shared_address": "bool",
    "mechanisms": "list",
    "client_auth": "choice",
    "principal_source": "choice",
    "principal_mapping_rules": "text",
    "proxy_protocol": "bool",
    "trusted_proxies": "list",
    "tls_cert_file": "text",
    "tls_key_file": "text",
    "tls_key_password_file": "text",  # nosec B105
    "tls_client_ca_file": "text",
    "tls_crl_file": "text",
}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "protocol": PROTOCOLS,
    "client_auth": ("none", "requested", "required"),
    "principal_source": ("client_id", "remote_addr", "proxy_addr", "sasl", "mtls"),
}


class ListenerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One listener. None and () are what was left open; `listeners_of` fills that in."""

    name: str
    protocol: Protocol
    listen: Endpoint
    advertise: Endpoint | None = None
    worker_ports: int | None = None
    shared_address: bool | None = None
    mechanisms: tuple[str, ...] = ()
    client_auth: ClientCertificates | None = None
    principal_source: PrincipalSource | None = None
    principal_mapping_rules: str | None = None
    proxy_protocol: bool | None = None
    trusted_proxies: tuple[str, ...] = ()
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_key_password_file: str | None = None
    tls_client_ca_file: str | None = None
    tls_crl_file: str | None = None

    @property
    def has_tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def has_sasl(self) -> bool:
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    @property
    def advertised(self) -> Endpoint:
        """The address clients are told; its port is 0 while the port is chosen at binding."""
        told = self.advertise or self.listen
        return told if told.port else Endpoint(told.host, self.listen.port)


def parse_listeners(value: object) -> tuple[ListenerSettings, ...]:
    """Read a text (of either form) or the tables of a TOML file. Raises ValueError, one line."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"it begins like JSON and is none: {error}") from None
    if isinstance(value, str):
        tables = [_table_of(part) for part in _BETWEEN.split(value.strip())]
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        tables = value
    else:
        raise ValueError("it is not a list of listeners: write NAME://HOST:PORT?key=value&…, or [[listeners]] tables")
    if len(tables) > LISTENERS_MAX:
        raise ValueError(f"there are {len(tables)} listeners; {LISTENERS_MAX} are the most")
    found = tuple(_listener(table) for table in tables)
    for what, values in (
        ("name", [listener.name for listener in found]),
        ("address", [str(listener.listen) for listener in found if listener.listen.port]),
    ):
        twice = next((one for one in values if values.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"two listeners have the {what} {twice}")
    return found


def format_listeners(listeners: tuple[ListenerSettings, ...]) -> str:
    """The text that `parse_listeners` reads as the same listeners."""
    return ",".join(_text_of(listener) for listener in listeners)


def _text_of(listener: ListenerSettings) -> str:
    pairs = []
    for key in _KEYS:
        value = getattr(listener, key)
        if value is None or value == ():
            continue
        items = (
            value if isinstance(value, tuple) else (str(value).lower() if value is True or value is False else value,)
        )
        # A comma within a text could be taken for the end of the listener.
        pairs.append(f"{key}={','.join(quote(str(item), safe='/:[]$^*()@!') for item in items)}")
    return f"{listener.name}://{listener.listen}?{'&'.join(pairs)}"


def _table_of(text: str) -> dict[str, object]:
    name, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"{_shown(text)} is no listener; write NAME://HOST:PORT?key=value&…")
    address, _, query = rest.partition("?")
    table: dict[str, object] = {"name": name, "listen": address.rstrip("/")}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or key in table:
            raise ValueError(f"listener {_shown(name)}: {_shown(pair)} is no key=value, or stands there twice")
        table[key] = unquote(value)
    return table


def _listener(table: dict[str, object]) -> ListenerSettings:
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{_shown(name)} is no name for a listener: letters, digits, - and _, a letter first")
    values: dict[str, Any] = {"name": name}
    try:
        values["listen"] = Endpoint.parse(_text(table.get("listen"), "listen"))
        for key, value in table.items():
            if key in ("name", "listen"):
                continue
            if key not in _KEYS:
                raise ValueError(f"unknown key {_shown(key)}; there are {', '.join(_KEYS)}")
            values[key] = _value(key, value)
        if "protocol" not in values:
            if name not in PROTOCOLS:
                raise ValueError(f"which protocol? one of {', '.join(PROTOCOLS)}")
            values["protocol"] = name
    except ValueError as error:
        raise ValueError(f"listener {name}: {error}") from None
    return ListenerSettings(**values)


def _value(key: str, value: object) -> Any:
    match _KEYS[key]:
        case "choice":
            text = _text(value, key)
            text = text.upper() if key == "protocol" else text.lower()
            if text not in _CHOICES[key]:
                raise ValueError(f"{key}: {_shown(value)} is none of {', '.join(_CHOICES[key])}")
            return text
        case "endpoint":
            return Endpoint.parse_advertised(_text(value, key))
        case "int":
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
                raise ValueError(f"{key}: {_shown(value)} is no port from 1 to 65535")
            return value
        case "bool":
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
            if not isinstance(value, bool):
                raise ValueError(f"{key}: {_shown(value)} is neither true nor false")
            return value
        case "list":
            items = parse_list(value, key)
            return _upper(items) if key == "mechanisms" else items
        case _:
            return _text(value, key)


def parse_list(value: object, key: str) -> tuple[str, ...]:
    """A text with commas, or an array of texts. Raises ValueError."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{key}: {_shown(value)} is no list of texts")
    found = tuple(item.strip() for item in items if item.strip())
    if not found:
        raise ValueError(f"{key}: the list is empty; leave it out")
    if len(set(found)) < len(found):
        raise ValueError(f"{key}: {_shown(value)} names something twice")
    return found


def _upper(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str.upper, names)))


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{key}: {_shown(value)} is not a text")
    return value.strip()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def listeners_of(settings: Settings) -> tuple[ListenerSettings, ...]:
    """All listeners, the first being the one that `listen` and `advertise` speak of, with nothing left open but what
    means "none"."""
    if settings.listeners is None:
        given: tuple[ListenerSettings, ...] = (_only_listener(settings),)
    else:
        given = settings.listeners
    return tuple(_completed(listener, settings) for listener in given)


def mechanisms_of(settings: Settings) -> set[str]:
    """The SASL mechanisms that some listener offers."""
    return {mechanism for listener in listeners_of(settings) for mechanism in listener.mechanisms}


def _only_listener(settings: Settings) -> ListenerSettings:
    tls, sasl = settings.broker_tls_cert_file is not None, settings.sasl_mechanisms is not None
    protocol: Protocol = ("SASL_SSL" if sasl else "SSL") if tls else "SASL_PLAINTEXT" if sasl else "PLAINTEXT"
    return ListenerSettings(
        name=DEFAULT_NAME,
        protocol=protocol,
        listen=settings.listen,
        advertise=settings.advertise,
        worker_ports=settings.worker_ports,
    )


def _completed(listener: ListenerSettings, settings: Settings) -> ListenerSettings:
    mechanisms = listener.mechanisms or _upper(_listed(settings.sasl_mechanisms, "sasl_mechanisms"))
    source = listener.principal_source or settings.principal_source
    proxy = listener.proxy_protocol if listener.proxy_protocol is not None else settings.proxy_protocol
    is_shared = listener.shared_address if listener.shared_address is not None else settings.shared_address
    values: dict[str, Any] = {
        "shared_address": is_shared,
        "mechanisms": mechanisms if listener.has_sasl else (),
        "principal_mapping_rules": listener.principal_mapping_rules or settings.principal_mapping_rules,
        # An address that a proxy tells of is asked for by name, and then there must be a proxy.
        "proxy_protocol": proxy or source == "proxy_addr",
        "trusted_proxies": listener.trusted_proxies or _listed(settings.trusted_proxies, "trusted_proxies"),
        "client_auth": "none",
    }
    if listener.has_tls:
        own = listener.tls_cert_file is not None
        values |= {
            "tls_cert_file": listener.tls_cert_file or settings.broker_tls_cert_file,
            "tls_key_file": listener.tls_key_file or (None if own else settings.broker_tls_key_file),
            "tls_key_password_file": listener.tls_key_password_file
            or (None if own else settings.broker_tls_key_password_file),
            "tls_client_ca_file": listener.tls_client_ca_file or settings.broker_tls_client_ca_file,
            "tls_crl_file": listener.tls_crl_file or settings.broker_tls_crl_file,
        }
        if values["tls_client_ca_file"] is not None:
            values["client_auth"] = listener.client_auth or settings.broker_tls_client_auth or "required"
        elif listener.client_auth is not None:
            values["client_auth"] = listener.client_auth
        elif settings.broker_tls_client_auth is not None:
            values["client_auth"] = settings.broker_tls_client_auth
    if source is None:
        source = "sasl" if listener.has_sasl else "mtls" if values["client_auth"] != "none" else "client_id"
    values["principal_source"] = source
    return msgspec.structs.replace(listener, **values)


def _listed(text: str | None, key: str) -> tuple[str, ...]:
    return () if text is None else parse_list(text, key)


def check_listeners(settings: Settings) -> list[str]:
    """What may not be, as a ValueError of one line that names the listener; returns what an operator should hear of."""
    warnings: list[str] = []
    for listener in listeners_of(settings):
        try:
            _check_protocol(listener)
            _check_principal(listener)
            warnings += _check_exposure(listener, settings)
        except ValueError as error:
            raise ValueError(f"listener {listener.name} ({listener.protocol}://{listener.listen}): {error}") from None
    return warnings


def _check_protocol(listener: ListenerSettings) -> None:
    if listener.advertise is None and listener.listen.is_wildcard:
        raise ValueError("it takes connections on every address: say by advertise which one clients are told")
    if listener.has_sasl and not listener.mechanisms:
        raise ValueError(f"no SASL mechanism is set; there are {', '.join(MECHANISMS)}")
    for mechanism in listener.mechanisms:
        if mechanism not in MECHANISMS:
            raise ValueError(f"mechanism {_shown(mechanism)} is none of {', '.join(MECHANISMS)}")
    if listener.has_tls:
        for name, value in (("certificate", listener.tls_cert_file), ("key", listener.tls_key_file)):
            if value is None:
                raise ValueError(f"it needs a {name} file (broker_tls_{name[:4]}_file, or the listener's own)")
        if listener.client_auth != "none" and listener.tls_client_ca_file is None:
            raise ValueError(f"client_auth is {listener.client_auth}, and no CA for client certificates is set")
        if listener.tls_crl_file is not None and listener.tls_client_ca_file is None:
            raise ValueError("revoked client certificates are listed, and no CA for client certificates is set")
        return
    own_tls = [key for key in _KEYS if key.startswith("tls_") and getattr(listener, key) is not None]
    if own_tls:
        raise ValueError(f"{own_tls[0]} is for listeners with TLS")


def _check_principal(listener: ListenerSettings) -> None:
    source = listener.principal_source
    if listener.has_sasl != (source == "sasl"):
        known = "a listener with SASL knows its clients by that" if listener.has_sasl else "it has no SASL"
        raise ValueError(f"principal_source can't be {source}: {known}")
    if source == "mtls" and listener.client_auth == "none":
        raise ValueError("principal_source can't be mtls: no client certificates are asked for (client_auth, and a CA)")
    if listener.proxy_protocol and not listener.trusted_proxies:
        raise ValueError("whoever may send PROXY headers must be named: set trusted_proxies to the proxies' addresses")
    for text in listener.trusted_proxies:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {_shown(text)} is no address or network: {error}") from None


def _check_exposure(listener: ListenerSettings, settings: Settings) -> list[str]:
    """What reaches further than this machine must be protected, or be opened by name."""
    warnings = []
    here = f"listener {listener.name} on {listener.listen}"
    if not listener.listen.is_loopback:
        if listener.protocol == "PLAINTEXT" and not settings.allow_insecure:
            raise ValueError(
                "whoever reaches it would be let in without encryption or authentication. Set TLS or SASL up "
                "(docs/security.md), listen on 127.0.0.1, or say KAFSCALE_ALLOW_INSECURE=true"
            )
        if listener.protocol == "PLAINTEXT":
            warnings.append(f"{here} has neither encryption nor authentication (allow_insecure)")
        exposed = CLEARTEXT_MECHANISMS.intersection(listener.mechanisms)
        if listener.protocol == "SASL_PLAINTEXT" and exposed:
            warnings.append(
                f"{here} takes {' and '.join(sorted(exposed))} without encryption: secrets cross it in clear"
            )
    if settings.acl_enabled and listener.principal_source == "client_id":
        warnings.append(
            f"{here} knows clients by the client id, which is what they say of themselves: ACLs keep nobody out who "
            "says another (principal_source)"
        )
    if listener.client_auth == "requested" and listener.principal_source == "mtls":
        warnings.append(f"{here} lets clients without a certificate in, as User:ANONYMOUS")
    return warnings
