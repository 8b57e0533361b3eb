"""Fixtures of the end-to-end tests: brokers as real processes, fresh names, and the broker's log when a test fails."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.e2e.broker import Broker, ExternalBroker

EXTERNAL = os.environ.get("KAFSCALE_E2E_BOOTSTRAP")
BROKERS = pytest.StashKey[list[Broker]]()
LOG_SHOWN_CHARACTERS = 12_000

MakeBroker = Callable[..., Broker]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BROKERS] = []
    # A run that is told to stop ends its brokers first, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Put the log of every broker that is up under a failed test's report."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for broker in item.config.stash[BROKERS]:
            report.sections.append((f"log of broker {broker.bootstrap}", broker.log()[-LOG_SHOWN_CHARACTERS:]))


def _make_brokers(config: pytest.Config) -> Iterator[MakeBroker]:
    made: list[Broker] = []

    def make(start: bool = True, **settings: Any) -> Broker:
        if EXTERNAL:
            pytest.skip("needs a broker of its own, and KAFSCALE_E2E_BOOTSTRAP is set")
        broker = Broker(**settings)
        made.append(broker)
        config.stash[BROKERS].append(broker)
        return broker.start() if start else broker

    try:
        yield make
    finally:
        for broker in made:
            broker.close()
            config.stash[BROKERS].remove(broker)


@pytest.fixture
def make_broker(pytestconfig: pytest.Config) -> Iterator[MakeBroker]:
    """A function that starts brokers (settings as for `Broker`); all are ended after the test."""
    yield from _make_brokers(pytestconfig)


@pytest.fixture(scope="module")
def make_module_broker(pytestconfig: pytest.Config) -> Iterator[MakeBroker]:
    """The same, ended after the module's last test."""
    yield from _make_brokers(pytestconfig)


@pytest.fixture(scope="module")
def broker(make_module_broker: MakeBroker) -> Broker | ExternalBroker:
    """One broker of two workers for all tests of a module."""
    # The default wait for more members, three seconds, would be most of the group tests' time.
    environment = {"KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100"}
    return ExternalBroker(EXTERNAL) if EXTERNAL else make_module_broker(workers=2, environment=environment)


@pytest.fixture
def bootstrap(broker: Broker | ExternalBroker) -> str:
    return broker.bootstrap


@pytest.fixture
def topic() -> str:
    """A topic name nobody has used."""
    return f"topic-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def group() -> str:
    """A group name nobody has used."""
    return f"group-{uuid.uuid4().hex[:12]}"
