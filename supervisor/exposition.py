"""The metrics page: all workers' blocks and the supervisor's own figures as Prometheus text.

The only file that imports prometheus_client. Reads blocks, writes none; serves no HTTP.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import kafscale
from kafscale.metrics import BYTES_PRODUCED, LAYOUT, STORE_BYTES, STORE_OPERATIONS, MetricsBlock, label_sets
from kafscale.metrics import Metric as Declared
from supervisor.acls import AclFigures
from supervisor.audit import AuditFigures

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass
class WorkerFigures:
    """What the supervisor knows of one worker index, over all its incarnations."""

    up: bool = False
    restarts: int = 0
    hung_kills: int = 0


@dataclass(frozen=True)
class Prices:
    """What a store charges, in billionths of a dollar: requests each, and transfer by the mebibyte. DELETE is free."""

    put: int = 0
    get: int = 0
    mib: int = 0


@dataclass
class SupervisorMetrics:
    """The supervisor's own figures; it alone writes them. `workers` is keyed by worker index; `requests` counts what it
    asks of the store itself."""

    broker_id: int
    requests: MetricsBlock | None = None
    prices: Prices = Prices()
    workers: dict[int, WorkerFigures] = field(default_factory=dict)
    cluster_version: int = 0
    ready: bool = False
    leads: bool = False
    coordination_available: bool = True
    brokers: int = 1
    # Worker index → slots that the newest version known gives to its present log.
    slots: dict[int, int] = field(default_factory=dict)
    unsettled_slots: int = 0
    # Listener → when the first of its certificates ends, in seconds since the epoch.
    certificates: dict[str, float] = field(default_factory=dict)
    security_reloads: int = 0
    security_failures: int = 0
    is_security_stale: bool = False
    acls: AclFigures = field(default_factory=AclFigures)
    audit: AuditFigures = field(default_factory=AuditFigures)

    def worker(self, index: int) -> WorkerFigures:
        """The figures of a worker, made on first use."""
        return self.workers.setdefault(index, WorkerFigures())


def render(blocks: Mapping[int, MetricsBlock], supervisor: SupervisorMetrics) -> bytes:
    """The page, in the text format 0.0.4. `blocks` is keyed by worker index."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector({str(index): block.snapshot() for index, block in blocks.items()}, supervisor))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshots: Mapping[str, list[int]], supervisor: SupervisorMetrics) -> None:
        self._snapshots = snapshots
        self._supervisor = supervisor

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        own = self._supervisor.requests
        counted = [*self._snapshots.values(), *([] if own is None else [own.snapshot()])]
        summed = {"": [sum(cells) for cells in zip(*counted, strict=True)]} if counted else {}
        for declared in LAYOUT:
            yield _family(declared, self._snapshots if declared.per_worker else summed)
        yield from _supervisor_families(self._supervisor)
        if summed:
            yield from _cost_families(summed[""], self._supervisor.prices)


def _family(declared: Declared, snapshots: Mapping[str, list[int]]) -> Metric:
    worker_label = ["worker"] if declared.per_worker else []
    if declared.kind == "histogram":
        histogram = HistogramMetricFamily(declared.name, declared.help, labels=worker_label)
        for worker, cells in snapshots.items():
            histogram.add_metric([worker] * len(worker_label), *_buckets(declared, cells))
        return histogram
    family_type = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    family = family_type(declared.name, declared.help, labels=[*worker_label, *declared.labels])
    for worker, cells in snapshots.items():
        for offset, values in enumerate(label_sets(declared)):
            cell = cells[declared + offset]
            if cell or not declared.sparse:
                value = cell if declared.scale == 1.0 else cell * declared.scale
                family.add_metric([*[worker] * len(worker_label), *values], value)
    return family


def _buckets(declared: Declared, cells: list[int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum, both in base units."""
    count = 0
    buckets: list[tuple[str, float]] = []
    for offset in range(len(declared.bounds) + 1):
        count += cells[declared + offset]
        bound = f"{declared.bounds[offset] * declared.scale:.9g}" if offset < len(declared.bounds) else "+Inf"
        buckets.append((bound, count))
    return buckets, cells[declared + len(declared.bounds) + 1] * declared.scale


def cost_dollars(cells: list[int], prices: Prices) -> float:
    """What the store's requests and bytes counted in `cells` cost."""
    price_of = {"put": prices.put, "list": prices.put, "get": prices.get}
    nanodollars = 0.0
    for offset, (verb, _) in enumerate(label_sets(STORE_OPERATIONS)):
        nanodollars += cells[STORE_OPERATIONS + offset] * price_of.get(verb, 0)
        nanodollars += cells[STORE_BYTES + offset] * prices.mib / (1 << 20)
    return nanodollars / 1e9


def _cost_families(cells: list[int], prices: Prices) -> Iterator[Metric]:
    dollars = cost_dollars(cells, prices)
    produced_gib = cells[BYTES_PRODUCED] / (1 << 30)
    yield CounterMetricFamily(
        "kafscale_store_cost_dollars_total", "What the object store's requests cost at the prices set.", value=dollars
    )
    yield GaugeMetricFamily(
        "kafscale_store_cost_dollars_per_gib",
        "That for each GiB produced, since the start; 0 before the first byte.",
        value=dollars / produced_gib if produced_gib else 0.0,
    )


def _supervisor_families(figures: SupervisorMetrics) -> Iterator[Metric]:
    up = GaugeMetricFamily("kafscale_worker_up", "Whether the worker process serves.", labels=["worker"])
    restarts = CounterMetricFamily("kafscale_worker_restarts_total", "Workers replaced.", labels=["worker"])
    hung = CounterMetricFamily(
        "kafscale_worker_hung_kills_total", "Workers killed because they no longer answered.", labels=["worker"]
    )
    for index, worker in sorted(figures.workers.items()):
        up.add_metric([str(index)], float(worker.up))
        restarts.add_metric([str(index)], worker.restarts)
        hung.add_metric([str(index)], worker.hung_kills)
    yield from (up, restarts, hung)
    yield GaugeMetricFamily("kafscale_ready", "Whether /readyz says ready.", value=float(figures.ready))
    yield GaugeMetricFamily(
        "kafscale_cluster_version", "Latest version of the cluster log known.", value=figures.cluster_version
    )
    yield GaugeMetricFamily(
        "kafscale_leader",
        "Whether this broker leads the cluster: it moves slots and sweeps.",
        value=float(figures.leads),
    )
    yield GaugeMetricFamily(
        "kafscale_coordination_available",
        "Whether coordination answers. While it doesn't data flows on, and topics can't be changed.",
        value=float(figures.coordination_available),
    )
    yield GaugeMetricFamily("kafscale_brokers", "Brokers that are registered.", value=figures.brokers)
    owned = GaugeMetricFamily("kafscale_slots_assigned", "Slots assigned to the worker.", labels=["worker"])
    for index, count in sorted(figures.slots.items()):
        owned.add_metric([str(index)], count)
    yield owned
    yield GaugeMetricFamily(
        "kafscale_slots_unsettled",
        "Slots of the cluster that are moving, or whose owner is not known to have taken over.",
        value=figures.unsettled_slots,
    )
    yield from _security_families(figures)
    yield from _acl_families(figures.acls)
    yield from _audit_families(figures.audit)
    build = GaugeMetricFamily("kafscale_build_info", "What runs here.", labels=["version", "python", "broker_id"])
    build.add_metric([kafscale.__version__, platform.python_version(), str(figures.broker_id)], 1)
    yield build


def _acl_families(acls: AclFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily("kafscale_acl_enabled", "Whether requests are authorized.", value=float(acls.is_on))
    yield GaugeMetricFamily("kafscale_acl_rules", "Rules in the newest snapshot of ACLs.", value=acls.rules)
    yield GaugeMetricFamily("kafscale_acl_snapshot_bytes", "Memory that all processes share for it.", value=acls.bytes)
    yield GaugeMetricFamily(
        "kafscale_acl_snapshot_generation",
        "Its number; a worker is behind while its kafscale_acl_generation is lower.",
        value=acls.generation,
    )
    yield GaugeMetricFamily("kafscale_acl_compile_seconds", "How long it took to make it.", value=acls.compile_seconds)
    yield GaugeMetricFamily(
        "kafscale_acl_deny_all",
        "Alarm: the ACL document can't be read, so nothing is allowed but to super users.",
        value=float(bool(acls.denies_all)),
    )
    yield GaugeMetricFamily(
        "kafscale_acl_failed_open",
        "Alarm: the ACL document can't be read and has no say, as acl_fail_open asks for.",
        value=float(bool(acls.failed_open)),
    )
    yield GaugeMetricFamily(
        "kafscale_acl_document_problem",
        "Alarm: the newest ACL document can't be taken over; what was in force before still is.",
        value=float(bool(acls.problem)),
    )


def _audit_families(audit: AuditFigures) -> Iterator[Metric]:
    if not audit.is_on:
        return
    yield CounterMetricFamily(
        "kafscale_audit_records_total", "Audit records written since the start.", value=audit.records
    )
    yield GaugeMetricFamily("kafscale_audit_sequence", "The number of the newest audit record.", value=audit.sequence)
    yield GaugeMetricFamily(
        "kafscale_audit_anchored_sequence", "The newest of them that is anchored in the bucket.", value=audit.anchored
    )
    yield CounterMetricFamily(
        "kafscale_audit_lost_total",
        "Alarm: events that there was no room for; how many is on record.",
        value=audit.lost,
    )
    yield GaugeMetricFamily(
        "kafscale_audit_failing",
        "Alarm: audit records can't be written; audit_when_full says what that leads to.",
        value=float(audit.is_failing),
    )


def _security_families(figures: SupervisorMetrics) -> Iterator[Metric]:
    expiry = GaugeMetricFamily(
        "kafscale_certificate_expiry_timestamp_seconds",
        "When the first certificate of a listener's chain ends.",
        labels=["listener"],
    )
    for listener, moment in sorted(figures.certificates.items()):
        expiry.add_metric([listener], moment)
    yield expiry
    yield CounterMetricFamily(
        "kafscale_security_reloads_total",
        "Changed certificates, keys or credentials that were taken over.",
        value=figures.security_reloads,
    )
    yield CounterMetricFamily(
        "kafscale_security_reload_failures_total",
        "Times that they could not be read or were not sound.",
        value=figures.security_failures,
    )
    yield GaugeMetricFamily(
        "kafscale_security_stale",
        "Whether what is in force is older than the files, because these can't be used.",
        value=float(figures.is_security_stale),
    )
