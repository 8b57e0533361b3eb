"""Goal: certificates, keys and passwords are changed while clients work, and none of them notices; nothing secret is
seen anywhere but where it belongs."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography import x509

from loadtest.broker_process import wait_for
from tests.e2e.conftest import MakeBroker
from tests.e2e.raw_login import Outcome, log_in
from tests.e2e.secure_broker import PASSWORD, USER, SecureBroker, token
from tests.unit.security.certificates import Authority

ROTATIONS = 3
TEXT = "Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-256"


@pytest.fixture(scope="module")
def secure(make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    yield SecureBroker(make_module_broker, tmp_path_factory.mktemp("operations"))


class Steady:
    """Producers that write all the time, and everything that went wrong for them."""

    def __init__(self) -> None:
        self.problems: list[Any] = []
        self.acknowledged = 0
        self.connects = 0
        self._over = threading.Event()

    def _note(self, error: Any, _: Any) -> None:
        self.acknowledged += error is None
        if error is not None:
            self.problems.append(error)

    @contextmanager
    def producing(self, topic: str, *settings: dict[str, Any]) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(one, topic)) for one in settings]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def _run(self, settings: dict[str, Any], topic: str) -> None:
        counts: dict[str, int] = {}

        def on_stats(text: str) -> None:
            for name, one in json.loads(text)["brokers"].items():
                counts[name] = one["connects"] + one["disconnects"]

        more = {"error_cb": self.problems.append, "stats_cb": on_stats, "statistics.interval.ms": 100, "linger.ms": 1}
        producer = Producer(settings | more)
        while not self._over.is_set():
            producer.produce(topic, b"x", on_delivery=self._note)
            producer.poll(0.002)
        assert producer.flush(60) == 0
        producer.poll(0.2)
        self.connects += sum(counts.values())


def served_serial(secure: SecureBroker, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new client is shown."""
    with (
        socket.create_connection(("127.0.0.1", secure.ports["tls"]), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def closed_connections(secure: SecureBroker, *ignored: str) -> float:
    lines = secure.broker.http_body("/metrics").splitlines()
    found = [line for line in lines if line.startswith("kafscale_connections_closed_total{")]
    return sum(float(line.split()[-1]) for line in found if not any(f'"{reason}"' in line for reason in ignored))


def test_certificates_change_under_load(secure: SecureBroker, topic: str) -> None:
    """Case 51: new certificate, key and CA, several times, while clients of every TLS listener produce: each change is
    served to new clients soon, and not one connection is dropped or record lost."""
    both = secure.folder / "both.pem"
    steady = Steady()
    with steady.producing(
        topic, secure.confluent("tls"), secure.confluent("mutual"), secure.confluent("sasl_tls", "PLAIN")
    ):
        wait_for(lambda: steady.acknowledged > 100, 60, "records")
        before = closed_connections(secure, "client")
        authority = secure.authority
        for _ in range(ROTATIONS):
            authority = Authority("Next CA")
            both.write_bytes(authority.pem)
            context = ssl.create_default_context(cafile=str(both))
            secure.write("ca.pem", secure.authority.pem + authority.pem)
            secure.write_certificate(authority)
            wait_for(lambda context=context: _is_served(secure, context), 30, "the new certificate")
            count = steady.acknowledged
            wait_for(lambda count=count: steady.acknowledged > count + 100, 60, "records after it")
        # Who comes with a certificate of the new CA is known too.
        secure.write_client("client", authority.client(USER))
        later = secure.confluent("mutual") | {"ssl.ca.location": str(both)}
        wait_for(lambda: _can_list(later), 30, "a client of the new CA")
        assert closed_connections(secure, "client", "handshake") == before
    assert steady.problems == []
    # Each producer's bootstrap connection and those to the two workers, made once.
    assert steady.connects <= 3 * 3
    secure.write("ca.pem", secure.authority.pem)
    secure.write_certificate()
    secure.write_client("client", secure.authority.client(USER))
    wait_for(
        lambda: _is_served(secure, ssl.create_default_context(cafile=str(secure.folder / "ca.pem"))), 30, "the old"
    )


def _is_served(secure: SecureBroker, context: ssl.SSLContext) -> bool:
    try:
        return served_serial(secure, context) > 0
    except ssl.SSLError:
        return False


def _can_list(settings: dict[str, Any]) -> bool:
    try:
        AdminClient(settings | {"socket.timeout.ms": 2000}).list_topics(timeout=2)
    except KafkaException:
        return False
    return True


NOT_THE_KEY = "is not the key of the certificate"


def test_a_bad_certificate_changes_nothing(secure: SecureBroker) -> None:
    """A key that is not the certificate's, or half a file: refused, told, counted, and what was there is served on."""
    context = ssl.create_default_context(cafile=str(secure.folder / "ca.pem"))
    before = served_serial(secure, context)
    good = (secure.folder / "server.key").read_bytes()
    _, other = secure.authority.server()
    # A change of both files may have been seen half-way before.
    told = secure.broker.log().count(NOT_THE_KEY)
    secure.write("server.key", other)
    try:
        wait_for(lambda: secure.broker.log().count(NOT_THE_KEY) > told, 30, "a word on it")
        assert served_serial(secure, context) == before
        wait_for(lambda: "kafscale_security_stale 1.0" in secure.broker.http_body("/metrics"), 30, "a metric of it")
    finally:
        secure.write("server.key", good)
    wait_for(lambda: "kafscale_security_stale 0.0" in secure.broker.http_body("/metrics"), 30, "all well")


def test_expiry_is_told(secure: SecureBroker) -> None:
    """When the first certificate of each listener ends is a metric."""
    lines = secure.broker.http_body("/metrics").splitlines()
    found = {
        line.split('listener="')[1].split('"')[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("kafscale_certificate_expiry_timestamp_seconds{")
    }
    assert set(found) == {"tls", "mutual", "sasl_tls"} and all(at > time.time() for at in found.values())


# Passwords


def sasl_ports(secure: SecureBroker) -> list[int]:
    entry = next(one for one in secure.broker.info()["listeners"] if one["name"] == "sasl")
    return list(entry["ports"])


def settle(futures: dict[str, Any]) -> None:
    for future in futures.values():
        future.result(30)


@pytest.fixture
def admin(secure: SecureBroker) -> AdminClient:
    # What it logs while its broker is restarted is nobody's concern.
    return AdminClient(secure.confluent("sasl_tls", "SCRAM-SHA-512") | {"log_level": 0})


def test_passwords_change_everywhere_at_once(secure: SecureBroker, admin: AdminClient) -> None:
    """Set, changed, told of and deleted by an admin client: at every worker from the next login on, and after a restart
    too; a user of the bootstrap file as well."""
    user = f"user-{uuid.uuid4().hex[:8]}"
    ports = sasl_ports(secure)
    for password in (b"first secret", b"second secret"):
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        settle(admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, info, password)]))
        at = time.monotonic()
        assert [log_in(port, user, password.decode()).code for port in ports] == [0] * len(ports)
        # No worker knew it later than the one that was asked.
        assert time.monotonic() - at < 1
    # PLAIN goes by the same password, and the first one is none any more.
    assert log_in(ports[0], user, "second secret", "PLAIN").code == 0
    refused = [log_in(port, name, "first secret") for port in ports for name in (user, f"nobody-{user}")]
    assert {(outcome.code, outcome.text) for outcome in refused} == {(58, TEXT)}
    described = admin.describe_user_scram_credentials([user])[user].result(30)
    assert [(one.mechanism, one.iterations) for one in described.scram_credential_infos] == [
        (ScramMechanism.SCRAM_SHA_256, 4096)
    ]
    settle(admin.alter_user_scram_credentials([UserScramCredentialDeletion("bob", ScramMechanism.SCRAM_SHA_256)]))
    assert [log_in(port, "bob", "builder").code for port in ports] == [58] * len(ports)
    secure.broker.stop()
    secure.broker.start()
    ports = sasl_ports(secure)
    assert log_in(ports[0], user, "second secret").code == 0
    assert log_in(ports[1], "bob", "builder").code == 58
    assert log_in(ports[1], "bob", "builder", "SCRAM-SHA-512").code == 0
    settle(admin.alter_user_scram_credentials([UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_256)]))
    assert [log_in(port, user, "second secret").code for port in ports] == [58] * len(ports)
    with pytest.raises(KafkaException) as caught:
        settle(admin.alter_user_scram_credentials([UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_256)]))
    assert caught.value.args[0].code() == KafkaError.RESOURCE_NOT_FOUND


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_refusals_take_the_same_time(secure: SecureBroker, mechanism: str) -> None:
    """Case 41: a wrong password and an unknown user are answered alike, no sooner than after the delay, and as late.
    (Whatever else the machine does makes no answer come sooner: so the soonest of each are compared, and tried until
    they are the same. Were one of them later by nature, they never would be.)"""
    port = sasl_ports(secure)[0]
    known: list[Outcome] = []
    unknown: list[Outcome] = []

    def are_alike() -> bool:
        number = len(known)
        known.append(log_in(port, USER, f"wrong-{number}", mechanism))
        unknown.append(log_in(port, f"nobody-{number}", f"wrong-{number}", mechanism))
        soonest = [min(one.seconds for one in some) for some in (known, unknown)]
        assert min(soonest) >= 0.1
        return number > 0 and abs(soonest[0] - soonest[1]) < 0.003

    wait_for(are_alike, 60, "refusals that come at the same time")
    assert len({(one.code, one.text) for one in known + unknown}) == 1


def test_the_bootstrap_file_is_read_again(secure: SecureBroker) -> None:
    """A user that is added to it can log in; one that is taken out can't."""
    port = sasl_ports(secure)[0]
    secure.write_users({USER: PASSWORD, "bob": "builder", "carol": "new"})
    wait_for(lambda: log_in(port, "carol", "new").code == 0, 30, "carol may come in")
    secure.write_users({USER: PASSWORD, "bob": "builder"})
    wait_for(lambda: log_in(port, "carol", "new").code == 58, 30, "carol is gone")


# Secrets


def test_secrets_are_nowhere(make_broker: MakeBroker, tmp_path: Path) -> None:
    """Case 64: neither password nor key nor token is in the log at its most talkative, in the metrics, in what a client
    is told, in the processes' arguments, in `kafscale config`, in broker.json, or, as it is, in the data."""
    secrets = {
        "key password": "key-password-7h3",
        "cluster secret": "cluster-secret-which-is-long",
    }
    secure = SecureBroker(
        make_broker,
        tmp_path,
        LOG_LEVEL="debug",
        BROKER_TLS_KEY_PASSWORD=secrets["key password"],
        CLUSTER_SECRET=secrets["cluster secret"],
    )
    ports = sasl_ports(secure)
    bearer = token("mallory", aud="somebody else")
    secrets |= {
        "password": PASSWORD,
        "wrong password": "wr0ng-password",
        "set password": "set-by-admin",
        "token": bearer,
    }
    assert log_in(ports[0], USER, PASSWORD, "PLAIN").code == 0
    tries = [(USER, "PLAIN"), (USER, "SCRAM-SHA-256"), (secrets["wrong password"], "SCRAM-SHA-512")]
    said = [str(log_in(ports[0], user, secrets["wrong password"], mechanism)) for user, mechanism in tries]
    refused = secure.confluent("sasl", "OAUTHBEARER") | {"oauth_cb": lambda _: (bearer, time.time() + 300)}
    errors: list[Any] = []
    client = AdminClient(refused | {"error_cb": errors.append})
    wait_for(lambda: client.poll(0.1) or errors, 30, "a refusal")
    said += map(str, errors)
    admin = AdminClient(secure.confluent("sasl", "PLAIN"))
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    upsertion = UserScramCredentialUpsertion("dave", info, secrets["set password"].encode(), b"salt of dave")
    settle(admin.alter_user_scram_credentials([upsertion]))
    secure.write("users", b"alice SCRAM-SHA-256=[salt=c2VjcmV0,stored_key=c2VjcmV0LXN0b3JlZC1rZXk=,nonsense]")
    wait_for(lambda: "is no credential" in secure.broker.log(), 30, "a word on the file")
    secrets["stored key in a bad file"] = "c2VjcmV0LXN0b3JlZC1rZXk="
    secrets["private key"] = (secure.folder / "server.key").read_text().splitlines()[1]
    secrets["token's signature"] = bearer.rsplit(".", 1)[1]
    seen = {
        "log": secure.broker.log(),
        "metrics": secure.broker.http_body("/metrics"),
        "broker.json": json.dumps(secure.broker.info()),
        "answers": "\n".join(said),
        "arguments": "\n".join(" ".join(psutil.Process(pid).cmdline()) for pid in secure.broker.living_pids()),
        "settings": _config(secure),
    }
    assert all(seen.values())
    for place, text in seen.items():
        for what, secret in secrets.items():
            # The user name that was a password by mistake may be in the log: a name is none.
            if what == "wrong password" and place == "log":
                assert text.count(secret) == text.count(f"User:{secret}"), f"{what} is in the {place}"
            else:
                assert secret not in text, f"{what} is in the {place}"
    secure.broker.stop()
    for path in secure.broker.data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for what, secret in secrets.items():
                assert secret.encode() not in content, f"{what} is in {path}"


def _config(secure: SecureBroker) -> str:
    command = [sys.executable, "-m", "kafscale", "config", "--json"]
    done = subprocess.run(
        command, env=os.environ | secure.broker.environment, capture_output=True, check=True, timeout=60
    )
    return done.stdout.decode() + done.stderr.decode()
