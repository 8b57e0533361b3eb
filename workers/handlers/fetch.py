"""Fetch (key 1), v4-18: durable records from an offset on, of many partitions, once there are enough of them. Left out:
fetch sessions (every answer says session 0, so clients send all partitions each time), followers (there are none),
aborted transactions.

The hot path of reads. What lies in memory is answered within the call: views of the bytes as they were received, no
copy. A request that finds fewer than min_bytes waits, without a task, until the high watermarks rise or its time is
over. Only what must be read back from the store gets a task.

A partition whose slot is being loaded here (it was moved, or its owner died) is waited for as if it were empty, and
told as empty where others have records; only when the time is over is its leader said to be not ready. Clients would
take that for a reason to look for another leader, and come back later than it is ready.

A client that states its zone (v11, KIP-392) is sent to a worker there for what is no longer in memory here, and that
one sends it back at the end of what the bucket describes: both by naming the other as the preferred read replica, since
that is what no client takes for an error, or for a reason to begin anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import islice

from kafscale.clock import Timer
from kafscale.errors import Corrupt, Fenced, KafscaleError, ObjectMissing, StoreError
from kafscale.metrics import (
    BYTES_FETCHED,
    CACHE_HIT_BYTES,
    CACHE_HITS,
    CACHE_MISSES,
    FETCH_LATENCY,
    ZONE_BYTES,
    ZONE_REFERRALS,
    error_cell,
)
from kafscale.protocol.acls import CLUSTER_NAME
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import iterate
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.fetch import FetchPartition, FetchRequestView, FetchResult, encode_fetch_response, parse_fetch
from kafscale.security.needs import CLUSTER_ACTION, READ_TOPIC
from kafscale.storage.extents import Extent, cut
from kafscale.storage.partition import PartitionLog
from kafscale.storage.store import Buffer
from workers.context import Context, Request
from workers.errors import code_of
from workers.partitions import is_coming, leader_addresses, served_partition, why_not_served
from workers.pending import Pending
from workers.zones import SentAway, reader_for

log = logging.getLogger(__name__)

FIRST_WITH_NODES = 16
# A cold read whose object is gone looks again this often: compaction may have put another in its place.
COLD_READ_TRIES = 3
# Of one request, so many partitions are read back at the same time.
EXPECTED_PARTITIONS = 8


def handle(
    context: Context, request: Request, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
) -> None:
    """Answer at once if there is enough, else wait."""
    view = parse_fetch(request.header.api_version, buffer, start, end)
    if view.session_id != 0:
        answer = encode_fetch_response(
            request.header.api_version, request.header.correlation_id, ErrorCode.FETCH_SESSION_ID_NOT_FOUND, 0, ()
        )
        pending.answer(answer)
        return
    WaitingFetch(context, request, view, pending).attempt()


class WaitingFetch:
    """One fetch request, from its arrival to its answer."""

    __slots__ = (
        "_added",
        "_arrived",
        "_context",
        "_is_guarded",
        "_max_bytes",
        "_min_bytes",
        "_partitions",
        "_pending",
        "_request",
        "_timer",
        "_view",
    )

    def __init__(self, context: Context, request: Request, view: FetchRequestView, pending: Pending) -> None:
        self._context = context
        self._request = request
        self._view = view
        self._pending: Pending | None = pending
        self._arrived = context.clock.monotonic()
        # Whether what may be read must be asked.
        is_audited = context.audit is not None and context.audit.records_allowed(ApiKey.FETCH)
        self._is_guarded = context.authority.is_on or view.replica_id >= 0 or is_audited
        self._max_bytes = min(view.max_bytes, context.settings.fetch_max_bytes)
        # As in Kafka: more than can be sent is never waited for.
        self._min_bytes = min(view.min_bytes, self._max_bytes)
        self._timer: Timer | None = None
        self._partitions: list[PartitionLog] = []
        self._added = 0

    def attempt(self, is_last: bool = False) -> None:
        """Answer with what is there, or go on waiting. `is_last`: the time is over, answer with whatever there is."""
        results: list[FetchResult] = []
        total = 0
        cold: list[int] = []
        coming: list[int] = []
        is_urgent = False
        for position, wanted in enumerate(self._view.partitions):
            result = self._read_memory(wanted, total)
            if result is None:
                # Its bytes must be read back, or its offset be checked with the store.
                cold.append(position)
                result = _empty(wanted, 0, None)
            elif result[2] or result[7] is not None or result[8] >= 0:
                if self._is_coming(wanted, result[2]):
                    coming.append(position)
                else:
                    is_urgent = True
            total += result[10]
            results.append(result)
        is_last = is_last or self._view.max_wait_ms <= 0
        if not is_last:
            for position in coming:
                results[position] = _empty(self._view.partitions[position], 0, None)
        if cold:
            self._stop_waiting()
            task = asyncio.get_running_loop().create_task(self._read_cold(results, cold, total))
            self._context.tasks.add(task)
            task.add_done_callback(self._context.tasks.discard)
        elif is_last or is_urgent or (available := self._available(total)) >= self._min_bytes:
            self._answer(results)
        else:
            self._wait(available)

    def _read_memory(self, wanted: FetchPartition, total: int) -> FetchResult | None:
        """The answer for one partition, from memory; None if that takes the store. `total`: bytes found so far."""
        topic, index, leader_epoch, offset, last_fetched_epoch, _, partition_max_bytes = wanted
        context = self._context
        partition = context.ownership.partition(topic, index)
        if self._is_guarded and not self._may_read(topic, partition):
            return _empty(wanted, ErrorCode.TOPIC_AUTHORIZATION_FAILED, None)
        if partition is None:
            if self._is_of_this_zone() and not is_coming(context, topic, index):
                return None
            code, leader = why_not_served(context, self._request.listener, topic, index)
            return _empty(wanted, code, leader)
        high_watermark = partition.high_watermark
        if leader_epoch >= 0 and leader_epoch != partition.leader_epoch:
            is_old = leader_epoch < partition.leader_epoch
            code = ErrorCode.FENCED_LEADER_EPOCH if is_old else ErrorCode.UNKNOWN_LEADER_EPOCH
            is_shared = self._request.listener.is_shared
            return _empty(wanted, code, None if is_shared else (context.cluster.node_id, partition.leader_epoch))
        if offset > high_watermark:
            return None
        if offset < partition.log_start_offset:
            return _empty(wanted, ErrorCode.OFFSET_OUT_OF_RANGE, None, partition)
        if last_fetched_epoch >= 0:
            # KIP-595: where the reader's history leaves ours, tell it so instead of sending records.
            epoch, epoch_end = partition.end_of_epoch(last_fetched_epoch)
            if epoch >= 0 and (epoch < last_fetched_epoch or epoch_end < offset):
                return _diverging(wanted, partition, (epoch, epoch_end))
        if offset == high_watermark:
            return _found(wanted, partition, (), 0)
        limit = min(partition_max_bytes, self._max_bytes - total)
        if limit <= 0 and total:
            return _found(wanted, partition, (), 0)
        pieces, length = _from_memory(partition, offset, limit, total == 0)
        if length == 0 and partition.extents[partition.find(offset)].views is None:
            return self._sent_to_its_zone(wanted, partition) if self._view.rack_id else None
        context.metrics.cells[CACHE_HITS] += 1
        context.metrics.cells[CACHE_HIT_BYTES] += length
        return _found(wanted, partition, pieces, length)

    def _is_coming(self, wanted: FetchPartition, code: int) -> bool:
        return code == ErrorCode.NOT_LEADER_OR_FOLLOWER and is_coming(self._context, wanted[0], wanted[1])

    def _is_of_this_zone(self) -> bool:
        """Whether the client is served older data of partitions that others lead."""
        zone = self._view.rack_id
        return (
            bool(zone)
            and zone == self._context.settings.rack
            and not self._request.listener.is_shared
            and self._view.replica_id < 0
        )

    def _sent_to_its_zone(self, wanted: FetchPartition, partition: PartitionLog) -> FetchResult | None:
        """The answer for a record that is not in memory, if a worker in the client's zone can read it."""
        context, pending = self._context, self._pending
        offset = wanted[3]
        reader = reader_for(context, self._request.listener, self._view.rack_id, partition, offset)
        if reader is None or pending is None:
            return None
        caller = pending.caller
        if caller.sent_away is None:
            caller.sent_away = SentAway()
        if not caller.sent_away.may_go(partition.identity, offset, context.clock.monotonic()):
            return None
        context.metrics.cells[ZONE_REFERRALS.at("zone")] += 1
        return _referred(wanted, partition, reader)

    def _may_read(self, topic: str | bytes, partition: PartitionLog | None) -> bool:
        """Whether the client may read the topic now: what it waited for may have been forbidden meanwhile."""
        context = self._context
        access = context.authority.renewed(self._request.access)
        if self._view.replica_id >= 0:
            # Brokers don't fetch from each other here: who says that he is one must have been made one by an ACL.
            return context.authority.is_on and access.allows(CLUSTER_ACTION, CLUSTER_NAME)
        if isinstance(topic, str):
            return access.allows(READ_TOPIC, topic)
        if partition is not None:
            return access.allows(READ_TOPIC, partition.topic)
        found = context.cluster.topic_by_id(topic)
        return found is None or access.allows(READ_TOPIC, found.name)

    def _available(self, found: int) -> int:
        """The bytes to compare with min_bytes. Not only those found: batches are sent whole, and where the next one is
        too large for a limit, or must be read back, nothing is gained by waiting. Kafka compares so too."""
        if found == 0 or found >= self._min_bytes:
            return found
        available = 0
        for topic, index, _, offset, _, _, partition_max_bytes in self._view.partitions:
            partition = self._context.ownership.partition(topic, index)
            if partition is not None and partition.log_start_offset <= offset < partition.high_watermark:
                available += min(partition_max_bytes, _bytes_from(partition, offset, partition_max_bytes))
        return available

    # Waiting

    def _wait(self, available: int) -> None:
        pending = self._pending
        assert pending is not None
        self._added = available
        if available:
            pending.report(available)
        if self._timer is not None:
            return
        view = self._view
        context = self._context
        remaining = self._arrived + view.max_wait_ms / 1000 - context.clock.monotonic()
        self._timer = context.clock.call_later(max(remaining, 0.0), self._timed_out)
        pending.on_close = self._abandon
        pending.on_hurry = self._timed_out
        for topic, index, *_ in view.partitions:
            partition = context.ownership.partition(topic, index)
            if partition is not None:
                partition.waiters[self._woken] = None
                self._partitions.append(partition)
            else:
                # It is being loaded.
                context.ownership.waiters[self._look_again] = None

    def _look_again(self) -> None:
        self._stop_waiting()
        if self._pending is not None:
            self.attempt()

    def _woken(self, added: int) -> None:
        self._added += added
        if self._pending is None:
            return
        if self._added >= self._min_bytes:
            self.attempt()
        else:
            self._pending.report(self._added)

    def _timed_out(self) -> None:
        if self._pending is not None:
            self.attempt(is_last=True)

    def _abandon(self) -> None:
        self._stop_waiting()
        self._pending = None

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._pending is not None:
                self._pending.on_hurry = None
            for partition in self._partitions:
                partition.waiters.pop(self._woken, None)
            self._partitions = []
            self._context.ownership.waiters.pop(self._look_again, None)

    # Reading back

    async def _read_cold(self, results: list[FetchResult], cold: Sequence[int], total: int) -> None:
        """Fill in what is not in memory, and answer."""
        try:
            await self._fill_in(results, cold, total)
        except Fenced:
            self._close("fenced")
        except Exception:
            # A defect must cost one connection, not leave its client waiting for ever.
            log.exception("a fetch failed")
            self._close("error")
        else:
            self._answer(results)

    def _close(self, reason: str) -> None:
        pending = self._pending
        if pending is not None:
            self._abandon()
            pending.close_connection(reason)

    async def _fill_in(self, results: list[FetchResult], cold: Sequence[int], total: int) -> None:
        """Raises Fenced."""
        self._context.metrics.cells[CACHE_MISSES] += len(cold)
        expected = iter(cold)
        for position in islice(expected, EXPECTED_PARTITIONS):
            self._expect(self._view.partitions[position], total)
        for position in cold:
            wanted = self._view.partitions[position]
            try:
                result = await self._read_back(wanted, total)
            except Fenced:
                raise
            except KafscaleError as error:
                code, _ = code_of(error)
                if isinstance(error, Corrupt | ObjectMissing):
                    log.error(
                        "stored records can't be served",
                        extra={"topic": str(wanted[0]), "partition": wanted[1], "why": str(error)},
                    )
                result = _empty(wanted, code, None)
            if self._is_guarded and not self._may_read(wanted[0], None):
                # It was forbidden while the store was read.
                result = _empty(wanted, ErrorCode.TOPIC_AUTHORIZATION_FAILED, None)
            results[position] = result
            total += result[10]
            for following in islice(expected, 1):
                self._expect(self._view.partitions[following], total)

    def _expect(self, wanted: FetchPartition, total: int) -> None:
        """Begin to read what the answer will hold of a partition, unless it is full already."""
        topic, index, _, offset, *_ = wanted
        partition = self._context.ownership.partition(topic, index)
        if partition is None or total >= self._max_bytes:
            return
        if partition.log_start_offset <= offset < partition.high_watermark:
            number = partition.find(offset)
            if partition.extents[number].views is None:
                self._context.cold_reader.expect(partition.extents, number)

    async def _read_back(self, wanted: FetchPartition, total: int) -> FetchResult:
        topic, index, _, offset, _, _, partition_max_bytes = wanted
        context = self._context
        for _ in range(COLD_READ_TRIES):
            partition = context.ownership.partition(topic, index)
            if partition is None and self._is_of_this_zone():
                return await self._read_for_zone(wanted, total)
            if partition is None:
                code, leader = why_not_served(context, self._request.listener, topic, index)
                return _empty(wanted, code, leader)
            if offset > partition.high_watermark:
                # We may have been replaced without knowing it, and the record be there: ask before saying it is not.
                await context.log.check_not_fenced()
                if context.log.fenced is not None:
                    raise Fenced(context.log.fenced)
                return _empty(wanted, ErrorCode.OFFSET_OUT_OF_RANGE, None, partition)
            if offset < partition.log_start_offset:
                return _empty(wanted, ErrorCode.OFFSET_OUT_OF_RANGE, None, partition)
            limit = min(partition_max_bytes, self._max_bytes - total)
            if offset == partition.high_watermark or (limit <= 0 and total):
                return _found(wanted, partition, (), 0)
            try:
                pieces, length = await self._read_extents(partition, offset, limit, total == 0)
            except ObjectMissing:
                continue
            return _found(wanted, partition, pieces, length)
        raise ObjectMissing(f"an object of {wanted[0]!r}-{index} at offset {offset} is missing from the store")

    async def _read_for_zone(self, wanted: FetchPartition, total: int) -> FetchResult:
        """Of a partition that another leads: what the bucket describes. All else is for the leader to tell."""
        topic, index, leader_epoch, offset, _, _, partition_max_bytes = wanted
        context, listener = self._context, self._request.listener
        cluster = context.cluster
        for number in range(COLD_READ_TRIES):
            found = cluster.topic(topic) if isinstance(topic, str) else cluster.topic_by_id(topic)
            leader = None if found is None or not 0 <= index < found.partitions else cluster.leader(found, index)
            why = served_partition(context, topic, index, leader_epoch)
            if why is not ErrorCode.NOT_LEADER_OR_FOLLOWER or found is None or leader is None:
                code = why if isinstance(why, ErrorCode) else ErrorCode.NOT_LEADER_OR_FOLLOWER
                return _empty(wanted, code, None if leader is None else (leader.node_id, leader.epoch))
            if leader.node_id == cluster.node_id:
                return _empty(wanted, why, None)
            replica = await context.read_replicas.partition(found, index, offset, anew=number > 0)
            if replica is None or not replica.log_start_offset <= offset < replica.high_watermark:
                if listener.address(cluster, leader.node_id) is None:
                    return _empty(wanted, why, None)
                context.metrics.cells[ZONE_REFERRALS.at("leader")] += 1
                return _referred(wanted, replica, leader.node_id)
            limit = min(partition_max_bytes, self._max_bytes - total)
            if limit <= 0 and total:
                return _found(wanted, replica, (), 0)
            try:
                pieces, length = await self._read_extents(replica, offset, limit, total == 0)
            except ObjectMissing:
                continue
            context.metrics.cells[ZONE_BYTES] += length
            return _found(wanted, replica, pieces, length)
        raise ObjectMissing(f"an object of {topic!r}-{index} at offset {offset} is missing from the store")

    async def _read_extents(
        self, partition: PartitionLog, offset: int, limit: int, at_least_one: bool
    ) -> tuple[list[Buffer], int]:
        pieces: list[Buffer] = []
        total = 0
        while offset < partition.high_watermark:
            number = partition.find(offset)
            if number == len(partition.extents):
                break  # deleted while we read
            extent = partition.extents[number]
            views = extent.views
            if views is None:
                try:
                    views = [await self._context.cold_reader.read(partition.extents, number)]
                except (StoreError, Corrupt):
                    if not pieces:
                        raise
                    break  # what was found is good; whoever asks for what follows hears of it
            room = limit - total
            found, length = cut(views, offset, room, at_least_one and total == 0)
            pieces += found
            total += length
            # Where its end did not fit, what follows the extent must not follow here.
            if length == 0 or total >= limit or (extent.length > room and not _reaches_end(found[-1], extent)):
                break
            offset = extent.last_offset + 1
        return pieces, total

    # Answering

    def _answer(self, results: list[FetchResult]) -> None:
        self._stop_waiting()
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        context = self._context
        cells = context.metrics.cells
        failed = False
        for result in results:
            cells[BYTES_FETCHED] += result[10]
            if result[2]:
                cells[error_cell(result[2])] += 1
                failed = True
        header = self._request.header
        FETCH_LATENCY.observe(cells, int((context.clock.monotonic() - self._arrived) * 1e6))
        nodes = (
            leader_addresses(context, self._request.listener, results, 6)
            if failed and header.api_version >= FIRST_WITH_NODES
            else ()
        )
        pending.on_close = None
        if pending.wants_results:
            pending.give_results(results)
            return
        pending.answer(encode_fetch_response(header.api_version, header.correlation_id, 0, 0, results, nodes=nodes))


def _reaches_end(piece: Buffer, extent: Extent) -> bool:
    """Whether the last of whole batches that were cut out of an extent is the extent's last."""
    last_offset = -1
    for _, header in iterate(piece):
        last_offset = header.last_offset
    return last_offset == extent.last_offset


def _from_memory(partition: PartitionLog, offset: int, limit: int, at_least_one: bool) -> tuple[list[Buffer], int]:
    """Whole batches from `offset` on, as far as they are in memory and fit."""
    extents = partition.extents
    pieces: list[Buffer] = []
    total = 0
    for number in range(partition.find(offset), len(extents)):
        extent = extents[number]
        views = extent.views
        if views is None:
            break
        room = limit - total
        if offset == extent.base_offset and extent.length <= room:
            pieces += views
            length = extent.length
        else:
            found, length = cut(views, offset, room, at_least_one and total == 0)
            pieces += found
        total += length
        # As in `_read_extents`: no gap behind an extent whose end did not fit.
        if length == 0 or extent.length > room or total >= limit:
            break
        offset = extent.last_offset + 1
    return pieces, total


def _bytes_from(partition: PartitionLog, offset: int, enough: int) -> int:
    """Bytes from the batch with `offset` up to the high watermark, or `enough` of them."""
    number = partition.find(offset)
    first = partition.extents[number]
    # Of what is not in memory the place of the offset is not known: all of it is as good.
    total = first.length if first.views is None else cut(first.views, offset, first.length, False)[1]
    while total < enough and (number := number + 1) < len(partition.extents):
        total += partition.extents[number].length
    return total


def _found(wanted: FetchPartition, partition: PartitionLog, pieces: Sequence[Buffer], length: int) -> FetchResult:
    high_watermark = partition.high_watermark
    return (
        wanted[0],
        wanted[1],
        0,
        high_watermark,
        high_watermark,
        partition.log_start_offset,
        None,
        None,
        -1,
        pieces,
        length,
    )


def _referred(wanted: FetchPartition, partition: PartitionLog | None, node_id: int) -> FetchResult:
    """Nothing, and where to ask for it."""
    if partition is None:
        return wanted[0], wanted[1], 0, -1, -1, -1, None, None, node_id, (), 0
    high_watermark, start = partition.high_watermark, partition.log_start_offset
    return wanted[0], wanted[1], 0, high_watermark, high_watermark, start, None, None, node_id, (), 0


def _diverging(wanted: FetchPartition, partition: PartitionLog, divergence: tuple[int, int]) -> FetchResult:
    high_watermark, start = partition.high_watermark, partition.log_start_offset
    return wanted[0], wanted[1], 0, high_watermark, high_watermark, start, None, divergence, -1, (), 0


def _empty(
    wanted: FetchPartition, code: int, leader: tuple[int, int] | None, partition: PartitionLog | None = None
) -> FetchResult:
    if partition is None:
        return wanted[0], wanted[1], code, -1, -1, -1, leader, None, -1, (), 0
    high_watermark = partition.high_watermark
    start = partition.log_start_offset
    return wanted[0], wanted[1], code, high_watermark, high_watermark, start, leader, None, -1, (), 0
