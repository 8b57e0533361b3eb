"""This broker's audit log: the one writer of its chain of records.

Events come from the workers, over their control sockets, and from the supervisor itself. They are numbered, chained,
and written to the sink in the order in which they came here; then the worker is told, which lets go of them, and what
waited for its record goes on. Rendering, hashing and writing happen in a thread. While the sink can't take a record
nothing behind it is written either: workers hold what they have, within their bounds, and then do what the settings
say. Now and then the newest record is anchored in the bucket. Must not know requests, or what events mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.config.listeners import listeners_of
from kafscale.control import AuditBatch, AuditWritten
from kafscale.errors import Corrupt, StoreError
from kafscale.logs import RateLimited
from kafscale.security.audit_chain import Chain, ChainLink
from kafscale.security.audit_event import AuditEvent, Kind, Origin, Severity, body_of, decode_events
from kafscale.storage.threads import Threads
from supervisor.audit_anchors import Anchor, AnchorConflict, Anchors
from supervisor.audit_copies import AuditCopies
from supervisor.audit_sinks import RECORDS_PER_ANCHOR_MAX, Sink, continuation, open_sink
from supervisor.child import Child

log = logging.getLogger(__name__)

# Sealed and written together.
EVENTS_PER_WRITE_MAX: Final = 256
# The supervisor's own that are not written yet. A broker that starts and ends nothing makes none.
OWN_EVENTS_MAX: Final = 10_000
RETRY_SECONDS: Final = 0.5
# A worker that ends, and a broker that does, leave some last records.
CLOSE_SECONDS: Final = 5.0
ANCHOR_RETRY_SECONDS: Final = 5.0
FAILURE_INTERVAL_SECONDS: Final = 60.0


class AuditFigures(msgspec.Struct, frozen=True):
    """How things stand, for metrics."""

    is_on: bool = False
    records: int = 0
    sequence: int = 0
    anchored: int = 0
    lost: int = 0
    is_failing: bool = False


class _Entry(NamedTuple):
    """An event on its way, with what its record says of the chain itself; and whom to tell once it is written."""

    event: AuditEvent
    notes: dict[str, Any]
    on_written: Callable[[], None] | None


class AuditLog:
    """`prepare` before anything is served, `begin` once the cluster is known, `close` when the workers are gone."""

    def __init__(
        self, settings: Settings, clock: Clock, fail: Callable[[BaseException], None], sink: Sink | None = None
    ) -> None:
        """`fail` gets what nobody expected; `sink` stands in for that of the settings."""
        self._settings = settings
        self._clock = clock
        self._fail = fail
        self._sink = sink
        self._threads = Threads("audit", 1)
        self._queue: deque[_Entry] = deque()
        self._own = 0
        # By index: what ails the worker.
        self._workers: dict[int, str] = {}
        self._arrived = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._writer: asyncio.Task[None] | None = None
        # Where else records go.
        self.copies: AuditCopies | None = None
        self._origin = Origin("", settings.broker_id)
        self._chain: Chain | None = None
        self._anchors: Anchors | None = None
        self._anchored = ChainLink(0, "")
        self._anchor_due_at = 0.0
        self._records = 0
        self._lost = 0
        self._is_failing = False
        self._failures = RateLimited(clock, FAILURE_INTERVAL_SECONDS)

    @property
    def is_on(self) -> bool:
        return self._settings.audit_log != "off"

    @property
    def figures(self) -> AuditFigures:
        return AuditFigures(
            is_on=self.is_on,
            records=self._records,
            sequence=0 if self._chain is None else self._chain.last.sequence,
            anchored=self._anchored.sequence,
            lost=self._lost,
            is_failing=self._is_failing,
        )

    # Beginning and end

    def prepare(self, root: Path) -> None:
        """Choose the sink; `root` is the data directory."""
        if self.is_on and self._sink is None:
            self._sink = open_sink(self._settings, root, self._threads)

    async def begin(self, cluster_id: str, anchors: Anchors) -> None:
        """Find where the chain goes on, and begin to write. Raises StartError, StoreError, Corrupt."""
        if not self.is_on or self._sink is None:
            return
        self._origin = Origin(cluster_id, self._settings.broker_id)
        self._anchors = anchors
        ending = await self._sink.open(self._origin.chain)
        newest = await anchors.newest(0 if ending.last is None else ending.last.sequence)
        if newest is not None and newest.chain != self._origin.chain:
            newest = None
        anchored = None if newest is None else newest.link
        last, gap = continuation(ending, anchored)
        self._chain = Chain(self._origin.chain, last)
        self._anchored = anchored or self._anchored
        if anchored is not None and ending.last is not None and anchored.sequence == ending.last.sequence:
            self._compare(anchored, ending.last)
        if ending.torn_bytes:
            details: dict[str, str | int | bool] = {"torn_bytes": ending.torn_bytes}
            self._put_first(self._event(Kind.RECORD, "Cut off an unfinished line", details=details), {})
        if gap is not None:
            log.log(
                logging.WARNING if gap.reason.startswith("the broker") else logging.CRITICAL,
                "the audit log goes on behind a gap",
                extra={"first": gap.first, "last": gap.last, "cause": gap.reason},
            )
            self._chain.skip_to(gap.last + 1)
            event = self._event(Kind.RECORD, "Leave a gap", is_success=False, severity=Severity.HIGH)
            self._put_first(event, {"gap": {"first": gap.first, "last": gap.last, "reason": gap.reason}})
        self._writer = asyncio.create_task(self._run(), name="audit")
        self._writer.add_done_callback(self._ended)

    async def close(self) -> None:
        """Write what came, for a while, and anchor the end."""
        if self._writer is not None and self._sink is not None:
            until = self._clock.monotonic() + CLOSE_SECONDS
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._is_idle.wait()
            except TimeoutError:
                log.error("audit records could not be written before the end", extra={"count": len(self._queue)})
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            if self._clock.monotonic() < until:
                await self._anchor()
            await self._sink.close()
        await self._threads.close()

    def _ended(self, writer: asyncio.Task[None]) -> None:
        error = None if writer.cancelled() else writer.exception()
        if error is not None:
            log.critical("writing the audit log failed", exc_info=error)
            self._fail(error)

    def _compare(self, anchored: ChainLink, last: ChainLink) -> None:
        if anchored.hash != last.hash:
            self._complain(f"the last record is not record {anchored.sequence}, which was anchored")

    # Events

    def accept(self, child: Child, batch: AuditBatch) -> None:
        """Take a worker's events; it is told when they are written."""
        try:
            events = decode_events(batch.events)
        except Corrupt as error:
            child.break_off(str(error))
            return
        if batch.lost:
            self._lost += batch.lost
            details: dict[str, str | int | bool] = {"lost": batch.lost, "worker_pid": child.pid}
            severity = Severity.HIGH
            lost = self._event(Kind.RECORD, "Lose events", is_success=False, severity=severity, details=details)
            events.insert(0, lost)
        number = batch.number
        if not events:
            child.send(AuditWritten(number))
            return
        for event in events[:-1]:
            self._put(event)
        self._put(events[-1], on_written=lambda: child.send(AuditWritten(number)))

    def record(self, kind: Kind, action: str, **fields: Any) -> None:
        """Put an event of the supervisor's own on record."""
        if not self.is_on:
            return
        if self._own >= OWN_EVENTS_MAX:
            self._lost += 1
            return
        self._own += 1
        self._put(self._event(kind, action, **fields), on_written=self._own_written)

    def reloaded(self, what: str, cause: str) -> None:
        """Something that decides was read anew; `cause` says why it was refused, if it was."""
        severity = Severity.HIGH if cause else Severity.INFORMATIONAL
        action = f"{'Refuse' if cause else 'Reload'} {what}"
        self.record(Kind.RELOAD, action, is_success=not cause, severity=severity, reason=cause)

    def started(self, settings: Settings) -> None:
        """The broker begins to serve."""
        self.record(
            Kind.LIFECYCLE,
            "Start broker",
            details={
                "listeners": ", ".join(f"{one.name}: {one.protocol} {one.listen}" for one in listeners_of(settings)),
                "acl_enabled": settings.acl_enabled,
                "workers": settings.workers,
                "audit_when_full": settings.audit_when_full,
            },
        )

    def worker_changed(self, index: int, node_id: int, trouble: str) -> None:
        """A worker serves (no `trouble`), or does so no more."""
        if self._workers.get(index) == trouble:
            return
        is_first = index not in self._workers
        self._workers[index] = trouble
        if self.copies is not None and not trouble:
            self.copies.hand_on()
        if trouble:
            self.record(
                Kind.LIFECYCLE,
                "Stop worker",
                is_success=False,
                severity=Severity.MEDIUM,
                reason=trouble,
                node_id=node_id,
            )
        else:
            self.record(Kind.LIFECYCLE, "Start worker" if is_first else "Restart worker", node_id=node_id)

    def stopped(self, cause: str) -> None:
        """The broker ends: in order, or for this cause."""
        severity = Severity.HIGH if cause else Severity.INFORMATIONAL
        self.record(Kind.LIFECYCLE, "Stop broker", is_success=not cause, severity=severity, reason=cause)

    def _own_written(self) -> None:
        self._own -= 1

    def _event(self, kind: Kind, action: str, **fields: Any) -> AuditEvent:
        return AuditEvent(kind=kind, time_ms=self._clock.wall_ms(), action=action, **fields)

    def _put(
        self, event: AuditEvent, notes: dict[str, Any] | None = None, on_written: Callable[[], None] | None = None
    ) -> None:
        self._queue.append(_Entry(event, notes or {}, on_written))
        self._is_idle.clear()
        self._arrived.set()

    def _put_first(self, event: AuditEvent, notes: dict[str, Any]) -> None:
        self._queue.appendleft(_Entry(event, notes, None))
        self._is_idle.clear()
        self._arrived.set()

    # Writing

    async def _run(self) -> None:
        while True:
            timer = self._clock.call_later(self._until_anchor(), self._arrived.set)
            try:
                await self._arrived.wait()
            finally:
                timer.cancel()
            self._arrived.clear()
            while self._queue:
                entries = [self._queue.popleft() for _ in range(min(len(self._queue), EVENTS_PER_WRITE_MAX))]
                await self._write(entries)
            self._is_idle.set()
            if self._clock.monotonic() >= self._anchor_due_at:
                await self._anchor()

    async def _write(self, entries: list[_Entry]) -> None:
        assert self._chain is not None and self._sink is not None
        chain = self._chain
        while chain.last.sequence + len(entries) > self._anchored.sequence + RECORDS_PER_ANCHOR_MAX:
            # Who finds nothing but the anchor must be able to tell where numbers are free.
            if not await self._anchor():
                await self._clock.sleep(ANCHOR_RETRY_SECONDS)
        first = chain.last.sequence + 1
        lines = await self._threads.call(lambda: self._seal(entries))
        while True:
            try:
                await self._sink.write(lines, first, chain.last)
                break
            except OSError as error:
                self._is_failing = True
                self._failures.log(
                    log, logging.CRITICAL, "the audit log can't be written", cause=error.strerror or str(error)
                )
                await self._clock.sleep(RETRY_SECONDS)
        if self._is_failing:
            self._is_failing = False
            log.warning("the audit log can be written again")
        self._records += len(entries)
        if self.copies is not None:
            self.copies.put(lines)
        for entry in entries:
            if entry.on_written is not None:
                entry.on_written()
        thrown_away = self._sink.take_thrown_away()
        if thrown_away:
            self._put(self._event(Kind.RECORD, "Delete old files"), {"rotation": {"last": thrown_away}})

    def _seal(self, entries: list[_Entry]) -> bytes:
        """In the thread. The numbers are bound to these bytes: what can't be written is written later, unchanged."""
        assert self._chain is not None
        return b"".join(self._chain.seal(body_of(entry.event, self._origin) | entry.notes) for entry in entries)

    # Anchors

    def _until_anchor(self) -> float:
        return max(0.05, self._anchor_due_at - self._clock.monotonic())

    async def _anchor(self) -> bool:
        """Anchor the newest record, if it isn't yet."""
        assert self._chain is not None and self._anchors is not None
        now = self._clock.monotonic()
        self._anchor_due_at = now + self._settings.audit_anchor_interval_ms / 1000
        last = self._chain.last
        if last.sequence <= self._anchored.sequence:
            return True
        try:
            await self._anchors.put(Anchor(self._origin.chain, last.sequence, last.hash, self._clock.wall_ms()))
        except AnchorConflict as conflict:
            self._complain(str(conflict))
        except (StoreError, Corrupt) as error:
            self._anchor_due_at = now + min(ANCHOR_RETRY_SECONDS, self._settings.audit_anchor_interval_ms / 1000)
            self._failures.log(
                log, logging.ERROR, "an audit record could not be anchored", key="anchor", cause=str(error)
            )
            return False
        self._anchored = last
        return True

    def _complain(self, problem: str) -> None:
        log.critical("the audit log has been tampered with, or two brokers write it", extra={"cause": problem})
        self._put(
            self._event(
                Kind.RECORD, "Find a contradiction", is_success=False, severity=Severity.HIGH, reason=problem[:512]
            )
        )
