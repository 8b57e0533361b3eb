"""What the broker shows of itself: the pages for probes and scrapes, broker.json, and the lines at the start. Reads
only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import kafscale
from kafscale.clock import Clock
from kafscale.config import Endpoint, Settings
from kafscale.config.listeners import ListenerSettings, listeners_of
from kafscale.coordination.assignment import unsettled_logs
from kafscale.coordination.store import CoordinationStore, EmbeddedCoordination
from kafscale.metrics import MetricsBlock
from supervisor.acls import Acls
from supervisor.audit import AuditLog
from supervisor.broker_file import BrokerFile, ListenerEntry, WorkerEntry
from supervisor.controller import Controller
from supervisor.health import WorkerHealth, page, unhealthy_reasons, unready_reasons
from supervisor.http import Page, Response
from supervisor.post import Post
from supervisor.security import SecurityWatch
from supervisor.sockets import Listeners


class Status:
    """A view of a running broker. `store_ok` and `draining` say how things stand at the moment."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        posts: Sequence[Post],
        listeners: Listeners,
        metrics_port: int,
        blocks: Mapping[int, MetricsBlock],
        controller: Controller,
        coordination: CoordinationStore,
        store_ok: Callable[[], bool],
        draining: Callable[[], bool],
        requests: MetricsBlock,
        security: SecurityWatch,
        acls: Acls,
        audit: AuditLog,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._posts = posts
        self._listeners = listeners
        self._metrics_endpoint = Endpoint(settings.metrics_addr.host, metrics_port)
        self._blocks = blocks
        self._controller = controller
        self._coordination = coordination
        self._store_ok = store_ok
        self._draining = draining
        self._requests = requests
        self._security = security
        self._acls = acls
        self._audit = audit

    def pages(self) -> dict[str, Page]:
        return {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}

    def lines(self, root: Path, seconds: float) -> list[str]:
        """What a person wants to know who has just started the broker."""
        settings = self._settings
        nodes = ", ".join(str(post.node_id) for post in self._posts)
        return [
            f"Kafscale {kafscale.__version__} is ready after {seconds:.2f} s.",
            *self._listener_lines(),
            f"  Workers        {len(self._posts)} (nodes {nodes}{self._ports_note()})",
            *self._cluster_line(),
            f"  Data           {root if settings.s3_bucket is None else f's3://{settings.s3_bucket}'}",
            f"  Metrics        http://{self._metrics_endpoint}/metrics  (also /healthz, /readyz)",
            first_try(listeners_of(settings)[0]),
        ]

    def broker_file(self) -> BrokerFile:
        settings = self._settings
        first = next(iter(self._listeners.bound.values()))
        first_ports = first.private_ports or [settings.listen.port] * len(self._posts)
        return BrokerFile(
            version=kafscale.__version__,
            supervisor_pid=os.getpid(),
            cluster_id=self._controller.state.cluster_id,
            broker_id=settings.broker_id,
            brokers=[member.broker_id for member in self._coordination.members()],
            listen=str(settings.listen),
            advertised=str(settings.advertised),
            metrics=str(self._metrics_endpoint),
            metrics_port=self._metrics_endpoint.port,
            workers=[
                WorkerEntry(post.index, post.child.pid, post.node_id, port)
                for post, port in zip(self._posts, first_ports, strict=True)
                if post.child is not None
            ],
            listeners=[
                ListenerEntry(
                    one.name,
                    one.protocol,
                    str(one.listen),
                    str(one.advertised),
                    self._listeners.bound[one.name].private_ports,
                )
                for one in listeners_of(settings)
            ],
        )

    def _listener_lines(self) -> list[str]:
        shown = listeners_of(self._settings)
        lines = []
        for number, one in enumerate(shown):
            notes: list[str] = [] if len(shown) == 1 and one.protocol == "PLAINTEXT" else [one.protocol]
            if one.listen != one.advertised:
                notes.append(f"listening on {one.listen}")
            if one.shared_address:
                notes.append("one address for all workers")
            elif len(shown) > 1:
                notes.append(f"ports {self._ports(one.name)}")
            title = "" if number else "Kafka clients"
            lines.append(f"  {title:15}{one.advertised}" + (f"  ({', '.join(notes)})" if notes else ""))
        return lines

    def _ports(self, listener: str) -> str:
        return ", ".join(map(str, self._listeners.bound[listener].private_ports))

    def _ports_note(self) -> str:
        names = list(self._listeners.bound)
        return f" on ports {self._ports(names[0])}" if len(names) == 1 and self._ports(names[0]) else ""

    def _cluster_line(self) -> list[str]:
        if isinstance(self._coordination, EmbeddedCoordination):
            return []
        brokers = ", ".join(str(member.broker_id) for member in self._coordination.members())
        return [f"  Cluster        {self._controller.state.cluster_id}, broker {self._settings.broker_id} of {brokers}"]

    def _slots_owned(self) -> dict[int, int]:
        owned = dict.fromkeys((post.index for post in self._posts), 0)
        if self._controller.version:
            indexes = {post.log_id: post.index for post in self._posts}
            for entries in self._controller.state.slots:
                if entries and (index := indexes.get(entries[-1].log_id)) is not None:
                    owned[index] += 1
        return owned

    def _workers(self) -> list[WorkerHealth]:
        now = self._clock.monotonic()
        return [
            WorkerHealth(
                index=post.index,
                serving=post.serving,
                store_ok=post.child is None or post.child.store_ok,
                gone_seconds=None if post.child is not None or post.down_since is None else now - post.down_since,
                looping=post.looping(),
                trouble=post.trouble,
            )
            for post in self._posts
        ]

    def _healthz(self) -> Response:
        return page("healthy", unhealthy_reasons(self._workers(), self._store_ok()))

    def _unready(self) -> list[str]:
        denies_all = self._acls.figures.denies_all
        return unready_reasons(self._workers(), self._store_ok(), self._draining(), denies_all)

    def _readyz(self) -> Response:
        return page("ready", self._unready())

    def _metrics(self) -> Response:
        # Imported with the first scrape: it takes as long as everything else of a start.
        from supervisor.exposition import CONTENT_TYPE, Prices, SupervisorMetrics, WorkerFigures, render

        settings = self._settings
        workers = {post.index: WorkerFigures(post.serving, post.restart_count, post.hung_count) for post in self._posts}
        figures = SupervisorMetrics(
            broker_id=settings.broker_id,
            requests=self._requests,
            # A directory costs nothing.
            prices=Prices()
            if settings.s3_bucket is None
            else Prices(
                settings.price_put_nanodollars,
                settings.price_get_nanodollars,
                settings.price_transfer_nanodollars_per_mib,
            ),
            workers=workers,
            cluster_version=self._controller.version,
            ready=not self._unready(),
            leads=self._coordination.is_leader,
            coordination_available=self._coordination.is_available,
            brokers=len(self._coordination.members()),
            slots=self._slots_owned(),
            unsettled_slots=sum(map(len, unsettled_logs(self._controller.state).values()))
            if self._controller.version
            else 0,
            certificates={name: moment.timestamp() for name, moment in self._security.expires_at.items()},
            security_reloads=self._security.reload_count,
            security_failures=self._security.failure_count,
            is_security_stale=self._security.has_failed,
            acls=self._acls.figures,
            audit=self._audit.figures,
        )
        return Response(200, CONTENT_TYPE, render(self._blocks, figures))


def first_try(listener: ListenerSettings) -> str:
    """The last line at the start: a first record, where a client needs nothing but the address."""
    if listener.protocol == "PLAINTEXT":
        return f"  Try            echo hello | kcat -P -b {listener.advertised} -t greetings"
    return f"  Clients        need settings for {listener.protocol}: docs/clients.md"
