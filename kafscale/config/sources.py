"""Where settings come from: flag, then KAFSCALE_* variable, then TOML file, then default. Reads the file, nothing else.

A wrong value is a UsageError also where a stronger source hides it: what is broken is said, not carried along.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from kafscale.config.cpus import usable_cpus
from kafscale.config.declarations import DECLARATIONS, WORKERS_MAX, Declaration, Settings
from kafscale.config.endpoint import Endpoint
from kafscale.config.listeners import ListenerSettings, check_listeners, listeners_of, mechanisms_of
from kafscale.config.values import parse_text, parse_toml
from kafscale.errors import UsageError

_PREFIX = "KAFSCALE_"
# For tests of fencing, and no setting: a hung worker is replaced, but lives on.
NO_KILL_VARIABLE = "KAFSCALE_TEST_NO_KILL"

CONFIG_FLAG = "--config"
CONFIG_VARIABLE = "KAFSCALE_CONFIG"

# Variables of KafScale that stand in people's manifests: the address to listen on, and the host and port that clients
# are told.
BROKER_ADDR = "KAFSCALE_BROKER_ADDR"
BROKER_HOST = "KAFSCALE_BROKER_HOST"
BROKER_PORT = "KAFSCALE_BROKER_PORT"

# A misspelt one of these would leave a door open, so it stops the start.
_SECURITY_WORDS = (
    *("_ACL_", "_SASL_", "_TLS_", "_LISTEN", "_PRINCIPAL_", "_PROXY_PROTOCOL", "_TRUSTED_", "_CREDENTIAL", "_REAUTH"),
)

# What Kubernetes puts into a pod's environment for every service called kafscale-….
_INJECTED_NAME = re.compile(
    r"KAFSCALE_([A-Z0-9_]*_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_INJECTED_PORT = re.compile(r"(tcp|udp|sctp)://.*")


class Source(NamedTuple):
    """Where a value came from; `name` is the flag, the variable, or the file's path."""

    kind: Literal["flag", "variable", "file", "default"]
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind


DEFAULT = Source("default")


class Resolved(NamedTuple):
    """All settings, where each came from (by field name), and lines to show the user."""

    settings: Settings
    sources: Mapping[str, Source]
    warnings: tuple[str, ...]
    config_file: str | None


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], config_file: str | None = None) -> Resolved:
    """Settle every setting.

    `flags` maps field names to the texts given; `config_file` is what --config said. Raises UsageError, one line that
    names the flag, variable or key that a person must mend.
    """
    path = config_file if config_file is not None else environ.get(CONFIG_VARIABLE) or None
    layers: list[dict[str, tuple[Any, Source]]] = [{}]
    if path is not None:
        layers.append(from_file(path, CONFIG_FLAG if config_file is not None else CONFIG_VARIABLE, DECLARATIONS))
    from_variables, warnings = from_environ(environ, DECLARATIONS)
    layers.append(from_variables)
    layers.append(from_flags(flags, DECLARATIONS))
    found = {d.name: (d.default, DEFAULT) for d in DECLARATIONS}
    for layer in layers:
        found.update(layer)
    _apply_broker_aliases(found, environ)
    values = {name: value for name, (value, _) in found.items()}
    sources = {name: source for name, (_, source) in found.items()}
    _derive(values, sources)
    settings = Settings(**values)
    warnings += _check_together(settings, sources)
    return Resolved(settings, sources, tuple(warnings), path)


def from_flags(flags: Mapping[str, str], declarations: Iterable[Declaration]) -> dict[str, tuple[Any, Source]]:
    """Values given as flags, by field name. Raises UsageError."""
    found = {}
    for declaration in declarations:
        text = flags.get(declaration.name)
        if text is not None and declaration.flag is not None:
            source = Source("flag", declaration.flag)
            found[declaration.name] = (_parsed(declaration, text, source), source)
    return found


def from_file(path: str, named_by: str, declarations: Iterable[Declaration]) -> dict[str, tuple[Any, Source]]:
    """Values in a TOML file, by field name; `named_by` is the flag or variable that names it. Raises UsageError."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{named_by}: cannot read {path!r}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {str(error).splitlines()[0]}") from None
    by_name = {declaration.name: declaration for declaration in declarations}
    found = {}
    for key, value in table.items():
        declaration = by_name.get(key)
        if declaration is None:
            raise UsageError(f"{path}: unknown key {key!r}{hint(key, by_name)}")
        try:
            found[key] = (parse_toml(declaration, value), Source("file", path))
        except ValueError as error:
            raise UsageError(f"{path}: {key}: {error}") from None
    return found


def from_environ(
    environ: Mapping[str, str], declarations: Iterable[Declaration]
) -> tuple[dict[str, tuple[Any, Source]], list[str]]:
    """Values in KAFSCALE_* variables, by field name, and warnings of unknown ones. Raises UsageError."""
    found: dict[str, tuple[Any, Source]] = {}
    known = {CONFIG_VARIABLE, BROKER_ADDR, BROKER_HOST, BROKER_PORT, NO_KILL_VARIABLE}
    for declaration in declarations:
        names = (declaration.variable, *declaration.setting.also)
        known.update(names)
        # The setting's own variable last, so that it wins.
        for name in reversed(names):
            if name in environ and not _is_injected(name, environ[name]):
                source = Source("variable", name)
                found[declaration.name] = (_parsed(declaration, environ[name], source), source)
    warnings = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in known or _is_injected(name, environ[name]):
            continue
        if any(word in name + "_" for word in _SECURITY_WORDS):
            raise UsageError(f"unknown variable {name}{hint(name, known, _PREFIX)}")
        warnings.append(f"unknown variable {name} is ignored{hint(name, known, _PREFIX)}")
    return found, warnings


def _is_injected(name: str, value: str) -> bool:
    """Whether Kubernetes put it there (its documentation: "Discovering services", environment variables)."""
    if _INJECTED_NAME.fullmatch(name):
        return True
    return name.endswith("_PORT") and _INJECTED_PORT.fullmatch(value) is not None


def _apply_broker_aliases(found: dict[str, tuple[Any, Source]], environ: Mapping[str, str]) -> None:
    """Read KafScale's three spellings where the settings' own variables, and flags, leave room.

    They rank as variables, so over the file. A port without a host is the port to listen on, if nothing else says that;
    else it is the port clients are told.
    """

    def free(name: str) -> bool:
        return found[name][1].kind in ("default", "file")

    def value(name: str) -> str | None:
        text = environ.get(name)
        return None if text is None or _is_injected(name, text) else text.strip()

    address, host, port = value(BROKER_ADDR), value(BROKER_HOST), value(BROKER_PORT)
    if address is not None:
        endpoint = _read_alias(Endpoint.parse, address, BROKER_ADDR)
        if free("listen"):
            found["listen"] = (endpoint, Source("variable", BROKER_ADDR))
    told = None if host is None else _read_alias(Endpoint.parse_advertised, host, BROKER_HOST)
    if port is not None:
        with_port = _read_alias(Endpoint.parse, f"localhost:{port}", BROKER_PORT)
        if told is None and found["listen"][1] is DEFAULT:
            found["listen"] = (Endpoint(found["listen"][0].host, with_port.port), Source("variable", BROKER_PORT))
        elif told is None or told.port == 0:
            listen: Endpoint = found["listen"][0]
            if told is not None or not listen.is_wildcard:
                told = Endpoint(told.host if told is not None else listen.host, with_port.port)
    if told is not None and free("advertise"):
        found["advertise"] = (told, Source("variable", BROKER_HOST if host is not None else BROKER_PORT))


def _read_alias(parse: Any, text: str, variable: str) -> Endpoint:
    try:
        endpoint: Endpoint = parse(text)
    except ValueError as error:
        raise UsageError(f"{variable}: {error}") from None
    return endpoint


def _derive(values: dict[str, Any], sources: Mapping[str, Source]) -> None:
    """Fill in what follows from the machine or from other settings."""
    if values["workers"] is None:
        values["workers"] = min(usable_cpus(), WORKERS_MAX)
    if values["listeners"] is not None:
        _derive_from_first(values["listeners"][0], values, sources)
        return
    listen: Endpoint = values["listen"]
    advertise: Endpoint | None = values["advertise"]
    if advertise is None:
        if listen.is_wildcard:
            raise UsageError(
                f"{_named('listen', sources)}: {listen} takes connections on every address, so say which one clients "
                "are to be told: set --advertise HOST[:PORT] or KAFSCALE_ADVERTISE"
            )
        values["advertise"] = listen
    elif advertise.port == 0:
        values["advertise"] = Endpoint(advertise.host, listen.port)


def _derive_from_first(first: ListenerSettings, values: dict[str, Any], sources: Mapping[str, Source]) -> None:
    """The settings of one listener speak of the first of several."""
    meant = {"listen": first.listen, "advertise": first.advertised, "worker_ports": first.worker_ports}
    for name, value in meant.items():
        if sources[name].kind != "default" and values[name] != value:
            raise UsageError(
                f"{_named(name, sources)}: {values[name]} is not what listeners say; with listeners, leave it out"
            )
        values[name] = value


def _check_together(settings: Settings, sources: Mapping[str, Source]) -> list[str]:
    """Rules over several settings. Each names one of them in a single line. Returns warnings."""
    try:
        warnings = check_listeners(settings)
    except ValueError as error:
        where = "" if sources["listeners"].kind == "default" else f"{_named('listeners', sources)}: "
        raise UsageError(f"{where}{error}") from None
    if settings.broker_tls_key_password is not None and settings.broker_tls_key_password_file is not None:
        raise UsageError(f"{_named('broker_tls_key_password', sources)}: broker_tls_key_password_file is set as well")
    _check_tokens(settings, sources)
    if settings.group_min_session_timeout_ms > settings.group_max_session_timeout_ms:
        raise UsageError(
            f"{_named('group_min_session_timeout_ms', sources)}: {settings.group_min_session_timeout_ms} is above "
            f"group_max_session_timeout_ms, {settings.group_max_session_timeout_ms}"
        )
    if settings.message_max_bytes > settings.socket_request_max_bytes:
        raise UsageError(
            f"{_named('message_max_bytes', sources)}: {settings.message_max_bytes} is above socket_request_max_bytes, "
            f"{settings.socket_request_max_bytes}, so no such batch could arrive"
        )
    if settings.socket_request_max_bytes > settings.produce_buffer_bytes:
        raise UsageError(
            f"{_named('produce_buffer_bytes', sources)}: {settings.produce_buffer_bytes} is below "
            f"socket_request_max_bytes, {settings.socket_request_max_bytes}, so the largest request would never fit"
        )
    warnings += _check_s3(settings, sources)
    _check_etcd(settings, sources)
    _check_acls(settings, sources)
    _check_audit(settings, sources)
    _check_peers(settings, sources)
    if settings.worker_ports is not None:
        last = settings.worker_ports + settings.workers - 1
        if last > 65535:
            raise UsageError(
                f"{_named('worker_ports', sources)}: {settings.worker_ports} leaves no room below 65536 "
                f"for {settings.workers} workers"
            )
        if settings.worker_ports <= settings.listen.port <= last:
            raise UsageError(
                f"{_named('worker_ports', sources)}: {settings.worker_ports} to {last} includes the listen port, "
                f"{settings.listen.port}"
            )
    return warnings


def _check_audit(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Who says what is to be on record must not find nothing."""
    for name in ("audit_file", "audit_requests"):
        if getattr(settings, name) is not None and settings.audit_log == "off":
            raise UsageError(f"{_named(name, sources)}: nothing is put on record; set audit_log as well")
    if settings.audit_topic and settings.audit_log == "off":
        raise UsageError(f"{_named('audit_topic', sources)}: it holds copies of audit_log, which is off")
    if settings.audit_file is not None and settings.audit_log != "file":
        raise UsageError(f"{_named('audit_file', sources)}: audit_log is {settings.audit_log}, not file")


def _check_tokens(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Without keys every token would have to be refused, or worse: so there is no start (CVE-2026-33557)."""
    url, path = settings.sasl_oauthbearer_jwks_url, settings.sasl_oauthbearer_jwks_file
    if url is not None and path is not None:
        raise UsageError(f"{_named('sasl_oauthbearer_jwks_url', sources)}: sasl_oauthbearer_jwks_file is set as well")
    if url is None and path is None and "OAUTHBEARER" in mechanisms_of(settings):
        raise UsageError(
            "OAUTHBEARER is offered, and there are no keys to check tokens with: set sasl_oauthbearer_jwks_url or "
            "sasl_oauthbearer_jwks_file"
        )
    if url is None:
        return
    parts = urlsplit(url)
    is_local = parts.hostname is not None and Endpoint(parts.hostname, 0).is_loopback
    if parts.scheme != "https" and not (parts.scheme == "http" and (is_local or settings.allow_insecure)):
        raise UsageError(
            f"{_named('sasl_oauthbearer_jwks_url', sources)}: {url!r} is not an https URL; whoever changes what "
            "it says could log in as anybody"
        )
    if parts.hostname is None or parts.username is not None:
        raise UsageError(f"{_named('sasl_oauthbearer_jwks_url', sources)}: the URL names no host, or a user with it")


def _check_peers(settings: Settings, sources: Mapping[str, Source]) -> None:
    if settings.cluster_secret is not None and settings.cluster_secret_file is not None:
        raise UsageError(f"{_named('cluster_secret_file', sources)}: cluster_secret is set too; give one of them")
    if settings.peer_ports is not None and settings.peer_ports + settings.workers > 65536:
        raise UsageError(
            f"{_named('peer_ports', sources)}: {settings.peer_ports} leaves no room below 65536 "
            f"for {settings.workers} workers"
        )
    shared = [listener for listener in listeners_of(settings) if listener.shared_address]
    if not shared or settings.etcd_endpoints is None:
        return
    if settings.cluster_secret is None and settings.cluster_secret_file is None:
        raise UsageError(
            f"{_named('shared_address', sources)}: brokers pass clients' requests on to each other and must know each "
            "other for it: set KAFSCALE_CLUSTER_SECRET or --cluster-secret-file, to the same on all of them"
        )
    first = listeners_of(settings)[0]
    if settings.peer_host is None and first.listen.is_wildcard:
        raise UsageError(
            f"{_named('listen', sources)}: {first.listen} takes connections on every address, and the advertised "
            "one is shared, so say where other brokers reach this one: set --peer-host HOST or KAFSCALE_PEER_HOST"
        )


def _check_s3(settings: Settings, sources: Mapping[str, Source]) -> list[str]:
    given = [name for name in sources if name.startswith("s3_") and sources[name].kind != "default"]
    if settings.s3_bucket is None and given:
        raise UsageError(f"{_named(given[0], sources)}: there is no bucket; set s3_bucket too")
    if (settings.s3_access_key is None) != (settings.s3_secret_key is None):
        one, other = ("s3_access_key", "s3_secret_key")[:: 1 if settings.s3_secret_key is None else -1]
        raise UsageError(f"{_named(one, sources)}: a key goes with its secret; set {other} too, or neither")
    if settings.s3_read_bucket is None:
        for name in ("s3_read_region", "s3_read_endpoint"):
            if name in given:
                raise UsageError(f"{_named(name, sources)}: there is no replica; set s3_read_bucket too")
    if not settings.s3_unsafe_unconditional_puts:
        return []
    where = _named("s3_unsafe_unconditional_puts", sources)
    if settings.etcd_endpoints is not None:
        raise UsageError(
            f"{where}: nothing would fence one broker from another, and etcd_endpoints says that there are several: "
            "they would overwrite each other's records. Leave one of the two out, or use a store that honours "
            "If-None-Match"
        )
    return [
        f"{where}: the store is not asked to prove that it honours If-None-Match. If a second broker, or a worker that "
        "was taken for dead, writes to the bucket, acknowledged records are overwritten and nobody is told"
    ]


def _check_etcd(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Half a set of settings would leave TLS off, or the broker by itself: a whole cluster, which takes over the bucket
    that it shares."""
    given = [name for name in sources if name.startswith("etcd_") and sources[name].kind != "default"]
    if settings.etcd_endpoints is None:
        if given:
            raise UsageError(f"{_named(given[0], sources)}: there is no etcd; set etcd_endpoints too")
        return
    for address in settings.etcd_endpoints.split(","):
        try:
            is_possible = Endpoint.parse(address.rpartition("//")[2].rstrip("/")).port != 0
        except ValueError as error:
            raise UsageError(f"{_named('etcd_endpoints', sources)}: {error}") from None
        if not is_possible:
            raise UsageError(f"{_named('etcd_endpoints', sources)}: {address!r}: nobody can connect to port 0")
    for one, other, rule in (
        ("etcd_cert_file", "etcd_key_file", "a certificate goes with its key"),
        ("etcd_username", "etcd_password", "a user goes with a password"),
    ):
        if (getattr(settings, one) is None) != (getattr(settings, other) is None):
            there, missing = (one, other)[:: 1 if getattr(settings, other) is None else -1]
            raise UsageError(f"{_named(there, sources)}: {rule}; set {missing} too, or neither")


def _check_acls(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Whoever says who may what, and not that it counts, would believe himself safe. (KafScale's document may be there
    and switched off.)"""
    for user in filter(str.strip, (settings.super_users or "").split(";")):
        kind, colon, name = user.strip().partition(":")
        if not (kind and colon and name):
            example = f"User:{kind or name}" if kind or name else "User:alice"
            raise UsageError(
                f"{_named('super_users', sources)}: {user.strip()!r} is no principal; write its type too: {example}"
            )
    if settings.acl_enabled:
        return
    for name in ("kafka_acl_enabled", "super_users", "allow_everyone_if_no_acl_found"):
        if getattr(settings, name):
            raise UsageError(f"{_named(name, sources)}: ACLs are off, so it would do nothing; set acl_enabled too")


def _parsed(declaration: Declaration, text: str, source: Source) -> Any:
    try:
        return parse_text(declaration, text)
    except ValueError as error:
        raise UsageError(f"{source.name}: {error}") from None


def _named(name: str, sources: Mapping[str, Source]) -> str:
    """How the user would find the setting: the flag or variable used, or the file and key, or the bare name."""
    source = sources[name]
    return {"file": f"{source.name}: {name}", "default": name}.get(source.kind, source.name)


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean …?` with the nearest known name, or nothing if none is near. `prefix`: what all begin with."""
    bare = [other.removeprefix(prefix) for other in known]
    near = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
