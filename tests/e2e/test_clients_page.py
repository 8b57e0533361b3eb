"""Goal: what docs/clients.md tells people to write works, with each client library and each way to log in; and the Java
client, which all others follow, is let in, refused, asked to come again and obeyed as by Kafka."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka
import aiokafka.abc
import kafka
import kafka.net.sasl.oauth
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from kafka import KafkaProducer

from tests.e2e.clients_page import Example, examples
from tests.e2e.conftest import MakeBroker
from tests.e2e.identity_provider import IdentityProvider
from tests.e2e.secure_broker import PASSWORD, USER, SecureBroker, token
from tests.e2e.test_java import NEEDS_JAVA, class_path

SECRET = "client-secret"
LISTENERS = {
    "TLS": "tls",
    "Client certificates": "mutual",
    "Passwords: SCRAM and PLAIN": "sasl_tls",
    "Tokens: OAUTHBEARER": "sasl_tls",
}
EXAMPLES = examples()
SOURCE = Path(__file__).parent / "java" / "SecurityCheck.java"
MODULE = "org.apache.kafka.common.security"


def title(example: Example) -> str:
    kind = "-plain" if "PlainLoginModule" in example.text else ""
    return f"{LISTENERS[example.heading]}-{example.heading.split()[0].strip(':').lower()}-{example.library}{kind}"


def by_library(*libraries: str) -> list[Any]:
    return [pytest.param(one, id=title(one)) for one in EXAMPLES if one.library in libraries]


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    # A token ends after eight seconds, of which Java uses two thirds.
    with IdentityProvider({USER: SECRET}, seconds=8) as made:
        yield made


@pytest.fixture(scope="module")
def secure(
    make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider
) -> Iterator[SecureBroker]:
    # Sessions end after two.
    made = SecureBroker(
        make_module_broker,
        tmp_path_factory.mktemp("clients"),
        SASL_OAUTHBEARER_JWKS_URL=f"{provider.url}/keys",
        CONNECTIONS_MAX_REAUTH_MS="2000",
    )
    made.write(
        "client-with-key.pem", (made.folder / "client.key").read_bytes() + (made.folder / "client.pem").read_bytes()
    )
    yield made


def replacements(secure: SecureBroker, provider: IdentityProvider, example: Example) -> dict[str, str]:
    is_token = "OAUTHBEARER" in example.heading
    return {
        "broker.example.com:9093": secure.bootstrap(LISTENERS[example.heading]),
        "/etc/kafka/": f"{secure.folder}/",
        "https://idp.example.com": provider.url,
        "wonder": SECRET if is_token else PASSWORD,
    }


def test_all_sections_are_known() -> None:
    """Each section has an example for each library."""
    assert {example.heading for example in EXAMPLES} == set(LISTENERS)
    for heading in LISTENERS:
        libraries = {example.library for example in EXAMPLES if example.heading == heading}
        assert libraries == {"librdkafka", "java", "aiokafka", "kafka-python"}


@pytest.mark.parametrize("example", by_library("librdkafka"))
def test_librdkafka(secure: SecureBroker, provider: IdentityProvider, topic: str, example: Example) -> None:
    """A record goes in."""
    problems: list[object] = []
    producer = Producer(example.settings(replacements(secure, provider, example)))
    producer.produce(topic, b"x", on_delivery=lambda error, _: problems.append(error))
    assert producer.flush(30) == 0
    assert problems == [None]


@pytest.mark.parametrize("example", by_library("aiokafka", "kafka-python"))
def test_python(secure: SecureBroker, provider: IdentityProvider, topic: str, example: Example) -> None:
    """A record goes in."""
    code = compile(example.filled_in(replacements(secure, provider, example)), "docs/clients.md", "exec")
    names = {
        "ssl": ssl,
        "asyncio": asyncio,
        "aiokafka": aiokafka,
        "kafka": kafka,
        "AIOKafkaProducer": AIOKafkaProducer,
        "KafkaProducer": KafkaProducer,
        "fetch_token": token,
    }
    if example.library == "kafka-python":
        exec(code, names)
        producer = names["producer"]
        producer.send(topic, b"x").get(30)
        producer.close()
        return

    async def run() -> None:
        exec(code, names)
        async with names["producer"] as producer:
            await producer.send_and_wait(topic, b"x")

    asyncio.run(run())


# Java: all settings in one process, since starting it takes longest.


def java_settings(secure: SecureBroker, provider: IdentityProvider) -> dict[str, dict[str, str]]:
    """By name, which says what is to be tried with them."""
    found = {}
    for example in EXAMPLES:
        if example.library != "java":
            continue
        settings = example.settings(replacements(secure, provider, example))
        found[f"through-{title(example)}"] = settings
        if LISTENERS[example.heading] == "sasl_tls":
            found[f"again-{title(example)}"] = settings
        if "ScramLoginModule" in example.text:
            found["admin-passwords"] = settings
            wrong = settings["sasl.jaas.config"].replace(PASSWORD, "wrong")
            found["refused-password"] = settings | {"sasl.jaas.config": wrong}
        if "ssl.keystore.location" in settings:
            found["refused-certificate"] = {name: value for name, value in settings.items() if "keystore" not in name}
    for name, module in (("PLAIN", "plain.Plain"), ("SCRAM-SHA-256", "scram.Scram"), ("SCRAM-SHA-512", "scram.Scram")):
        found[f"through-sasl-{name.lower()}"] = {
            "bootstrap.servers": secure.bootstrap("sasl"),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": name,
            "sasl.jaas.config": f'{MODULE}.{module}LoginModule required username="{USER}" password="{PASSWORD}";',
        }
    return found


@pytest.mark.clients
@pytest.mark.java
@NEEDS_JAVA
def test_java(secure: SecureBroker, provider: IdentityProvider, tmp_path: Path) -> None:
    """Every way in; refusals; sessions that end, with passwords and with tokens; passwords by its admin client."""
    path = os.pathsep.join([*class_path(), *for_tokens()])
    subprocess.run(["javac", "-Werror", "-cp", path, "-d", str(tmp_path), str(SOURCE)], check=True, timeout=120)
    files = []
    wanted = java_settings(secure, provider)
    for name, settings in wanted.items():
        files.append(tmp_path / f"{name}.properties")
        # A backslash would be an escape in such a file; none of ours has one.
        files[-1].write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    url = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={provider.url}/token"
    command = [
        "java",
        "-Xmx256m",
        url,
        "-cp",
        os.pathsep.join([str(tmp_path), path]),
        "SecurityCheck",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, timeout=300, check=True)
    outcomes = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines())
    assert list(outcomes) == list(wanted)
    wrong = [f"{name}: {outcome[:1500]}" for name, outcome in outcomes.items() if outcome != "ok"]
    assert not wrong, "\n".join(wrong)
    # Java fetches another token before its first one ends.
    assert provider.issued > 1


def for_tokens() -> list[str]:
    """What Java's OAUTHBEARER needs beside the client's own jars."""
    folder = Path(class_path()[0]).parent
    names = ("jackson-core-2", "jackson-databind-2", "jackson-annotations-2", "jose4j-")
    return [str(next(folder.glob(f"{name}*.jar"))) for name in names]


def test_titles() -> None:
    """No two examples are taken for one."""
    assert len({title(example) for example in EXAMPLES}) == len(EXAMPLES)
