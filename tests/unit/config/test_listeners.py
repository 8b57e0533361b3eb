"""Goal: listeners mean the same in every notation, one that lets just anybody in is never served unasked, and what does
not fit together is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from kafscale.config import Endpoint, Settings, resolve
from kafscale.config.listeners import ListenerSettings, format_listeners, listeners_of, parse_listeners
from kafscale.errors import UsageError
from tests.unit.config.samples import listener_lists

TLS = {"broker_tls_cert_file": "cert.pem", "broker_tls_key_file": "key.pem"}
MUTUAL = TLS | {"broker_tls_client_ca_file": "ca.pem"}


def listeners(flags: dict[str, str], **variables: str) -> tuple[ListenerSettings, ...]:
    return listeners_of(resolve(flags, {f"KAFSCALE_{name}": text for name, text in variables.items()}).settings)


@given(listener_lists)
def test_all_notations_say_the_same(value: tuple[ListenerSettings, ...]) -> None:
    """Text, JSON and tables are read as the listeners that they were written from."""
    assert parse_listeners(format_listeners(value)) == value
    tables = []
    for listener in value:
        plain = msgspec.structs.asdict(listener) | {"listen": str(listener.listen)}
        if listener.advertise is not None:
            plain["advertise"] = str(listener.advertise)
        tables.append(
            {
                key: list(item) if isinstance(item, tuple) else item
                for key, item in plain.items()
                if item not in (None, ())
            }
        )
    assert parse_listeners(tables) == parse_listeners(json.dumps(tables)) == value


def test_the_short_form() -> None:
    """Without `listeners` there is one; a certificate makes it SSL, mechanisms make it SASL."""
    assert [(one.name, one.protocol, one.principal_source) for one in listeners({})] == [
        ("clients", "PLAINTEXT", "client_id")
    ]
    for flags, protocol, source, client_auth in (
        (TLS, "SSL", "client_id", "none"),
        (MUTUAL, "SSL", "mtls", "required"),
        (MUTUAL | {"broker_tls_client_auth": "requested"}, "SSL", "mtls", "requested"),
        (MUTUAL | {"broker_tls_client_auth": "none"}, "SSL", "client_id", "none"),
        ({"sasl_mechanisms": "plain, scram-sha-512"}, "SASL_PLAINTEXT", "sasl", "none"),
        (TLS | {"sasl_mechanisms": "PLAIN"}, "SASL_SSL", "sasl", "none"),
        ({"principal_source": "remote_addr"}, "PLAINTEXT", "remote_addr", "none"),
    ):
        (one,) = listeners(flags)
        assert (one.protocol, one.principal_source, one.client_auth) == (protocol, source, client_auth)
    assert one.mechanisms == ()
    assert listeners({"sasl_mechanisms": "plain, scram-sha-512"})[0].mechanisms == ("PLAIN", "SCRAM-SHA-512")


def test_several_listeners(tmp_path: Path) -> None:
    """Each has its own; what it leaves open comes from the settings; the first is what `listen` speaks of."""
    path = tmp_path / "kafscale.toml"
    path.write_text(
        """
        broker_tls_cert_file = "cert.pem"
        broker_tls_key_file = "key.pem"
        broker_tls_key_password_file = "password"
        sasl_mechanisms = "SCRAM-SHA-512"

        [[listeners]]
        name = "inside"
        protocol = "SASL_SSL"
        listen = "10.0.0.1:9092"
        worker_ports = 19000

        [[listeners]]
        name = "outside"
        protocol = "SSL"
        listen = "0.0.0.0:9093"
        advertise = "kafka.example.com:443"
        tls_cert_file = "other.pem"
        tls_key_file = "other-key.pem"
        tls_client_ca_file = "ca.pem"
        principal_mapping_rules = "RULE:^CN=(.*?),.*$/$1/L,DEFAULT"
        proxy_protocol = true
        trusted_proxies = ["10.9.0.0/16"]

        [[listeners]]
        name = "SASL_SSL"
        listen = "[::1]:9094"
        mechanisms = "PLAIN,OAUTHBEARER"

        """
    )
    settings = resolve({}, {"KAFSCALE_SASL_OAUTHBEARER_JWKS_FILE": "keys.json"}, str(path)).settings
    inside, outside, own = listeners_of(settings)
    assert (settings.listen, settings.advertised, settings.worker_ports) == (
        Endpoint("10.0.0.1", 9092),
        Endpoint("10.0.0.1", 9092),
        19000,
    )
    assert (inside.mechanisms, inside.tls_key_password_file, inside.client_auth) == (
        ("SCRAM-SHA-512",),
        "password",
        "none",
    )
    # Another certificate goes with another key, and so with another password.
    assert (outside.tls_cert_file, outside.tls_key_file, outside.tls_key_password_file) == (
        "other.pem",
        "other-key.pem",
        None,
    )
    assert (outside.client_auth, outside.principal_source, outside.trusted_proxies) == (
        "required",
        "mtls",
        ("10.9.0.0/16",),
    )
    assert (own.protocol, own.mechanisms) == ("SASL_SSL", ("PLAIN", "OAUTHBEARER"))
    completed = msgspec.structs.replace(settings, listeners=(inside, outside, own))
    assert listeners_of(completed) == (inside, outside, own)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[2001:db8::1]", "broker.example.com"])
def test_open_listeners_are_refused(host: str) -> None:
    """PLAINTEXT for others than this machine is refused unless it is asked for by name, and then warned of."""
    text = f"a://{host}:9092?protocol=PLAINTEXT&advertise=broker"
    with pytest.raises(UsageError, match=r"listener a .*without encryption or authentication"):
        resolve({"listeners": text}, {})
    allowed = resolve({"listeners": text}, {"KAFSCALE_ALLOW_INSECURE": "true"})
    assert any("neither encryption nor authentication" in line for line in allowed.warnings)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_loopback_is_let_be(host: str) -> None:
    """For this machine alone nothing is asked and nothing warned of."""
    assert resolve({"listeners": f"PLAINTEXT://{host}:9092"}, {}).warnings == ()


def test_what_is_served_with_a_warning() -> None:
    """Passwords in clear, and clients that may leave their certificate at home."""
    open_passwords = resolve({"listen": "10.0.0.1:9092", "sasl_mechanisms": "PLAIN"}, {}).warnings
    assert ["PLAIN without encryption" in line for line in open_passwords] == [True]
    assert resolve({"listen": "10.0.0.1:9092", "sasl_mechanisms": "SCRAM-SHA-256"}, {}).warnings == ()
    requested = resolve({**MUTUAL, "broker_tls_client_auth": "requested"}, {}).warnings
    assert ["as User:ANONYMOUS" in line for line in requested] == [True]
    acls = {"acl_enabled": "true"}
    assert ["what they say of themselves" in line for line in resolve(acls, {}).warnings] == [True]
    assert resolve({**acls, "principal_source": "remote_addr"}, {}).warnings == ()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"listeners": "nonsense"}, "is no listener"),
        ({"listeners": "[1]"}, "is not a list of listeners"),
        ({"listeners": "[{"}, "begins like JSON"),
        ({"listeners": "9a://127.0.0.1:1"}, "is no name"),
        ({"listeners": "a://127.0.0.1:1"}, "which protocol"),
        ({"listeners": "a://127.0.0.1"}, "has no port"),
        ({"listeners": "a://127.0.0.1:1?protocol=TLS"}, "is none of PLAINTEXT"),
        ({"listeners": "a://127.0.0.1:1?protocol=SSL&secure=yes"}, "unknown key 'secure'"),
        ({"listeners": "a://127.0.0.1:1?protocol=SSL&protocol=SSL"}, "stands there twice"),
        ({"listeners": "SSL://127.0.0.1:1"}, "needs a certificate file"),
        ({"listeners": "SSL://127.0.0.1:1?tls_cert_file=a"}, "needs a key file"),
        ({"listeners": "PLAINTEXT://127.0.0.1:1?tls_cert_file=a"}, "for listeners with TLS"),
        ({"listeners": "SASL_PLAINTEXT://127.0.0.1:1"}, "no SASL mechanism"),
        ({"listeners": "SASL_PLAINTEXT://127.0.0.1:1?mechanisms=GSSAPI"}, "'GSSAPI' is none of"),
        ({"listeners": "PLAINTEXT://127.0.0.1:1,PLAINTEXT://127.0.0.1:2"}, "the name PLAINTEXT"),
        ({"listeners": "PLAINTEXT://127.0.0.1:1,a://127.0.0.1:1?protocol=PLAINTEXT"}, "the address 127.0.0.1:1"),
        ({"listeners": "PLAINTEXT://127.0.0.1:1", "listen": "127.0.0.1:2"}, "--listen: 127.0.0.1:2 is not what"),
        ({"listeners": "PLAINTEXT://127.0.0.1:1?proxy_protocol=true"}, "trusted_proxies"),
        ({"principal_source": "proxy_addr"}, "trusted_proxies"),
        ({"proxy_protocol": "true", "trusted_proxies": "10.0.0.1/8"}, "no address or network"),
        ({"principal_source": "sasl"}, "it has no SASL"),
        ({"principal_source": "mtls"}, "no client certificates are asked for"),
        ({"principal_source": "client_id", "sasl_mechanisms": "PLAIN"}, "a listener with SASL knows"),
        ({"sasl_mechanisms": "PLAIN,plain,PLAIN"}, "names something twice"),
        ({**TLS, "broker_tls_client_auth": "required"}, "no CA for client certificates"),
        ({**TLS, "broker_tls_crl_file": "crl.pem"}, "no CA for client certificates"),
        ({"sasl_mechanisms": "OAUTHBEARER"}, "no keys to check tokens with"),
        ({"sasl_oauthbearer_jwks_url": "http://issuer/keys"}, "is not an https URL"),
        ({"sasl_oauthbearer_jwks_url": "file:///etc/passwd"}, "is not an https URL"),
        ({"sasl_oauthbearer_jwks_url": "https://user:pw@issuer/keys"}, "or a user with it"),
        ({"sasl_oauthbearer_jwks_url": "https://i/k", "sasl_oauthbearer_jwks_file": "k"}, "is set as well"),
    ],
)
def test_what_does_not_fit_together(flags: dict[str, str], says: str) -> None:
    """One line, which names what to mend."""
    with pytest.raises(UsageError) as raised:
        resolve(flags, {})
    assert says in str(raised.value)
    assert str(raised.value).isprintable()


def test_two_passwords_for_a_key() -> None:
    """A password and a file with one: which is meant? It is not repeated in asking."""
    variables = {"KAFSCALE_BROKER_TLS_KEY_PASSWORD": "hunter2", "KAFSCALE_BROKER_TLS_KEY_PASSWORD_FILE": "f"}
    with pytest.raises(UsageError, match="set as well") as raised:
        resolve(TLS, variables)
    assert "hunter2" not in str(raised.value)


def test_tests_may_make_settings_themselves() -> None:
    """Settings that never went through `resolve` have one ordinary listener."""
    assert [one.protocol for one in listeners_of(Settings())] == ["PLAINTEXT"]
