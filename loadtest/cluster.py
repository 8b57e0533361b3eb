"""Several brokers on this machine, with an etcd and an S3 server of their own and a proxy before both of each broker.

It owns every process that it starts, and knows brokers from outside only. Each broker has its own links, `s3-N` and
`etcd-N`, so that one broker's network can be made worse while the others' stays as it is. Whoever needs no etcd (one
broker) or no proxy leaves it out.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.etcd_server import EtcdServer
from loadtest.proxy import Proxy
from loadtest.s3_server import S3Server, settings_for

LEASE_TTL_MS = 2000
PATIENCE_S = 60.0
_SAMPLE = re.compile(r"^(kafscale_\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Cluster:
    """`brokers` brokers of `workers` workers each; a context that starts them one after the other.

    `settings` are KAFSCALE_* variables for all; `make` builds a broker's process (a `BrokerProcess` or a kind of it).
    `spare` more brokers may be added later. `s3` stands in for a server of its own.
    """

    def __init__(
        self,
        brokers: int = 3,
        workers: int = 2,
        settings: Mapping[str, str] | None = None,
        with_etcd: bool = True,
        make: Callable[..., BrokerProcess] = BrokerProcess,
        spare: int = 0,
        s3: S3Server | None = None,
        lease_ttl_ms: int = LEASE_TTL_MS,
    ) -> None:
        self._resources = contextlib.ExitStack()
        self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="kafscale-cluster-")))
        self.count = brokers + spare
        self._started_at_once = brokers
        self._workers = workers
        self._settings = dict(settings or {})
        self._make = make
        self._lease_ttl_ms = lease_ttl_ms
        self.s3 = s3 or S3Server()
        self.etcd = EtcdServer(self._folder / "etcd") if with_etcd else None
        self.proxy: Proxy
        self.brokers: list[BrokerProcess] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._resources.close()
            raise
        return self

    def _start(self) -> None:
        self._resources.enter_context(self.s3)
        links = {f"s3-{number}": ("http", self.s3.address) for number in range(self.count)}
        if self.etcd is not None:
            self._resources.enter_context(self.etcd)
            links |= {f"etcd-{number}": ("tcp", f"127.0.0.1:{self.etcd.port}") for number in range(self.count)}
        links["s3-client"] = ("http", self.s3.address)
        self.proxy = self._resources.enter_context(Proxy(links))
        for number in range(self._started_at_once):
            self.add(number)

    def add(self, number: int) -> BrokerProcess:
        """Start the broker of that number; the links exist for the numbers below `count`."""
        environment = settings_for(self.proxy.url(f"s3-{number}"), self.s3.bucket) | {"KAFSCALE_BROKER_ID": str(number)}
        if self.etcd is not None:
            environment |= {
                "KAFSCALE_ETCD_ENDPOINTS": f"127.0.0.1:{self.proxy.ports[f'etcd-{number}']}",
                "KAFSCALE_ETCD_LEASE_TTL_MS": str(self._lease_ttl_ms),
            }
        broker = self._make(
            workers=self._workers,
            data_dir=self._folder / f"broker-{number}",
            environment=environment | self._settings,
        )
        self._resources.callback(broker.close)
        self.brokers.append(broker)
        broker.start()
        return broker

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def set_s3(self, **rules: Any) -> None:
        """Change every link to the store, the bare client's too."""
        for name in self.proxy.ports:
            if name.startswith("s3-"):
                self.proxy.set(name, **rules)

    def s3_counts(self) -> Counter[str]:
        """What all brokers have asked of the store so far, by method, refused, lost and bytes."""
        total: Counter[str] = Counter()
        for number in range(self.count):
            total.update(self.proxy.counts(f"s3-{number}"))
        return total

    def wait_even(self, slots: int = 256) -> None:
        """Wait until the living brokers share all slots evenly and have taken them over."""

        def even() -> bool:
            counts = []
            for broker in self.brokers:
                if broker.process is None or broker.process.poll() is not None:
                    continue
                found = samples(broker)
                counts += values_of(found, "kafscale_slots_assigned")
                if any(values_of(found, "kafscale_slots_unsettled")):
                    return False
            return sum(counts) == slots and max(counts) - min(counts) <= 1

        wait_for(even, PATIENCE_S, "slots are shared evenly", pause_s=0.1)

    def metrics(self) -> Samples:
        """All brokers' samples, added up."""
        total: Counter[Any] = Counter()
        for broker in self.brokers:
            total.update(samples(broker))
        return dict(total)


def samples(broker: BrokerProcess) -> Samples:
    """A broker's metrics: (name, labels) → value. None while it does not answer."""
    try:
        page = broker.http_body("/metrics")
    except OSError:
        return {}
    return {(name, frozenset(_LABEL.findall(labels))): float(value) for name, labels, value in _SAMPLE.findall(page)}


def values_of(found: Samples, name: str, **labels: str) -> list[float]:
    """The samples of a name that have these labels."""
    return [value for (known, of), value in found.items() if known == name and labels.items() <= dict(of).items()]


def total_of(found: Samples, name: str, **labels: str) -> float:
    return sum(values_of(found, name, **labels))
