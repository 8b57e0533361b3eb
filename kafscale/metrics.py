"""Counters that cost next to nothing: a worker writes its own block of shared memory, the supervisor reads it.

A metric is the index of its first cell in a block, so counting is `cells[BYTES_RECEIVED] += n`, and one with labels is
`cells[REQUESTS + api_key]` or `cells[STORE_OPERATIONS.at("put", "flush")]` (take the index once, at construction).
Cells are signed 64-bit, aligned, and written by one process, so a reader never sees half a number. Times are counted in
whole microseconds and shown in seconds. This file declares and stores; `supervisor/exposition.py` shows.

To add a metric, declare it below, anywhere before `LAYOUT`: one line. Names follow Prometheus: base units, counters end
in `_total`. Labels are fixed here, so their number is bounded. A block outlives its worker: counters never go back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import mmap
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Literal, Self

from kafscale.errors import StartError
from kafscale.shared_memory import make_block

MICRO = 1e-6

# Upper bounds in microseconds; above the last is one more bucket.
LATENCY_BOUNDS_US = (
    *(100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000),
    *(100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000),
)

# Kafka's names of requests by API key (the protocol guide's table of API keys).
API_NAMES = (
    *("Produce", "Fetch", "ListOffsets", "Metadata", "LeaderAndIsr", "StopReplica", "UpdateMetadata"),
    *("ControlledShutdown", "OffsetCommit", "OffsetFetch", "FindCoordinator", "JoinGroup", "Heartbeat", "LeaveGroup"),
    *("SyncGroup", "DescribeGroups", "ListGroups", "SaslHandshake", "ApiVersions", "CreateTopics", "DeleteTopics"),
    *("DeleteRecords", "InitProducerId", "OffsetForLeaderEpoch", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn"),
    *("WriteTxnMarkers", "TxnOffsetCommit", "DescribeAcls", "CreateAcls", "DeleteAcls", "DescribeConfigs"),
    *("AlterConfigs", "AlterReplicaLogDirs", "DescribeLogDirs", "SaslAuthenticate", "CreatePartitions"),
    *("CreateDelegationToken", "RenewDelegationToken", "ExpireDelegationToken", "DescribeDelegationToken"),
    *("DeleteGroups", "ElectLeaders", "IncrementalAlterConfigs", "AlterPartitionReassignments"),
    *("ListPartitionReassignments", "OffsetDelete", "DescribeClientQuotas", "AlterClientQuotas"),
    *("DescribeUserScramCredentials", "AlterUserScramCredentials", "Vote", "BeginQuorumEpoch", "EndQuorumEpoch"),
    *("DescribeQuorum", "AlterPartition", "UpdateFeatures", "Envelope", "FetchSnapshot", "DescribeCluster"),
    *("DescribeProducers", "BrokerRegistration", "BrokerHeartbeat", "UnregisterBroker", "DescribeTransactions"),
    *("ListTransactions", "AllocateProducerIds", "ConsumerGroupHeartbeat", "ConsumerGroupDescribe"),
    *("ControllerRegistration", "GetTelemetrySubscriptions", "PushTelemetry", "AssignReplicasToDirs"),
    *("ListConfigResources", "DescribeTopicPartitions"),
)
_OTHER = "other"

# Kafka's error codes run from -1; those above the last known are counted together.
ERROR_CODE_MAX = 135

CLOSE_REASONS = (
    *("client", "idle", "slow_request", "too_large", "protocol", "limit", "fenced", "drain", "error", "peer"),
    *("handshake", "proxy", "authentication", "session", "audit"),
)
# Those of `security.peer_handshake`, and what else keeps two workers apart.
PEER_REASONS = ("magic", "version", "cluster", "node", "secret", "message", "forged", "limit", "unreachable")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "TLS", "other")
STORE_VERBS = ("put", "get", "list", "delete")
STORE_PURPOSES = (
    *("flush", "compaction", "cold_read", "second_read", "recovery", "checkpoint", "manifest", "cluster", "sweep"),
)

# KafScale's actions, and what it has no action for; and what they are asked for on.
ACTIONS = (
    *("produce", "fetch", "group_read", "group_write", "group_admin", "admin"),
    *("cluster_action", "idempotent_write"),
)
RESOURCES = ("topic", "group", "cluster", "transactional_id")

Kind = Literal["counter", "gauge", "histogram"]


class Metric(int):
    """A declared metric; as a number, the index of its first cell."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]]
    scale: float  # What a cell's unit is in the base unit.
    bounds: tuple[int, ...]  # Of a histogram's buckets, in the cells' unit, rising.
    per_worker: bool  # Shown for each worker with a label; else summed.
    sparse: bool  # Label values never counted are left out.
    # Of a histogram: the cells of its first bucket and of the sum, as plain numbers, which are quicker to add to.
    first: int
    sum_at: int

    @property
    def cell_count(self) -> int:
        """Cells it takes: one for each combination of labels, or for each bucket, the one above them, and the sum."""
        if self.kind == "histogram":
            return len(self.bounds) + 2
        return math.prod(len(values) for values in self.labels.values())

    def at(self, *values: str) -> int:
        """The index of the cell for these label values, in the labels' order. ValueError for one not declared."""
        index = 0
        for known, value in zip(self.labels.values(), values, strict=True):
            index = index * len(known) + known.index(value)
        return self + index

    def observe(self, cells: memoryview[int], value: int) -> None:
        """Count a histogram's value, in the cells' unit (µs)."""
        cells[self.first + bisect_left(self.bounds, value)] += 1
        cells[self.sum_at] += value

    def observe_all(self, cells: memoryview[int], values: list[int]) -> None:
        """`observe` each of them. Sorts them."""
        values.sort()
        cells[self.sum_at] += sum(values)
        bounds, count = self.bounds, len(values)
        at = 0
        while at < count:
            bucket = bisect_left(bounds, values[at])
            end = bisect_right(values, bounds[bucket], at) if bucket < len(bounds) else count
            cells[self.first + bucket] += end - at
            at = end


class _Declaring:
    """Deals out cells while this file is read, and is gone afterwards."""

    def __init__(self) -> None:
        self._declared: list[Metric] = []
        self._next = 0

    def _add(self, kind: Kind, name: str, help_text: str, **attributes: object) -> Metric:
        metric = Metric(self._next)
        defaults = {"labels": {}, "scale": 1.0, "bounds": (), "per_worker": False, "sparse": False}
        vars(metric).update(defaults | attributes, kind=kind, name=name, help=help_text)
        vars(metric).update(first=self._next, sum_at=self._next + metric.cell_count - 1)
        self._next += metric.cell_count
        self._declared.append(metric)
        return metric

    def counter(
        self,
        name: str,
        help_text: str,
        labels: Mapping[str, tuple[str, ...]] | None = None,
        *,
        per_worker: bool = False,
        sparse: bool = False,
        scale: float = 1.0,
    ) -> Metric:
        known = labels or {}
        return self._add("counter", name, help_text, labels=known, per_worker=per_worker, sparse=sparse, scale=scale)

    def gauge(self, name: str, help_text: str, *, scale: float = 1.0) -> Metric:
        """What is now, not what has been: shown per worker, and zeroed when a worker's next incarnation begins."""
        return self._add("gauge", name, help_text, scale=scale, per_worker=True)

    def latency(self, name: str, help_text: str) -> Metric:
        return self._add("histogram", name, help_text, scale=MICRO, bounds=LATENCY_BOUNDS_US)

    def declared(self) -> tuple[Metric, ...]:
        return tuple(self._declared)


_declare = _Declaring()

# Requests and connections.
REQUESTS = _declare.counter(
    "kafscale_requests_total", "Requests by Kafka API.", {"api": (*API_NAMES, _OTHER)}, sparse=True
)
REQUEST_ERRORS = _declare.counter(
    "kafscale_request_errors_total",
    "Kafka error codes sent, for each topic, partition or request that got one.",
    {"code": (*map(str, range(-1, ERROR_CODE_MAX + 1)), _OTHER)},
    sparse=True,
)
BYTES_RECEIVED = _declare.counter("kafscale_received_bytes_total", "Bytes received from clients.", per_worker=True)
BYTES_SENT = _declare.counter("kafscale_sent_bytes_total", "Bytes sent to clients.", per_worker=True)
CONNECTIONS_OPEN = _declare.gauge("kafscale_connections", "Client connections open.")
CONNECTIONS_ACCEPTED = _declare.counter(
    "kafscale_connections_accepted_total", "Client connections accepted.", per_worker=True
)
CONNECTIONS_CLOSED = _declare.counter(
    "kafscale_connections_closed_total", "Client connections closed, by why.", {"reason": CLOSE_REASONS}
)
AUTHENTICATIONS = _declare.counter(
    "kafscale_authentications_total",
    "Logins by SASL and by client certificate, and re-authentications.",
    {"mechanism": MECHANISMS, "result": ("success", "failure")},
)
HANDSHAKES = _declare.counter("kafscale_tls_handshakes_total", "TLS handshakes.", {"result": ("success", "failure")})
LOOP_LAG_MAX = _declare.gauge(
    "kafscale_loop_lag_max_seconds", "Longest time of late that the event loop was busy.", scale=MICRO
)

# Requests passed on between workers.
PASSED_WHOLE = _declare.counter("kafscale_passed_requests_total", "Requests passed on to the worker they concern.")
PASSED_PARTS = _declare.counter(
    "kafscale_passed_parts_total", "Parts of requests that concern several workers, passed on."
)
PASSED_FAILED = _declare.counter(
    "kafscale_passed_failures_total",
    "Passed requests and parts that got no answer: not sent, or lost when they were being served.",
    {"outcome": ("unsent", "lost")},
)
PASSED_SERVED = _declare.counter("kafscale_served_for_peers_total", "Requests served that other workers passed on.")
PEER_LINKS = _declare.gauge("kafscale_peer_links", "Links to and from other workers that are up.")
PEER_REFUSED = _declare.counter(
    "kafscale_peers_refused_total",
    "Connections between workers that came to nothing, by why.",
    {"reason": PEER_REASONS},
)
PEER_BYTES_RECEIVED = _declare.counter("kafscale_peer_received_bytes_total", "Bytes received from other workers.")
PEER_BYTES_SENT = _declare.counter("kafscale_peer_sent_bytes_total", "Bytes sent to other workers.")

# Records.
RECORDS_PRODUCED = _declare.counter("kafscale_produced_records_total", "Records appended and durable.", per_worker=True)
BATCHES_PRODUCED = _declare.counter("kafscale_produced_batches_total", "Record batches appended and durable.")
BYTES_PRODUCED = _declare.counter("kafscale_produced_bytes_total", "Bytes of those batches.", per_worker=True)
DUPLICATES = _declare.counter("kafscale_duplicate_batches_total", "Batches of idempotent producers sent again.")
BYTES_FETCHED = _declare.counter("kafscale_fetched_bytes_total", "Bytes of batches sent to consumers.", per_worker=True)
ZONE_BYTES = _declare.counter(
    "kafscale_zone_fetched_bytes_total",
    "Of these, bytes of partitions that others lead, read from the store for consumers of this broker's zone.",
    per_worker=True,
)
ZONE_REFERRALS = _declare.counter(
    "kafscale_zone_referrals_total",
    "Partitions in fetches that were sent to a worker in the consumer's zone, and from there to the leader.",
    {"to": ("zone", "leader")},
)
PRODUCE_LATENCY = _declare.latency("kafscale_produce_seconds", "From a produce request's arrival to its answer.")
FETCH_LATENCY = _declare.latency(
    "kafscale_fetch_seconds", "From a fetch request's arrival to its answer, waits included."
)

# The log.
FLUSHES = _declare.counter("kafscale_flushes_total", "Data objects made durable.", per_worker=True)
FLUSH_BYTES = _declare.counter("kafscale_flushed_bytes_total", "Bytes of data objects made durable.", per_worker=True)
FLUSH_PARTITIONS = _declare.counter("kafscale_flushed_partitions_total", "Partitions in those objects, added up.")
FLUSH_LATENCY = _declare.latency("kafscale_flush_seconds", "From the start of a flush until its object counts.")
PRODUCE_BUFFERED = _declare.gauge("kafscale_produce_buffered_bytes", "Bytes received and not yet durable.")
CHECKPOINTS = _declare.counter("kafscale_checkpoints_total", "Checkpoints that count.")
FENCED = _declare.counter("kafscale_fenced_total", "Times a worker met another's object or a seal in its own log.")
SLOTS_OWNED = _declare.gauge("kafscale_slots_owned", "Slots loaded and served.")
SLOTS_FAILED = _declare.gauge(
    "kafscale_slots_failed", "Slots that are not served, since an object that they need is missing or damaged."
)
PARTITIONS_OWNED = _declare.gauge("kafscale_partitions_owned", "Partitions loaded and served.")
SLOTS_TAKEN_OVER = _declare.counter("kafscale_slots_taken_over_total", "Slots loaded from an earlier owner's log.")
SLOTS_RELEASED = _declare.counter(
    "kafscale_slots_released_total", "Slots given up to another worker while this one lives."
)

# The object store and what is kept from it.
STORE_OPERATIONS = _declare.counter(
    "kafscale_store_operations_total",
    "Object store requests as they are billed: each page of a listing, each try.",
    {"operation": STORE_VERBS, "purpose": STORE_PURPOSES},
    sparse=True,
)
STORE_BYTES = _declare.counter(
    "kafscale_store_bytes_total",
    "Bytes of objects sent and read.",
    {"operation": STORE_VERBS, "purpose": STORE_PURPOSES},
    sparse=True,
)
STORE_ERRORS = _declare.counter(
    "kafscale_store_errors_total",
    "Object store requests that failed, had no clear answer, or lost a put-if-absent.",
    {"operation": STORE_VERBS, "error": ("unavailable", "unclear", "exists", "missing", "failed")},
)
STORE_DELETED = _declare.counter("kafscale_store_deleted_objects_total", "Objects that those requests deleted.")
REPLICA_PASSED_OVER = _declare.counter(
    "kafscale_store_replica_passed_over_total",
    "Reads of older data that the bucket served in place of its replica (s3_read_bucket), by what was wrong with it.",
    {"reason": ("missing", "short", "damaged", "unavailable", "paused")},
    sparse=True,
)
STORE_PUT_LATENCY = _declare.latency("kafscale_store_put_seconds", "Duration of single PUTs.")
CACHE_HITS = _declare.counter("kafscale_cache_hits_total", "Reads of batches served from memory.")
CACHE_MISSES = _declare.counter("kafscale_cache_misses_total", "Reads of batches that went to the store.")
CACHE_HIT_BYTES = _declare.counter("kafscale_cache_hit_bytes_total", "Bytes served from memory.")
CACHE_BYTES = _declare.gauge("kafscale_cache_bytes", "Bytes of recent data in memory.")
SLAB_BYTES = _declare.gauge("kafscale_slab_bytes", "Memory of the receive slabs, in use or not.")
COMPACTION_OBJECTS = _declare.counter(
    "kafscale_compaction_objects_total", "Segments and packs that compaction has written."
)
COMPACTION_BYTES = _declare.counter(
    "kafscale_compaction_bytes_total", "Bytes compaction has read and written.", {"direction": ("in", "out")}
)
RETENTION_BYTES = _declare.counter("kafscale_retention_deleted_bytes_total", "Bytes of records deleted by retention.")

# Groups.
GROUPS = _declare.gauge("kafscale_groups", "Consumer groups that this worker coordinates.")
REBALANCES = _declare.counter("kafscale_group_rebalances_total", "Rebalances completed.")
OFFSET_COMMITS = _declare.counter("kafscale_offset_commits_total", "Partition offsets committed.")

# Quotas.
THROTTLED = _declare.counter(
    "kafscale_throttled_requests_total",
    "Requests after which a client was not read for a while, by the quota that it has used up.",
    {"quota": ("produce", "fetch", "request")},
)
THROTTLED_US = _declare.counter("kafscale_throttled_seconds_total", "For how long, added up.", scale=MICRO)

# Authorization.
DENIALS = _declare.counter(
    "kafscale_authz_denied_total",
    "What was asked for and may not be, by the action that it takes.",
    {"action": ACTIONS, "resource": RESOURCES},
    sparse=True,
)
ACL_GENERATION = _declare.gauge("kafscale_acl_generation", "The snapshot of ACLs that the worker goes by; 0 for none.")
ACL_SNAPSHOTS_REFUSED = _declare.counter(
    "kafscale_acl_snapshots_refused_total", "Snapshots of ACLs that were not sound; the one before stayed in force."
)

# The audit log.
AUDIT_PENDING_BYTES = _declare.gauge("kafscale_audit_pending_bytes", "Audit events that are not yet written.")
AUDIT_LOST = _declare.counter(
    "kafscale_audit_dropped_total", "Alarm: audit events for which a worker had no room; how many is on record."
)
AUDIT_UNCOPIED = _declare.counter(
    "kafscale_audit_uncopied_total", "Audit records that are on record and missing from the internal topic."
)
AUDIT_REFUSED = _declare.counter(
    "kafscale_audit_refused_total", "Requests refused or held up because their record had no room."
)

LAYOUT: tuple[Metric, ...] = _declare.declared()
del _declare

CELL_COUNT = sum(metric.cell_count for metric in LAYOUT)

_MAGIC = b"KAFSMETR"
# Magic, checksum of the layout, number of cells; then cells, from a cache line's start on.
_HEADER = struct.Struct("<8s8sQ")
_CELLS_AT = 64
_SIZE = _CELLS_AT + 8 * CELL_COUNT


def request_cell(api_key: int) -> int:
    """The cell that counts requests of this API key."""
    return REQUESTS + (api_key if 0 <= api_key < len(API_NAMES) else len(API_NAMES))


def error_cell(code: int) -> int:
    """The cell that counts this Kafka error code."""
    return REQUEST_ERRORS + (code + 1 if -1 <= code <= ERROR_CODE_MAX else ERROR_CODE_MAX + 2)


def layout_checksum() -> bytes:
    """Eight bytes that differ when any metric's place, name or labels differ."""
    text = "\n".join(f"{int(m)} {m.kind} {m.name} {sorted(m.labels.items())} {m.bounds} {m.scale}" for m in LAYOUT)
    return hashlib.sha256(text.encode()).digest()[:8]


class MetricsBlock:
    """A worker's cells. The supervisor creates one per worker index and keeps it over the worker's incarnations."""

    def __init__(self, memory: mmap.mmap, fd: int | None) -> None:
        self._memory = memory
        self.fd = fd  # To be inherited by the worker; None where there is none to give.
        self._whole = memoryview(memory)
        self.cells: memoryview[int] = self._whole[_CELLS_AT:_SIZE].cast("q")

    @classmethod
    def create(cls) -> Self:
        """Make a block in a memory file that can be neither grown nor shrunk. Its fd is not inherited unless passed."""
        fd, memory = make_block("kafscale-metrics", _SIZE)
        block = cls(memory, fd)
        _HEADER.pack_into(block._memory, 0, _MAGIC, layout_checksum(), CELL_COUNT)
        return block

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a block made by another process; takes the fd over. StartError if its layout is not this version's."""
        size = os.fstat(fd).st_size
        memory = mmap.mmap(fd, _SIZE) if size == _SIZE else None
        if memory is None or _HEADER.unpack_from(memory) != (_MAGIC, layout_checksum(), CELL_COUNT):
            raise StartError(
                "the metrics block is of another version of Kafscale; supervisor and workers must be the same"
            )
        return cls(memory, fd)

    @classmethod
    def in_memory(cls) -> Self:
        """A block that no other process sees, for simulations and tests."""
        return cls(mmap.mmap(-1, _SIZE), None)

    def begin_incarnation(self) -> None:
        """Zero the gauges, which a dead predecessor left as they were. Called by the worker before it counts."""
        for metric in LAYOUT:
            if metric.kind == "gauge":
                self.cells[metric] = 0

    def snapshot(self) -> list[int]:
        """All cells, each read whole, though not all at one instant."""
        return self.cells.tolist()

    def close(self) -> None:
        """Unmap, and close the fd. The cells can't be used afterwards."""
        self.cells.release()
        self._whole.release()
        self._memory.close()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def label_sets(metric: Metric) -> list[tuple[str, ...]]:
    """The label values of a counter's or gauge's cells, in the cells' order."""
    return list(itertools.product(*metric.labels.values()))
