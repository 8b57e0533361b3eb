"""A worker: the composition root of the data plane, and its life from `Configure` to its end.

Builds every owner and wires them; owns nothing of its own but their order. A worker starts by taking over the slots
assigned to its log (load, own checkpoint, serve) and follows the cluster log: what it is given it takes over once the
earlier owner is done with it, what is given to others it releases (close, flush, checkpoint). It ends in one of three
ways: drained (all that was received is durable and answered, and its log sealed by itself), fenced (someone else ended
its log), or lost (its supervisor is gone). It knows no process and no listening socket (`workers/process.py`): a
simulation can run many.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine

from kafscale.census import Census
from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.config.listeners import listeners_of
from kafscale.control import (
    AclsInForce,
    AuditCopy,
    AuditWritten,
    ClusterVersion,
    CommandReply,
    Configure,
    Drained,
    KeysWanted,
    Nodes,
    PeerReleased,
    Ping,
    Pong,
    Security,
    Serving,
    StoreBroken,
    ToSupervisor,
    ToWorker,
    WorkerFenced,
)
from kafscale.coordination.cluster import apply, decode_state, decode_version_without_acls
from kafscale.errors import Corrupt, Fenced
from kafscale.metrics import (
    ACL_GENERATION,
    BATCHES_PRODUCED,
    BYTES_PRODUCED,
    FENCED,
    FLUSH_BYTES,
    FLUSH_LATENCY,
    FLUSH_PARTITIONS,
    FLUSHES,
    RECORDS_PRODUCED,
    MetricsBlock,
)
from kafscale.protocol.api import ApiKey
from kafscale.quota_use import QuotaUse
from kafscale.security.cluster_secret import ClusterSecret
from kafscale.security.snapshot import Snapshot
from kafscale.storage.compaction import CompactionPolicy, Compactor
from kafscale.storage.compaction_plan import BUCKET_SIZES, Sizes
from kafscale.storage.earlier_logs import EarlierLogs
from kafscale.storage.extents import LARGE_EXTENT_BYTES
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher, FlushPolicy
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import Kind, Seal, encode_small
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.published import PublishedSlots
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.tail_cache import TailCache
from kafscale.storage.worker_log import WorkerLog
from workers.admin import Admin
from workers.apis import handlers
from workers.audit import Recorder
from workers.audit_topic import AuditTopic
from workers.authentication import Authenticator
from workers.authorization import Authority
from workers.checkpoints import Checkpointer
from workers.connection import SMALL_FRAME_BYTES
from workers.connections import Connections
from workers.context import ClusterView, Context
from workers.dispatch import Dispatcher
from workers.entrance import Entrance
from workers.forwarding.forwarder import Forwarder
from workers.forwarding.places import Places
from workers.groups import Groups
from workers.handovers import Handovers, durable
from workers.lease import Lease
from workers.listener import Listener
from workers.ownership import Ownership
from workers.peers.peers import Dial, Peers, no_way
from workers.producer_ids import ProducerIds
from workers.quotas import Quotas
from workers.read_replicas import ReadReplicas
from workers.slabs import SlabPool
from workers.upkeep import Upkeep

log = logging.getLogger(__name__)

SLAB_BYTES = 8 << 20
# What disks take from memory without copying it, from and to multiples of.
PAGE_BYTES = 4096
# Of the cache setting, this part is left to what was read back, which also gets what the recent past does not take.
COLD_SHARE = 4
# Received and not durable, in flushes: enough to keep a disk busy; more only makes clients wait.
FLUSHES_BUFFERED_LOCAL = 2
# Every PUT costs money there, and takes some tens of milliseconds anyway.
FLUSH_INTERVAL_S3_MS = 250
# Of a gibibyte produced at full speed, as many PUTs as fit into it: twice as large is half as dear.
FLUSH_BYTES_LOCAL = 4 << 20
FLUSH_BYTES_S3 = 8 << 20
# A lease is a little shorter than the time after which the supervisor replaces a silent worker.
LEASE_SHARE = 0.8
# Of the time to drain, how much is spent on answering what was received; the rest is for the last checkpoint.
DRAIN_ANSWER_SHARE = 0.5


async def _listen_nowhere() -> None:
    """For a worker whose clients come to it by other ways than sockets."""


class Worker:
    """One worker incarnation. `store` counts its own requests. `send` writes to the supervisor; `on_stopped` is called
    once, with the reason, when this incarnation has ended other than by `drain`."""

    def __init__(
        self,
        configure: Configure,
        store: ObjectStore,
        clock: Clock,
        random_source: random.Random,
        metrics: MetricsBlock,
        send: Callable[[ToSupervisor], None],
        on_stopped: Callable[[str], None],
        bugs: PlantedBugs = NO_BUGS,
        dial: Dial = no_way,
        census: Census | None = None,
        quota_use: QuotaUse | None = None,
    ) -> None:
        settings = configure.settings
        self.node_id = configure.node_id
        self.log_id = configure.log_id
        self.is_stopped = False
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._send = send
        self._on_stopped = on_stopped
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._drained: asyncio.Task[None] | None = None
        keys = Keys(settings.cluster_namespace)
        self.cluster = _view_of(configure)
        self.log = WorkerLog(store, keys, configure.log_id, clock, random_source, self._fenced, bugs)
        tail = TailCache(settings.cache_bytes - settings.cache_bytes // COLD_SHARE)
        self.flusher = Flusher(self.log, keys, clock, _flush_policy(settings), tail, self._flushed, bugs)
        reader = ColdReader(store, clock, lambda: settings.cache_bytes - tail.bytes)
        self.groups = Groups(settings, clock, self.cluster, self.flusher, reader, random_source, metrics)
        patience_seconds = settings.slot_release_timeout_ms / 1000
        earlier = EarlierLogs(store, keys, clock, random_source, configure.log_id, patience_seconds, bugs)
        self.ownership = Ownership(
            settings, store, earlier, clock, random_source, self.cluster, self.log_id, self.flusher, self.groups, bugs
        )
        self.checkpointer = Checkpointer(
            settings, store, keys, clock, random_source, self.log, self.flusher, self.ownership, bugs
        )
        self._admin = Admin(clock, send)
        self._audit_topic = AuditTopic(
            settings, clock, metrics, self.cluster, self.ownership, self.flusher, self._admin
        )
        self.lease = Lease(clock, self.log, settings.worker_hang_timeout_ms / 1000 * LEASE_SHARE)
        self.authority = Authority(clock, metrics, is_on=settings.acl_enabled)
        self.audit = None if settings.audit_log == "off" else Recorder(settings, clock, metrics, self.node_id, send)
        self.quotas = Quotas(clock, metrics, quota_use or QuotaUse.alone(), self.cluster.state.quotas)
        self.authenticator = self._make_authenticator()
        published = PublishedSlots(store, keys, clock, random_source)
        self._read_replicas = ReadReplicas(published, clock, self.cluster, settings)
        context = self._make_context(reader, ProducerIds(store, keys, clock, random_source, self.log_id), bugs)
        slabs = SlabPool(SLAB_BYTES, settings.cache_bytes + settings.produce_buffer_bytes, tail.evict)
        self._securing = asyncio.Lock()
        self._security = configure.security
        self._listeners = _listeners_of(settings)
        self._census = census
        self.connections, self.peers = self._make_connections(Dispatcher(context, handlers()), slabs, dial)
        self._entrances = self._make_entrances()
        if self.audit is not None:
            self.audit.hold_produce = self.connections.hold_produce
            self.audit.release_produce = self.connections.release_produce
        self.compactor = self._make_compactor(keys, random_source, tail)
        self._handovers = Handovers(
            self.log_id,
            clock,
            self.ownership,
            earlier,
            self.checkpointer,
            self.flusher,
            self.compactor,
            metrics,
            send,
            self._spawn,
            bugs,
        )
        self._upkeep = Upkeep(context, self.checkpointer, self.compactor, self.connections, tail, slabs)

    def _make_authenticator(self) -> Authenticator:
        settings, clock, metrics = self._settings, self._clock, self._metrics
        if self.audit is None:
            made = Authenticator(settings, clock, metrics, self._want_keys)
        else:
            audit = self.audit
            made = Authenticator(settings, clock, metrics, self._want_keys, audit.logged_in, lambda: audit.admits)
        made.follow(self.cluster.state)
        return made

    def _want_keys(self) -> None:
        self._send(KeysWanted())

    def _make_compactor(self, keys: Keys, random_source: random.Random, tail: TailCache) -> Compactor:
        return Compactor(
            self._store,
            keys,
            self.log_id,
            self._clock,
            random_source,
            self.ownership.references,
            tail,
            serves=self.ownership.serves,
            changed=self.ownership.changed,
            policy=CompactionPolicy(sizes=Sizes() if self._settings.s3_bucket is None else BUCKET_SIZES),
        )

    def _make_context(self, reader: ColdReader, producer_ids: ProducerIds, bugs: PlantedBugs) -> Context:
        """What handlers may use. Whoever adds to it builds its owner before."""
        return Context(
            settings=self._settings,
            clock=self._clock,
            cluster=self.cluster,
            log=self.log,
            flusher=self.flusher,
            cold_reader=reader,
            read_replicas=self._read_replicas,
            lease=self.lease,
            ownership=self.ownership,
            groups=self.groups,
            admin=self._admin,
            authenticator=self.authenticator,
            producer_ids=producer_ids,
            authority=self.authority,
            quotas=self.quotas,
            audit=self.audit,
            metrics=self._metrics,
            bugs=bugs,
            tasks=self._tasks,
            hold_produce=self._hold_produce,
        )

    def entrance(self, listener: str) -> Entrance:
        """By which clients of a listener come in."""
        return self._entrances[listener]

    def _make_entrances(self) -> dict[str, Entrance]:
        settings, connections = self._settings, self.connections
        return {
            own.name: Entrance(settings, own, self._listeners[own.name], connections, self.authenticator)
            for own in listeners_of(settings)
        }

    async def _use_security(self, security: Security) -> None:
        """Take over what was read from the files of certificates, keys and credentials. Raises CertificateProblem."""
        # One after the other: the last one counts.
        async with self._securing:
            self.authenticator.replace_security(security)
            for name, files in security.tls.items():
                await self._entrances[name].use(files)

    async def _change_security(self, security: Security) -> None:
        try:
            await self._use_security(security)
        except Exception:
            # The supervisor has found it sound. Whatever it is, what is in force is not less safe than before.
            log.exception("new certificates, keys or credentials can't be used; what was there stays")

    def _make_connections(
        self, dispatcher: Dispatcher, slabs: SlabPool, dial: Dial
    ) -> tuple[Connections, Peers | None]:
        """The connections of clients and, where there is a shared address, the links to the workers that their requests
        may concern."""
        settings = self._settings
        connections = Connections(settings, self._clock, slabs, self._metrics, dispatcher, self._census)
        if not any(listener.is_shared for listener in self._listeners.values()):
            return connections, None
        assert settings.cluster_secret is not None, "the supervisor gives its workers a secret"
        peers = Peers(
            self._clock,
            self.cluster,
            self._metrics,
            slabs,
            connections,
            dispatcher,
            self._listeners,
            ClusterSecret.parse(settings.cluster_secret),
            settings.produce_buffer_bytes,
            dial,
        )
        forwarder = Forwarder(Places(self.cluster, self.groups), peers, dispatcher, settings.fetch_max_bytes)
        dispatcher.forward = forwarder.take
        return connections, peers

    # The supervisor's messages

    def receive(self, message: ToWorker) -> None:
        """Follow one message of the supervisor (but those about listeners and `Drain`, which are the process's)."""
        match message:
            case Ping(number, heard_at):
                self.lease.pinged(heard_at)
                self._send(Pong(number, self.log.store_answers))
            case ClusterVersion(_, payload):
                self._follow(payload)
            case Nodes(nodes):
                self.cluster.nodes = {node.node_id: node for node in nodes}
            case CommandReply():
                self._admin.on_reply(message)
            case AuditCopy():
                creating = self._audit_topic.receive(message)
                if creating is not None:
                    self._spawn(creating)
            case AuditWritten():
                if self.audit is not None:
                    self.audit.receive(message)
            case Security():
                self._spawn(self._change_security(message))
            case PeerReleased(log_id, _, sequence):
                self._handovers.heard(log_id, sequence)
            case _:
                raise ValueError(f"a worker was sent {type(message).__name__}, which is not for it")

    def use_acls(self, snapshot: Snapshot) -> None:
        """From now on decide by these rules, for open connections too."""
        self.authority.replace(snapshot)
        self._metrics.cells[ACL_GENERATION] = snapshot.generation
        self._send(AclsInForce(snapshot.generation))

    def _follow(self, payload: bytes) -> None:
        before = self.cluster.state
        state = apply(before, decode_version_without_acls(payload))
        self.cluster.replace_state(state)
        self.authenticator.follow(state)
        if state.quotas is not before.quotas:
            self.quotas.follow(state.quotas)
            self.connections.quotas_changed()
        self.ownership.apply_state(state)
        self._handovers.follow()

    # Life

    async def start(self, listen: Callable[[], Awaitable[None]] = _listen_nowhere) -> None:
        """Take over what is assigned, `listen`, and say that it is served. What others have yet to release is taken
        over when they have; what the store lacks something of that it must hold is not served."""
        self.connections.start(asyncio.get_running_loop().call_soon)
        if self.peers is not None:
            self.peers.start(asyncio.get_running_loop().call_soon)
        await self._handovers.take_over_ready()
        await self._use_security(self._security)
        await listen()
        self._upkeep.start()
        self._send(Serving(self.cluster.state.version))
        self._handovers.begin()

    async def drain(self) -> None:
        """Finish: everything received becomes durable and is answered; then a last checkpoint, and the log's seal.

        Asked twice (its slots were given away, and then its broker ends) it does so once."""
        if self._drained is None:
            self._drained = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._drained)

    async def _drain(self) -> None:
        self._upkeep.stop()
        self.groups.release_waiting()
        answered = asyncio.ensure_future(self._answer_everyone())
        await asyncio.wait({answered}, timeout=self._settings.drain_timeout_ms / 1000 * DRAIN_ANSWER_SHARE)
        answered.cancel()
        await self._settle_flushes()
        if any(entry.is_dirty for entry in self.ownership.slots.values()):
            await self.checkpointer.write()
            # A request that waited behind another, or a timer, may have appended meanwhile.
            await self._settle_flushes()
        seal = Seal(self.log_id, "drained")
        await self.log.append(Kind.SEAL, lambda header: encode_small(header, seal), Purpose.CHECKPOINT)
        self._end()
        self.connections.stop()
        if self.peers is not None:
            self.peers.stop()
        self._send(Drained())

    async def _answer_everyone(self) -> None:
        """Receive nothing more, and answer what was received, here and for other workers."""
        if self.peers is None:
            await self.connections.drain()
            return
        self.peers.release_waiting()
        await asyncio.gather(self.connections.drain(), self.peers.drain())

    async def _settle_flushes(self) -> None:
        """Wait until everything appended is durable, and nothing more is appended."""
        while (flush := self.flusher.barrier()) is not None:
            await durable(flush)

    def stop(self, reason: str) -> None:
        """End this incarnation at once: nothing more is answered."""
        if self.is_stopped:
            return
        self._end()
        self.connections.abandon("fenced")
        if self.peers is not None:
            self.peers.abandon()
        self._on_stopped(reason)

    def _end(self) -> None:
        self.is_stopped = True
        self._handovers.stop()
        self._upkeep.stop()
        self.groups.stop()
        self._read_replicas.stop()
        self.log.stop()
        self.authenticator.stop()
        for entrance in self._entrances.values():
            entrance.stop()
        if self.audit is not None:
            self.audit.close()
        for task in list(self._tasks):
            task.cancel()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Corrupt):
            log.critical("stored data is damaged", extra={"why": str(error)})
            self.stop(f"stored data is damaged: {error}")
        elif error is not None and not isinstance(error, Fenced):
            log.critical("a task failed", exc_info=error)
            self.stop(f"a task failed: {error!r}")

    # What the log says

    def _fenced(self, reason: str) -> None:
        """The log has ended for us: another took over, or the store broke."""
        if self.log.store_failure is not None:
            log.critical("the store can't be trusted any more", extra={"why": self.log.store_failure})
            self._send(StoreBroken(self.log.store_failure))
        else:
            self._metrics.cells[FENCED] += 1
            log.error("fenced: this worker has been replaced and stops", extra={"log_id": self.log_id, "why": reason})
            self._send(WorkerFenced(reason))
        self.stop(reason)

    def _hold_produce(self) -> None:
        """Too much waits to become durable. Small requests add little to it, and their senders would wait behind those
        that fill it: they go on until twice as much waits."""
        is_bad = self.flusher.pending_bytes >= 2 * self.flusher.buffered_bytes_max
        self.connections.hold_produce(0 if is_bad else SMALL_FRAME_BYTES)

    def _flushed(self, flush: Flush, seconds: float) -> None:
        # First what clients wait for.
        self.connections.flush_dirty()
        cells = self._metrics.cells
        cells[FLUSHES] += 1
        cells[FLUSH_BYTES] += flush.bytes
        cells[FLUSH_PARTITIONS] += len(flush.extents)
        cells[BATCHES_PRODUCED] += flush.batches
        cells[BYTES_PRODUCED] += flush.bytes
        cells[RECORDS_PRODUCED] += sum(extent.last_offset - extent.base_offset + 1 for _, extent in flush.placed)
        FLUSH_LATENCY.observe(cells, int(seconds * 1e6))
        self.ownership.flushed(flush)
        self.checkpointer.flushed(flush)
        self.compactor.flushed(flush.small_bytes)
        is_audit_full = self.audit is not None and self.audit.is_stopped(ApiKey.PRODUCE)
        if self.connections.is_produce_held and not self.flusher.is_full and not is_audit_full:
            self.connections.release_produce()


def _listeners_of(settings: Settings) -> dict[str, Listener]:
    return {
        one.name: Listener(one.name, one.advertised if one.shared_address else None) for one in listeners_of(settings)
    }


def _view_of(configure: Configure) -> ClusterView:
    view = ClusterView.of(configure.node_id, decode_state(configure.cluster_state))
    view.nodes = {node.node_id: node for node in configure.nodes}
    return view


def _flush_policy(settings: Settings) -> FlushPolicy:
    interval_ms = settings.flush_interval_ms
    if interval_ms is None and settings.s3_bucket is not None:
        interval_ms = FLUSH_INTERVAL_S3_MS
    interval_s = interval_ms / 1000 if interval_ms else None
    flush_bytes = settings.flush_bytes or (FLUSH_BYTES_LOCAL if settings.s3_bucket is None else FLUSH_BYTES_S3)
    buffered_bytes_max = settings.produce_buffer_bytes
    if interval_s is None:
        buffered_bytes_max = min(buffered_bytes_max, FLUSHES_BUFFERED_LOCAL * flush_bytes)
    return FlushPolicy(
        flush_bytes=flush_bytes,
        interval_s=interval_s,
        max_in_flight=settings.max_in_flight_flushes,
        large_extent_bytes=LARGE_EXTENT_BYTES if settings.s3_bucket is None else BUCKET_SIZES.large,
        alignment=PAGE_BYTES if settings.s3_bucket is None else 1,
        buffered_bytes_max=buffered_bytes_max,
    )
