"""Produce requests that differ from an earlier one of their connection only in correlation id and records.

A producer sends the same API, version, client id, acks, timeout and topic over and over, for a few partitions. A
connection keeps these bytes of its last such requests, with what they came to mean; a request that begins with the same
bytes is appended without being parsed. It must do exactly what `handlers/produce.py` does, for the plainest of
requests: one partition, a batch that is good, new, and stored as it came. Anything else, and every error, it leaves
alone.
"""

from __future__ import annotations

import struct
from typing import Final

from kafscale.errors import Invalid
from kafscale.metrics import PRODUCE_LATENCY, error_cell, request_cell
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.batches import HEADER_BYTES, check_produced
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.headers import encode_request_header
from kafscale.protocol.produce import (
    FLEXIBLE_FROM,
    TOPIC_IDS_FROM,
    ProduceRequestView,
    encode_produce_response,
    encoder_of_one_result,
)
from kafscale.protocol.schema import Buffer
from kafscale.protocol.wire import uvarint
from kafscale.storage.partition import PartitionLog
from workers.connection import SMALL_FRAME_BYTES
from workers.context import Context, Request
from workers.pending import Pending
from workers.quotas import Charge
from workers.waiting_produce import Waiting

# Behind the records of the only partition: no tags of the partition, of the topic, of the request.
_TAIL: Final = b"\0\0\0"
_INT32: Final = struct.Struct(">i").unpack_from
_REQUESTS: Final = request_cell(ApiKey.PRODUCE)

# Partitions that a connection's requests are remembered of, and how long what they begin with may be: client ids of
# tens of kilobytes can be sent.
KNOWN_MAX: Final = 64
CONSTANT_BYTES_MAX: Final = 1024


class _Known:
    """What requests that begin with the same bytes mean."""

    __slots__ = (
        "after_max_ms",
        "before_max_ms",
        "cells",
        "constant",
        "encode_answer",
        "generation",
        "limits",
        "max_bytes",
        "partition",
        "rules",
        "timeout_ms",
        "topic",
        "version",
    )

    def __init__(
        self, context: Context, request: Request, view: ProduceRequestView, partition: PartitionLog, constant: bytes
    ) -> None:
        self.cells = context.metrics.cells
        self.version = request.header.api_version
        self.timeout_ms = view.timeout_ms
        self.topic = view.partitions[0][0]
        self.partition = partition
        self.constant = constant
        self.generation = context.ownership.generation
        # The request that was learnt from was allowed by these.
        self.rules = request.access.rules
        # The generation changes with these.
        config = partition.config
        self.max_bytes = config.max_message_bytes
        self.before_max_ms = config.timestamp_before_max_ms
        self.after_max_ms = config.timestamp_after_max_ms
        self.limits = context.quotas.limits_of(request.principal, request.header.client_id)
        # From correlation id, base offset and log start offset.
        self.encode_answer = encoder_of_one_result(self.version, self.topic, partition.index)


class RepeatedProduce:
    """What one connection's last plain Produce requests began with, and what that means.

    A frame is: API key and version (4 bytes, `_head`), correlation id (4), a constant up to the records' length, the
    length, the records, and `_TAIL` from v9 on. The constants are all of one length.
    """

    __slots__ = ("_by_constant", "_constant_end", "_context", "_head", "_is_flexible", "_last", "_unpack_start")

    def __init__(self, context: Context, version: int, head: bytes, constant_end: int, known: _Known) -> None:
        self._context = context
        self._is_flexible = version >= FLEXIBLE_FROM
        self._head = head
        self._constant_end = constant_end
        self._last = known
        self._by_constant = {known.constant: known}
        # Head, correlation id and constant.
        self._unpack_start = struct.Struct(f">4si{constant_end - 8}s").unpack_from

    @classmethod
    def learn(
        cls,
        before: RepeatedProduce | None,
        context: Context,
        request: Request,
        view: ProduceRequestView,
        buffer: Buffer,
        start: int,
        end: int,
    ) -> RepeatedProduce | None:
        """From a request that was served, its body at `buffer[start:end]`, if it is of the plain kind. What was known
        `before` stays known, unless that is of another kind than this."""
        if context.audit is not None and context.audit.records_allowed(ApiKey.PRODUCE):
            return None
        topic, index, records = view.partitions[0]
        partition = context.ownership.partition(topic, index)
        if partition is None or records is None or partition.config.log_append_time or view.acks == 0:
            return before
        header = request.header
        version = header.api_version
        head = encode_request_header(APIS[ApiKey.PRODUCE], version, header.correlation_id, header.client_id)
        if buffer[start - len(head) : start] != head:
            return before  # it has tags
        # Where the records' length must lie in a body in its shortest form, with one partition, without tags, and with
        # nothing behind it. Whatever else there is in the frame moves its end away from that.
        topic_bytes = len(topic.encode()) if isinstance(topic, str) else len(topic)
        if version >= FLEXIBLE_FROM:
            named = topic_bytes if version >= TOPIC_IDS_FROM else topic_bytes + len(uvarint(topic_bytes + 1))
            constant_end = start + 13 + named
            length_bytes = len(uvarint(len(records) + 1)) + len(_TAIL)
        else:
            constant_end = start + 22 + topic_bytes
            length_bytes = 4
        frame_start = bytes(buffer[start - len(head) : constant_end])
        if constant_end + length_bytes + len(records) != end or len(frame_start) > CONSTANT_BYTES_MAX:
            return before
        known = _Known(context, request, view, partition, frame_start[8:])
        if before is not None and before._add(frame_start, known):
            return before
        return cls(context, version, frame_start[:4], len(frame_start), known)

    def _add(self, frame_start: bytes, known: _Known) -> bool:
        """False if the request is of another kind than those that are known."""
        if frame_start[:4] != self._head or len(frame_start) != self._constant_end:
            return False
        if len(self._by_constant) >= KNOWN_MAX:
            self._by_constant.clear()
        self._by_constant[known.constant] = self._last = known
        return True

    def serve(self, buffer: Buffer, start: int, end: int, pending: Pending, now: float) -> bool:
        """Append the request `buffer[start:end]` if it is like one that is known; False, and nothing done, if not.

        `now`: monotonic seconds.
        """
        position = start + self._constant_end
        if end - position < HEADER_BYTES:
            return False
        head, correlation_id, constant = self._unpack_start(buffer, start)
        known = self._last
        if constant != known.constant or head != self._head:
            found = self._by_constant.get(constant)
            if found is None or head != self._head:
                return False
            known = self._last = found
        context = self._context
        if context.ownership.generation != known.generation or context.authority.rules is not known.rules:
            # What is known of other partitions is as old, and holds on to partitions that may be gone.
            pending.caller.repeated_produce = None
            return False
        if self._is_flexible:
            length = buffer[position]
            position += 1
            if length > 127:
                more = buffer[position]
                position += 1
                length += (more - 1) << 7
                if more > 127:
                    length += (buffer[position] - 1) << 14
                    if buffer[position] > 127:
                        return False
                    position += 1
            length -= 1
            if position + length + 3 != end or buffer[end - 3 : end] != _TAIL:
                return False
        else:
            (length,) = _INT32(buffer, position)
            position += 4
            if position + length != end:
                return False
        if length > SMALL_FRAME_BYTES:
            pending.caller.records_at = position - start
        # Of the shared receive buffer a copy; of a large frame a view, which keeps its memory.
        batch: bytearray | memoryview = buffer[position : position + length]  # type: ignore[assignment]
        now_ms = context.clock.wall_ms()
        partition = known.partition
        try:
            header = check_produced(
                memoryview(batch), known.max_bytes, now_ms, known.version, known.before_max_ms, known.after_max_ms
            )
            if header.max_timestamp < header.base_timestamp or (
                header.producer_id >= 0
                and (pending.caller.refused_batches or partition.duplicate_of(header) is not None)
            ):
                return False
        except Invalid:
            return False
        flusher = context.flusher
        base_offset, flush = flusher.append(partition, batch, header, now_ms)
        if known.limits is not None:
            charge = Charge(context.quotas, known.limits, ApiKey.PRODUCE, known.version, end - start + 4, now)
            pending = pending.charged(charge)
            charge.left_to_others()
        answers = flush.answers
        last = answers[-1] if answers else None
        if type(last) is not _WaitingRepeated:
            last = _WaitingRepeated(known.cells)
            answers.append(last)
        last.requests.append((pending, known, correlation_id, base_offset, partition.log_start_offset, now))
        if flusher.is_full:
            context.hold_produce()
        return True


# Where its answer goes, what it means, its correlation id, base offset and log start offset, when it came.
_Request = tuple[Pending, _Known, int, int, int, float]


class _WaitingRepeated(Waiting):
    """Requests of any connections that were served so, one after the other, and are not durable yet."""

    __slots__ = ("_cells", "requests")

    def __init__(self, cells: memoryview[int]) -> None:
        self._cells = cells
        self.requests: list[_Request] = []

    def __call__(self, now: float) -> None:
        requests = self.requests
        self._cells[_REQUESTS] += len(requests)
        PRODUCE_LATENCY.observe_all(self._cells, [int((now - request[5]) * 1e6) for request in requests])
        for pending, known, correlation_id, base_offset, log_start_offset, _ in requests:
            pending.answer_with_others(known.encode_answer(correlation_id, base_offset, log_start_offset))

    def expire(self, now: float) -> None:
        kept = []
        for request in self.requests:
            pending, known, correlation_id, _, _, arrived = request
            if now < arrived + known.timeout_ms / 1000:
                kept.append(request)
                continue
            code = ErrorCode.REQUEST_TIMED_OUT
            self._cells[_REQUESTS] += 1
            self._cells[error_cell(code)] += 1
            result = (known.topic, known.partition.index, code, -1, -1, -1, None, None)
            pending.answer(encode_produce_response(known.version, correlation_id, [result]))
        self.requests = kept
