"""Goal: every declared setting can be given in every way, the strongest source wins, and what is wrong is said."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafscale.config import DECLARATIONS, Declaration, Endpoint, Setting, Settings, Source, listing, resolve
from kafscale.config.declarations import SECTIONS, declare
from kafscale.config.sources import from_environ, from_file, from_flags
from kafscale.config.values import format_value, parse_text, parse_toml
from kafscale.errors import UsageError
from tests.unit.config.samples import listener_lists

ROOT = Path(__file__).parents[3]
# Secrets have no flag and are never shown.
OPEN = [declaration for declaration in DECLARATIONS if not declaration.setting.secret]


def values_of(declaration: Declaration) -> st.SearchStrategy[Any]:
    """Values that the setting allows."""
    setting = declaration.setting
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(setting.low, setting.high),
        "bool": st.booleans(),
        "str": st.from_regex(rf"\A{setting.pattern or '[a-z/.]+'}\Z").filter(lambda text: text.lower() != "auto"),
        "endpoint": st.builds(
            Endpoint, st.sampled_from(["localhost", "10.0.0.1", "2001:db8::1"]), st.integers(1, 65535)
        ),
        "choice": st.sampled_from(declaration.choices or ("",)),
        "listeners": listener_lists,
    }
    return by_kind[declaration.kind]


def toml_of(declaration: Declaration, value: Any) -> str:
    text = format_value(declaration, value)
    if declaration.kind in ("int", "bool"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@settings(max_examples=400)
@given(st.data())
def test_the_strongest_source_wins(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Goal: for any setting and any subset of sources, the value and its source are those of the strongest."""
    declaration = data.draw(st.sampled_from(OPEN))
    givens = {kind: data.draw(st.none() | values_of(declaration)) for kind in ("file", "variable", "flag")}
    path = str(tmp_path_factory.getbasetemp() / "settings.toml")
    text = "" if givens["file"] is None else f"{declaration.name} = {toml_of(declaration, givens['file'])}\n"
    Path(path).write_text(text)
    environ, flags = {}, {}
    if givens["variable"] is not None:
        environ[declaration.variable] = format_value(declaration, givens["variable"])
    if givens["flag"] is not None:
        flags[declaration.name] = format_value(declaration, givens["flag"])
    expected, source = declaration.default, Source("default")
    for kind, name in (("file", path), ("variable", declaration.variable), ("flag", declaration.flag)):
        if givens[kind] is not None:
            expected, source = givens[kind], Source(kind, name)  # type: ignore[arg-type]
    layers = from_file(path, "--config", DECLARATIONS)
    layers |= from_environ(environ, DECLARATIONS)[0]
    layers |= from_flags(flags, DECLARATIONS)
    assert layers.get(declaration.name, (declaration.default, Source("default"))) == (expected, source)


@given(st.data())
def test_shown_values_can_be_given_back(data: st.DataObject) -> None:
    """Goal: what `kafscale config` prints for any setting is read as the same value, as text and as TOML."""
    declaration = data.draw(st.sampled_from(OPEN))
    value = data.draw(values_of(declaration) | (st.none() if declaration.setting.auto else st.nothing()))
    assert parse_text(declaration, format_value(declaration, value)) == value
    if isinstance(value, bool | int):
        assert parse_toml(declaration, value) == value


@given(st.sampled_from(OPEN), st.text(max_size=100) | st.from_regex(r"\A[+-]?[0-9_.eE]{1,25}\Z"))
def test_any_text_is_a_value_in_bounds_or_one_clear_line(declaration: Declaration, text: str) -> None:
    """Goal: no text for any setting raises anything but a one-line ValueError, and integers stay within bounds."""
    try:
        value = parse_text(declaration, text)
    except ValueError as error:
        assert str(error) and len(str(error)) < 400 and str(error).isprintable()
    else:
        if declaration.kind == "int" and value is not None:
            assert declaration.setting.low is not None and declaration.setting.high is not None
            assert declaration.setting.low <= value <= declaration.setting.high


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(DECLARATIONS),
    st.floats() | st.dates() | st.lists(st.integers()) | st.dictionaries(st.text(), st.text()),
)
def test_toml_values_of_other_types_are_refused(declaration: Declaration, value: object) -> None:
    """Goal: floats, dates, arrays and tables are no settings; a number is no boolean and no text, nor the reverse."""
    with pytest.raises(ValueError, match="is not"):
        parse_toml(declaration, value)
    if declaration.kind == "int":
        with pytest.raises(ValueError):
            parse_toml(declaration, True)
    else:
        with pytest.raises(ValueError):
            parse_toml(declaration, 1)


def test_defaults_are_the_documented_ones() -> None:
    """Goal: with nothing given, the fixed defaults of the manual hold and every source is the default."""
    resolved = resolve({}, {})
    got = resolved.settings
    assert str(got.listen) == str(got.advertise) == "127.0.0.1:9092" and str(got.metrics_addr) == "127.0.0.1:9404"
    assert got.data_dir == "./data" and got.worker_ports is None and got.flush_interval_ms is None
    assert got.workers >= 1 and got.slots == 256 and got.fetch_max_bytes == 55 * 1024 * 1024
    assert set(resolved.sources.values()) == {Source("default")} and resolved.warnings == ()
    assert set(resolved.sources) == {declaration.name for declaration in DECLARATIONS}


def test_defaults_keep_their_own_rules() -> None:
    """Goal: every default lies within its own bounds, and each section begins at a setting that exists."""
    for declaration in DECLARATIONS:
        if declaration.default is not None:
            assert parse_text(declaration, format_value(declaration, declaration.default)) == declaration.default
        if declaration.kind == "int":
            assert declaration.setting.low is not None and declaration.setting.high is not None
    names = [declaration.name for declaration in DECLARATIONS]
    assert [name for name in names if name in SECTIONS] == list(SECTIONS) and names[0] == next(iter(SECTIONS))
    flags = [declaration.flag for declaration in OPEN]
    assert len(set(flags)) == len(flags) and "--metrics" in flags


def test_settings_travel_as_msgpack() -> None:
    """Goal: what a worker decodes from the control socket equals what was resolved."""
    sent = resolve({"advertise": "[2001:db8::1]:9", "worker_ports": "20000"}, {}).settings
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Settings) == sent


@pytest.mark.parametrize("listen", ["0.0.0.0:9092", "[::]:9092", ":9092"])
def test_a_wildcard_needs_an_advertised_address(listen: str) -> None:
    """Goal: listening everywhere without saying what clients are told is refused by name; saying it is enough, and
    that it is meant."""
    with pytest.raises(UsageError, match=r"--listen.*--advertise"):
        resolve({"listen": listen}, {})
    with pytest.raises(UsageError, match="KAFSCALE_LISTEN"):
        resolve({}, {"KAFSCALE_LISTEN": listen})
    with pytest.raises(UsageError, match=r"without encryption or authentication.*KAFSCALE_ALLOW_INSECURE=true"):
        resolve({"listen": listen}, {"KAFSCALE_ADVERTISE": "broker.example"})
    meant = {"KAFSCALE_ADVERTISE": "broker.example", "KAFSCALE_ALLOW_INSECURE": "true"}
    got = resolve({"listen": listen}, meant).settings
    assert got.advertise == got.advertised == Endpoint("broker.example", 9092)


def test_an_advertised_address_follows_a_port_chosen_later() -> None:
    """Goal: with listen port 0 the advertised port stays open, to be filled in after binding."""
    chosen = resolve({"listen": "127.0.0.1:0", "advertise": "here"}, {}).settings
    assert chosen.advertised == Endpoint("here", 0)
    bound = msgspec.structs.replace(chosen, listen=Endpoint("127.0.0.1", 4711))
    assert bound.advertised == Endpoint("here", 4711)


@pytest.mark.parametrize(
    ("flags", "environ", "line"),
    [
        ({"workers": "0"}, {}, r"^--workers: 0 is below the least, 1$"),
        ({"workers": "two"}, {}, r"^--workers: 'two' is not a whole number$"),
        ({"metrics_addr": "9404"}, {}, r"^--metrics: '9404' has no port"),
        ({}, {"KAFSCALE_BROKER_ID": "21474836"}, r"^KAFSCALE_BROKER_ID: 21474836 is above the most, 21474835$"),
        ({}, {"KAFSCALE_WORKERS": ""}, r"^KAFSCALE_WORKERS: is empty"),
        ({"workers": "2"}, {"KAFSCALE_WORKERS": "x"}, r"^KAFSCALE_WORKERS: 'x'"),
        ({}, {"KAFSCALE_AUTO_CREATE_TOPICS": "maybe"}, r"^KAFSCALE_AUTO_CREATE_TOPICS: 'maybe' is neither"),
        ({}, {"KAFSCALE_LOG_LEVEL": "loud"}, r"^KAFSCALE_LOG_LEVEL: 'loud' is none of debug, info, warn, error$"),
        ({}, {"KAFSCALE_CLUSTER_NAMESPACE": "../up"}, r"^KAFSCALE_CLUSTER_NAMESPACE: '../up' is not allowed"),
        ({"group_min_session_timeout_ms": "9", "group_max_session_timeout_ms": "8"}, {}, r"^--group-min.*is above"),
        ({"message_max_bytes": "200000000"}, {}, r"^--message-max-bytes: .* is above socket_request_max_bytes"),
        ({"produce_buffer_bytes": "9000000"}, {}, r"^--produce-buffer-bytes: .* is below"),
        ({"worker_ports": "65535", "workers": "2"}, {}, r"^--worker-ports: .*no room"),
        (
            {"worker_ports": "9090", "workers": "3"},
            {},
            r"^--worker-ports: 9090 to 9092 includes the listen port, 9092$",
        ),
        ({}, {"KAFSCALE_CONFIG": "/nowhere/x.toml"}, r"^KAFSCALE_CONFIG: cannot read '/nowhere/x.toml': No such file"),
    ],
)
def test_bad_values_are_named(flags: dict[str, str], environ: dict[str, str], line: str) -> None:
    """Goal: a value that is wrong, in itself or beside another, is one line that names where it was given."""
    with pytest.raises(UsageError, match=line):
        resolve(flags, environ)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("worker = 3", r"unknown key 'worker'; did you mean workers\?$"),
        ("zzzzzzzz = 3", "unknown key 'zzzzzzzz'$"),
        ("[storage]\nslots = 3", "unknown key 'storage'"),
        ("workers = 'x'", "workers: 'x' is not a whole number$"),
        ("workers = 0", "workers: 0 is below the least, 1$"),
        ("workers = ", "not a TOML file: "),
        ("group_min_session_timeout_ms = 2000000", "group_min_session_timeout_ms: 2000000 is above"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, line: str) -> None:
    """Goal: an unknown key and a bad value name the file and the key, with the nearest valid name where one is near."""
    path = tmp_path / "k.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^{path}: {line}"):
        resolve({}, {}, str(path))


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    """Goal: a directory and a binary file given as --config are one line each."""
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a TOML file"):
        resolve({}, {}, str(binary))
    with pytest.raises(UsageError, match="--config: cannot read"):
        resolve({}, {}, str(tmp_path))


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"KAFSCALE_S3_REGION": "eu"}, "KAFSCALE_S3_REGION: there is no bucket"),
        (
            {"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_ACCESS_KEY": "a"},
            "KAFSCALE_S3_ACCESS_KEY: .*s3_secret_key",
        ),
        (
            {"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_SECRET_KEY": "a"},
            "KAFSCALE_S3_SECRET_KEY: .*s3_access_key",
        ),
        ({"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_READ_REGION": "eu"}, "KAFSCALE_S3_READ_REGION: there is no replica"),
        ({"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_ENDPOINT": "minio:9000"}, "KAFSCALE_S3_ENDPOINT: 'minio:9000'"),
        ({"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_ENDPOINT": "http://a_b:9"}, "KAFSCALE_S3_ENDPOINT: 'http://a_b:9'"),
        ({"KAFSCALE_S3_BUCKET": "s3://bb"}, "KAFSCALE_S3_BUCKET: 's3://bb'"),
    ],
)
def test_s3_settings_that_make_no_sense_together(environ: dict[str, str], line: str) -> None:
    """Goal: half a key pair, a region of nothing, an address that is no URL: one line that names the variable."""
    with pytest.raises(UsageError, match=f"^{line}") as refusal:
        resolve({}, environ)
    assert "\n" not in str(refusal.value)


UNCONDITIONAL = {"KAFSCALE_S3_BUCKET": "bb", "KAFSCALE_S3_UNSAFE_UNCONDITIONAL_PUTS": "true"}


def test_puts_without_a_condition_are_warned_of() -> None:
    """Goal: whoever waives the store's proof is told at every start what he gives up, and nobody else is."""
    (warning,) = resolve({}, UNCONDITIONAL).warnings
    assert warning.startswith("KAFSCALE_S3_UNSAFE_UNCONDITIONAL_PUTS: ") and "overwritten" in warning
    assert resolve({}, UNCONDITIONAL | {"KAFSCALE_S3_UNSAFE_UNCONDITIONAL_PUTS": "false"}).warnings == ()


def test_puts_without_a_condition_are_for_one_broker() -> None:
    """Goal: several brokers without a fence are refused, in one line that names both settings."""
    with pytest.raises(UsageError, match=r"^KAFSCALE_S3_UNSAFE_UNCONDITIONAL_PUTS: .*etcd_endpoints") as refusal:
        resolve({}, UNCONDITIONAL | ETCD)
    assert "\n" not in str(refusal.value)


ETCD = {"KAFSCALE_ETCD_ENDPOINTS": "etcd:2379"}


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"KAFSCALE_ETCD_USERNAME": "u"}, "KAFSCALE_ETCD_USERNAME: there is no etcd; set etcd_endpoints too"),
        ({"KAFSCALE_ETCD_CA_FILE": "ca.pem"}, "KAFSCALE_ETCD_CA_FILE: there is no etcd"),
        ({"KAFSCALE_ETCD_LEASE_TTL_MS": "2000"}, "KAFSCALE_ETCD_LEASE_TTL_MS: there is no etcd"),
        (ETCD | {"KAFSCALE_ETCD_CERT_FILE": "c"}, "KAFSCALE_ETCD_CERT_FILE: .*; set etcd_key_file too, or neither"),
        (ETCD | {"KAFSCALE_ETCD_KEY_FILE": "k"}, "KAFSCALE_ETCD_KEY_FILE: .*; set etcd_cert_file too, or neither"),
        (ETCD | {"KAFSCALE_ETCD_USERNAME": "u"}, "KAFSCALE_ETCD_USERNAME: .*; set etcd_password too, or neither"),
        (ETCD | {"KAFSCALE_ETCD_PASSWORD": "sesame"}, "KAFSCALE_ETCD_PASSWORD: .*; set etcd_username too, or neither"),
        (
            {"KAFSCALE_ETCD_ENDPOINTS": "https://a:2379,https://b:99999"},
            "KAFSCALE_ETCD_ENDPOINTS: 'b:99999': the port '99999' is no number from 0 to 65535",
        ),
        ({"KAFSCALE_ETCD_ENDPOINTS": "http://etcd:0/"}, "KAFSCALE_ETCD_ENDPOINTS: 'http://etcd:0/': .* port 0"),
        ({"KAFSCALE_ETCD_ENDPOINTS": "[::1::2]:2379"}, "KAFSCALE_ETCD_ENDPOINTS: .* no IPv6 address"),
    ],
)
def test_etcd_settings_that_make_no_sense_together(environ: dict[str, str], line: str) -> None:
    """Goal: half a login, half a certificate, a port that is none, and an etcd that is nowhere: one line that names the
    variable and no secret, not a broker that starts as the whole cluster."""
    with pytest.raises(UsageError, match=f"^{line}") as refusal:
        resolve({}, environ)
    assert "\n" not in str(refusal.value) and "sesame" not in str(refusal.value)


def test_etcd_settings_that_make_sense_together() -> None:
    names = ("CA_FILE", "CERT_FILE", "KEY_FILE", "USERNAME", "PASSWORD")
    resolve({}, ETCD | {f"KAFSCALE_ETCD_{name}": "x" for name in names})
    resolve({}, {"KAFSCALE_ETCD_ENDPOINTS": "https://etcd_0.etcd:2379,[2001:db8::1]:65535"})


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"KAFSCALE_SUPER_USERS": "User:a"}, "KAFSCALE_SUPER_USERS: ACLs are off, .* set acl_enabled too$"),
        ({"KAFSCALE_KAFKA_ACL_ENABLED": "1"}, "KAFSCALE_KAFKA_ACL_ENABLED: ACLs are off"),
        ({"KAFSCALE_ALLOW_EVERYONE_IF_NO_ACL_FOUND": "on"}, "KAFSCALE_ALLOW_EVERYONE_IF_NO_ACL_FOUND: ACLs are off"),
        ({"KAFSCALE_ACL_ENABLED": "maybe"}, "KAFSCALE_ACL_ENABLED: 'maybe' is neither true nor false$"),
        (
            {"KAFSCALE_ACL_ENABLED": "1", "KAFSCALE_SUPER_USERS": "User:a;bob"},
            "KAFSCALE_SUPER_USERS: 'bob' is no principal; write its type too: User:bob$",
        ),
        (
            {"KAFSCALE_ACL_ENABLED": "1", "KAFSCALE_SUPER_USERS": "User:"},
            "KAFSCALE_SUPER_USERS: 'User:' is no principal",
        ),
    ],
)
def test_acl_settings_that_would_mislead_are_refused(environ: dict[str, str], line: str) -> None:
    """Goal: whoever believes that ACLs are on, or that someone is a super user, is told that it isn't so."""
    with pytest.raises(UsageError, match=f"^{line}") as refusal:
        resolve({}, environ)
    assert "\n" not in str(refusal.value)


def test_acl_settings_as_kafscale_spells_them() -> None:
    """Goal: KafScale's booleans, a blank document for none, and Kafka's ACLs on where there are super users."""
    for spelling in ("1", "true", "YES", " on "):
        settings = resolve(
            {}, {"KAFSCALE_ACL_ENABLED": spelling, "KAFSCALE_ACL_JSON": " ", "KAFSCALE_ACL_FILE": ""}
        ).settings
        assert (settings.acl_enabled, settings.acl_json, settings.acl_file) == (True, None, None)
        assert not settings.are_kafka_acls_on
    with_users = {"KAFSCALE_ACL_ENABLED": "1", "KAFSCALE_SUPER_USERS": "User:a;User:CN=b,O=c;"}
    assert resolve({}, with_users).settings.are_kafka_acls_on
    assert not resolve({}, {**with_users, "KAFSCALE_KAFKA_ACL_ENABLED": "off"}).settings.are_kafka_acls_on
    assert resolve({}, {"KAFSCALE_ACL_ENABLED": "1", "KAFSCALE_KAFKA_ACL_ENABLED": "on"}).settings.are_kafka_acls_on
    assert not resolve({}, {"KAFSCALE_ACL_JSON": "{}"}).settings.acl_enabled


INSECURE = {"KAFSCALE_ALLOW_INSECURE": "true"}
SHARED = INSECURE | {"KAFSCALE_SHARED_ADDRESS": "true", "KAFSCALE_ETCD_ENDPOINTS": "etcd:2379"}
SECRET = {"KAFSCALE_CLUSTER_SECRET": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (SHARED, r"KAFSCALE_SHARED_ADDRESS: .*KAFSCALE_CLUSTER_SECRET"),
        (
            SHARED | SECRET | {"KAFSCALE_LISTEN": ":9092", "KAFSCALE_ADVERTISE": "front"},
            r"KAFSCALE_LISTEN: .*KAFSCALE_PEER_HOST",
        ),
        (SECRET | {"KAFSCALE_CLUSTER_SECRET_FILE": "f"}, r"KAFSCALE_CLUSTER_SECRET_FILE: cluster_secret is set too"),
        ({"KAFSCALE_PEER_PORTS": "65535", "KAFSCALE_WORKERS": "2"}, r"KAFSCALE_PEER_PORTS: 65535 leaves no room"),
    ],
)
def test_settings_of_a_shared_address_that_make_no_sense_together(environ: dict[str, str], line: str) -> None:
    """Brokers that pass requests on need a secret in common and must know where to reach each other."""
    with pytest.raises(UsageError, match=line):
        resolve({}, environ)


def test_where_other_brokers_reach_this_one() -> None:
    """At the advertised host, unless that leads to any broker; and where it is said."""
    front = INSECURE | {"KAFSCALE_ADVERTISE": "front", "KAFSCALE_LISTEN": "10.0.0.1:9092"}
    assert resolve({}, front).settings.reached_at == "front"
    assert resolve({}, front | SHARED | SECRET).settings.reached_at == "10.0.0.1"
    assert resolve({}, front | SHARED | SECRET | {"KAFSCALE_PEER_HOST": "pod-1"}).settings.reached_at == "pod-1"
    # One listener of several may be behind such an address.
    several = "a://10.0.0.2:1?protocol=PLAINTEXT,b://10.0.0.2:2?protocol=PLAINTEXT&shared_address=true&advertise=front"
    assert resolve({}, INSECURE | {"KAFSCALE_LISTENERS": several}).settings.reached_at == "10.0.0.2"
    # A broker that is its whole cluster needs neither.
    assert resolve({}, {"KAFSCALE_SHARED_ADDRESS": "true"}).settings.cluster_secret is None


def test_unknown_variables_warn_and_security_ones_stop() -> None:
    """Goal: a misspelt variable is a warning with the nearest name; one that looks like a security setting stops."""
    resolved = resolve({}, {"KAFSCALE_WORKER": "3", "KAFSCALE_SEA": "b", "PATH": "/bin"})
    assert resolved.warnings == (
        "unknown variable KAFSCALE_SEA is ignored",
        "unknown variable KAFSCALE_WORKER is ignored; did you mean KAFSCALE_WORKERS?",
    )
    for name in ("KAFSCALE_ACL_POLICY", "KAFSCALE_SASL_USERS", "KAFSCALE_TLS_CERT", "KAFSCALE_LISTENER"):
        with pytest.raises(UsageError, match=f"^unknown variable {name}"):
            resolve({}, {name: "x"})
    for name in (
        "KAFSCALE_PRINCIPAL_FROM",
        "KAFSCALE_TRUSTED_PROXY",
        "KAFSCALE_ACL",
        "KAFSCALE_LISTEN_ADDR",
        "KAFSCALE_ACL_SERVICE_NAME",
    ):
        with pytest.raises(UsageError, match=f"^unknown variable {name}"):
            resolve({}, {name: "x"})


def test_what_kubernetes_injects_is_passed_over() -> None:
    """Goal: a Service called kafscale, kafscale-broker or kafscale-acl changes nothing and warns of nothing."""
    injected = {}
    for prefix in ("KAFSCALE", "KAFSCALE_BROKER", "KAFSCALE_ACL", "KAFSCALE_WORKERS"):
        injected |= {
            f"{prefix}_SERVICE_HOST": "10.0.0.1",
            f"{prefix}_SERVICE_PORT": "9092",
            f"{prefix}_SERVICE_PORT_KAFKA": "9092",
            f"{prefix}_PORT": "tcp://10.0.0.1:9092",
            f"{prefix}_PORT_9092_TCP": "tcp://10.0.0.1:9092",
            f"{prefix}_PORT_9092_TCP_PROTO": "tcp",
            f"{prefix}_PORT_9092_TCP_PORT": "9092",
            f"{prefix}_PORT_9092_TCP_ADDR": "10.0.0.1",
        }
    assert resolve({}, injected) == resolve({}, {})


@pytest.mark.parametrize(
    ("flags", "environ", "listen", "advertise"),
    [
        ({}, {"BROKER_ADDR": "127.0.0.1:7000"}, "127.0.0.1:7000", "127.0.0.1:7000"),
        ({}, {"BROKER_ADDR": ":7000", "BROKER_HOST": "k"}, "0.0.0.0:7000", "k:7000"),
        ({}, {"BROKER_ADDR": ":7000", "BROKER_HOST": "k", "BROKER_PORT": "7001"}, "0.0.0.0:7000", "k:7001"),
        ({}, {"BROKER_HOST": "k", "BROKER_PORT": "7001"}, "127.0.0.1:9092", "k:7001"),
        ({}, {"BROKER_HOST": "k:7002", "BROKER_PORT": "7001"}, "127.0.0.1:9092", "k:7002"),
        ({}, {"BROKER_PORT": "7001"}, "127.0.0.1:7001", "127.0.0.1:7001"),
        ({}, {"BROKER_ADDR": "127.0.0.1:7000", "BROKER_PORT": "7001"}, "127.0.0.1:7000", "127.0.0.1:7001"),
        ({}, {"BROKER_ADDR": "127.0.0.1:7000", "LISTEN": "127.0.0.1:8000"}, "127.0.0.1:8000", "127.0.0.1:8000"),
        ({}, {"BROKER_HOST": "k", "ADVERTISE": "own:1"}, "127.0.0.1:9092", "own:1"),
        ({"listen": "127.0.0.1:8001"}, {"BROKER_ADDR": "127.0.0.1:7000"}, "127.0.0.1:8001", "127.0.0.1:8001"),
        ({}, {"BROKER_PORT": "tcp://10.0.0.1:9092", "BROKER_HOST": "k"}, "127.0.0.1:9092", "k:9092"),
    ],
)
def test_kafscales_spellings(flags: dict[str, str], environ: dict[str, str], listen: str, advertise: str) -> None:
    """Goal: the three variables of KafScale mean what they mean there, and give way to the settings' own names."""
    got = resolve(
        {"broker_tls_cert_file": "c", "broker_tls_key_file": "k"} | flags,
        {f"KAFSCALE_{name}": value for name, value in environ.items()},
    )
    assert (str(got.settings.listen), str(got.settings.advertise)) == (listen, advertise)
    assert got.warnings == ()


def test_kafscales_spellings_are_checked() -> None:
    """Goal: one of them with a value that makes no sense is one line that names it."""
    for name, value in (("KAFSCALE_BROKER_ADDR", "x"), ("KAFSCALE_BROKER_HOST", "a b"), ("KAFSCALE_BROKER_PORT", "x")):
        with pytest.raises(UsageError, match=f"^{name}: "):
            resolve({}, {name: value})
    with pytest.raises(UsageError, match=r"^KAFSCALE_BROKER_ADDR: .*--advertise"):
        resolve({}, {"KAFSCALE_BROKER_ADDR": ":9092"})


def test_an_alias_outranks_the_file_and_the_own_name_outranks_the_alias(tmp_path: Path) -> None:
    """Goal: variables are variables, whichever spelling; of two for the same setting its own name wins."""
    path = tmp_path / "k.toml"
    path.write_text('listen = "127.0.0.1:1"\nflush_bytes = 5000\n')
    aliases = {"KAFSCALE_BROKER_ADDR": "127.0.0.1:2", "KAFSCALE_SEGMENT_BYTES": "6000"}
    got = resolve({}, aliases, str(path))
    assert (got.settings.listen.port, got.settings.flush_bytes) == (2, 6000)
    assert str(got.sources["flush_bytes"]) == "KAFSCALE_SEGMENT_BYTES"
    assert resolve({}, aliases | {"KAFSCALE_FLUSH_BYTES": "7000"}).settings.flush_bytes == 7000


class WithSecret(msgspec.Struct, frozen=True, kw_only=True):
    plain: Annotated[str, Setting("A text.")] = "seen"
    password: Annotated[str, Setting("A secret.", secret=True, pattern="[a-z]+")] = "sesame"
    pin: Annotated[int, Setting("A secret number.", 0, 9999, secret=True)] = 1234


def test_secrets_are_never_shown() -> None:
    """Goal: a secret has no flag and appears in no table, JSON or error message."""
    declared = declare(WithSecret)
    sources = dict.fromkeys(("plain", "password", "pin"), Source("default"))
    shown = (
        listing.as_table(declared, WithSecret(), sources) + listing.as_json(declared, WithSecret(), sources).decode()
    )
    assert "seen" in shown and "sesame" not in shown and "1234" not in shown and "********" in shown
    assert [declaration.flag for declaration in declared] == ["--plain", None, None]
    assert from_flags({"password": "open"}, declared) == {}
    for name, value in (("PASSWORD", "Sesame!"), ("PIN", "98765"), ("PIN", "9x8")):
        with pytest.raises(UsageError) as caught:
            from_environ({f"KAFSCALE_{name}": value}, declared)
        assert f"KAFSCALE_{name}" in str(caught.value) and value not in str(caught.value)


def test_the_manual_is_current() -> None:
    """Goal: docs/settings.md is what the declarations say."""
    written = (ROOT / "docs/settings.md").read_text()
    assert written == listing.as_markdown(), "run: python -m kafscale config --markdown > docs/settings.md"


def test_each_declaration_is_found_in_the_class_body() -> None:
    """Goal: no field of Settings escapes the table (a field without a Setting would be one that nobody can set)."""
    tree = ast.parse((ROOT / "kafscale/config/declarations.py").read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    fields = [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    assert fields == [declaration.name for declaration in DECLARATIONS] == list(Settings.__struct_fields__)
