"""Produce (key 0), versions 3 to 13; advertised from 0 (KAFKA-18659). Transactions are left out.

The hot path of writes: parse, check, append, and answer when the flush is durable. One pass over the request, no task;
the partitions of a request share the open flush, and the answer is built when that is durable. A duplicate of an
idempotent producer waits for its original. acks=0 gets no answer; its errors close the connection, as in Kafka. Nobody
may write to an internal topic: the state of groups is made of what is in it.
"""

from __future__ import annotations

from collections.abc import Callable

from kafscale.coordination.cluster import INTERNAL_TOPICS
from kafscale.errors import Invalid, Retry
from kafscale.metrics import DUPLICATES, error_cell
from kafscale.protocol.batches import (
    NO_LIMIT,
    check_produced,
    read_header,
    stamp_log_append_time,
    stamp_max_timestamp,
)
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.produce import FLEXIBLE_FROM, ProduceResult, encode_produce_response, parse_produce
from kafscale.protocol.records import RECORDS_OPENED_MAX, max_timestamp_record
from kafscale.security.access import Access
from kafscale.security.needs import WRITE_TOPIC, WRITE_TRANSACTION, Need
from kafscale.storage.flush import Flush
from kafscale.storage.partition import PartitionLog
from workers.caller import Caller
from workers.context import Context, Request
from workers.partitions import leader_addresses, why_not_served
from workers.pending import Pending
from workers.refused_batches import RefusedBatches
from workers.repeated_produce import RepeatedProduce
from workers.waiting_produce import WaitingProduce

FIRST_WITH_LEADERS = 10


def handle(
    context: Context, request: Request, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
) -> None:
    """Append everything that can be appended, and answer when it is durable."""
    version = request.header.api_version
    view = parse_produce(version, buffer, start, end)
    find = context.ownership.partition
    # The shared receive buffer is overwritten after this call; a large frame's own memory stays.
    is_kept = isinstance(buffer, memoryview)
    now_ms = context.clock.wall_ms()
    arrived = context.clock.monotonic()
    refusal = _refusal(request.access, view.acks, view.transactional_id)
    may = request.access.allows
    # Of the topic before: the partitions of a topic stand together, and share its name.
    allowed: str | bytes | None = None
    results: list[ProduceResult] = []
    flush: Flush | None = None
    failed = False
    for topic, index, records in view.partitions:
        partition = find(topic, index)
        if topic is not allowed and refusal is None:
            denied = _denial(context, may, topic, partition)
            if denied is not None:
                results.append((topic, index, denied[0], -1, -1, -1, denied[1], None))
                failed = True
                continue
            allowed = topic
        if partition is None or records is None or refusal is not None:
            results.append(_refused(context, request, topic, index, records, refusal))
            failed = True
            if refusal is None:
                _note_refused(pending.caller, topic, index, records)
            continue
        try:
            base_offset, waits_for = _append(
                context, partition, records, is_kept, version, now_ms, topic, pending.caller
            )
        except (Invalid, Retry) as error:
            if isinstance(error, Retry):
                _note_refused(pending.caller, topic, index, records)
            results.append((topic, index, error.code, -1, -1, -1, str(error), None))
            failed = True
            continue
        if waits_for is not None and (flush is None or waits_for.number > flush.number):
            flush = waits_for
        appended_ms = now_ms if partition.config.log_append_time else -1
        results.append((topic, index, 0, base_offset, appended_ms, partition.log_start_offset, None, None))
    if failed:
        _count_errors(context, results)
        pending.note_errors()
    if context.flusher.is_full:
        context.hold_produce()
    if view.acks == 0:
        if failed:
            pending.close_connection("error")
        else:
            pending.answer(None)
        return
    correlation_id = request.header.correlation_id
    nodes = leader_addresses(context, request.listener, results, 7) if failed and version >= FIRST_WITH_LEADERS else ()
    if flush is None:
        pending.answer(encode_produce_response(version, correlation_id, results, nodes=nodes))
        return
    waiting = WaitingProduce(
        context.metrics, version, correlation_id, pending, results, arrived, view.timeout_ms, nodes
    )
    flush.answers.append(waiting)
    # The short way leaves all to the long one while something was refused.
    if len(results) == 1 and not failed and not pending.caller.refused_batches:
        caller = pending.caller
        known = caller.repeated_produce
        caller.repeated_produce = RepeatedProduce.learn(known, context, request, view, buffer, start, end)
        if is_kept:
            # Behind the records come the tags of the partition, the topic and the request; mostly there are none.
            tags = 3 if version >= FLEXIBLE_FROM else 0
            caller.records_at = end - tags - len(view.partitions[0][2] or b"")


def _append(
    context: Context,
    partition: PartitionLog,
    records: memoryview,
    is_kept: bool,
    version: int,
    now_ms: int,
    topic: str | bytes,
    caller: Caller,
) -> tuple[int, Flush | None]:
    """Check one partition's batch and append it. Returns its base offset and the flush to wait for.

    Raises Invalid, Retry.
    """
    config = partition.config
    if config.log_append_time:
        header = check_produced(records, config.max_message_bytes, now_ms, version, NO_LIMIT, NO_LIMIT)
    else:
        header = check_produced(
            records,
            config.max_message_bytes,
            now_ms,
            version,
            config.timestamp_before_max_ms,
            config.timestamp_after_max_ms,
        )
    if header.producer_id >= 0:
        if caller.refused_batches:
            is_known = partition.producers.knows(header.producer_id)
            caller.refused_batches.check(topic, partition.index, header, is_known=is_known)
        duplicate = partition.duplicate_of(header)
        if duplicate is not None:
            context.metrics.cells[DUPLICATES] += 1
            is_durable = duplicate.last_offset < partition.high_watermark or context.bugs.duplicate_answered_early
            return duplicate.base_offset, None if is_durable else partition.last_flush
    batch = records if is_kept else bytearray(records)
    if config.log_append_time:
        stamp_log_append_time(batch, now_ms)
        header = read_header(batch)
    elif header.lacks_max_timestamp:
        if header.record_count > RECORDS_OPENED_MAX:
            raise Invalid(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"a batch of {header.record_count} records that doesn't state their largest timestamp; it may have "
                f"{RECORDS_OPENED_MAX}",
            )
        newest = max_timestamp_record(batch)
        stamp_max_timestamp(batch, newest[1] if newest is not None else header.base_timestamp)
        header = read_header(batch)
    return context.flusher.append(partition, batch, header, now_ms)


def _denial(
    context: Context, may: Callable[[Need, str], bool], topic: str | bytes, partition: PartitionLog | None
) -> tuple[int, str | None] | None:
    """Why nothing may be written to the topic, if so. That there is none of some id is no secret."""
    name = topic if isinstance(topic, str) else _name_of(context, topic, partition)
    if name is None:
        return None
    if not may(WRITE_TOPIC, name):
        return ErrorCode.TOPIC_AUTHORIZATION_FAILED, None
    if name in INTERNAL_TOPICS:
        return ErrorCode.INVALID_TOPIC_EXCEPTION, f"{name} is written by brokers alone"
    return None


def _name_of(context: Context, topic_id: bytes, partition: PartitionLog | None) -> str | None:
    if partition is not None:
        return partition.topic
    topic = context.cluster.topic_by_id(topic_id)
    return None if topic is None else topic.name


def _refusal(access: Access, acks: int, transactional_id: str | None) -> tuple[int, str] | None:
    """Why nothing of the request can be taken, if so."""
    if transactional_id is not None and not access.allows(WRITE_TRANSACTION, transactional_id):
        return ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "not authorized"
    if acks not in (-1, 0, 1):
        return ErrorCode.INVALID_REQUIRED_ACKS, f"acks is {acks}; it may be -1 (all), 0 or 1"
    if transactional_id is not None:
        return ErrorCode.INVALID_TXN_STATE, "transactions are not supported yet"
    return None


def _refused(
    context: Context,
    request: Request,
    topic: str | bytes,
    index: int,
    records: memoryview | None,
    refusal: tuple[int, str] | None,
) -> ProduceResult:
    if refusal is not None:
        code, message = refusal
        return topic, index, code, -1, -1, -1, message, None
    if records is None and context.ownership.partition(topic, index) is not None:
        return topic, index, ErrorCode.INVALID_RECORD, -1, -1, -1, "no record batch for the partition", None
    code, leader = why_not_served(context, request.listener, topic, index)
    return topic, index, code, -1, -1, -1, None, leader


def _note_refused(caller: Caller, topic: str | bytes, index: int, records: memoryview | None) -> None:
    if records is not None:
        if caller.refused_batches is None:
            caller.refused_batches = RefusedBatches()
        caller.refused_batches.note(topic, index, records)
        caller.repeated_produce = None


def _count_errors(context: Context, results: list[ProduceResult]) -> None:
    cells = context.metrics.cells
    for result in results:
        if result[2]:
            cells[error_cell(result[2])] += 1
