"""Produce requests that differ from the last one of their connection only in correlation id and records.

A producer sends the same API, version, client id, acks, timeout, topic and partition over and over. A connection keeps
these bytes of its last such request, with what they came to mean; a request that begins with the same bytes is appended
without being parsed. It must do exactly what `handlers/produce.py` does, for the plainest of requests: a small frame,
one partition, a batch that is good, new, and stored as it came. Anything else, and every error, it leaves alone.
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
from kafscale.protocol.wire import uvarint
from kafscale.storage.partition import PartitionLog
from workers.connection import Pending
from workers.context import Context, Request
from workers.waiting_produce import Waiting

# Behind the records of the only partition: no tags of the partition, of the topic, of the request.
_TAIL: Final = b"\0\0\0"
_INT32: Final = struct.Struct(">i").unpack_from
_REQUESTS: Final = request_cell(ApiKey.PRODUCE)


class RepeatedProduce:
    """What one connection's last plain Produce request began with, and what that means.

    A frame is: API key and version (4 bytes, `_head`), correlation id (4), `_constant` up to the records' length, the
    length, the records, and `_TAIL` from v9 on.
    """

    __slots__ = (
        "_constant",
        "_constant_end",
        "_context",
        "_generation",
        "_head",
        "_is_flexible",
        "_partition",
        "_rules",
        "_timeout_ms",
        "_topic",
        "_version",
        "cells",
        "encode_answer",
    )

    def __init__(
        self, context: Context, version: int, view: ProduceRequestView, partition: PartitionLog, frame_start: bytes
    ) -> None:
        self._context = context
        self.cells = context.metrics.cells
        self._version = version
        # From correlation id, base offset and log start offset.
        self.encode_answer = encoder_of_one_result(version, view.partitions[0][0], partition.index)
        self._is_flexible = version >= FLEXIBLE_FROM
        self._timeout_ms = view.timeout_ms
        self._topic = view.partitions[0][0]
        self._partition = partition
        self._generation = context.ownership.generation
        # The request that was learnt from was allowed by these.
        self._rules = context.authority.rules
        self._head = frame_start[:4]
        self._constant = frame_start[8:]
        self._constant_end = len(frame_start)

    @classmethod
    def learn(
        cls, context: Context, request: Request, view: ProduceRequestView, buffer: bytearray, start: int, end: int
    ) -> RepeatedProduce | None:
        """From a request that was served, its body at `buffer[start:end]`; None if it is not of the plain kind."""
        topic, index, records = view.partitions[0]
        partition = context.ownership.partition(topic, index)
        if partition is None or records is None or partition.config.log_append_time or view.acks == 0:
            return None
        header = request.header
        version = header.api_version
        head = encode_request_header(APIS[ApiKey.PRODUCE], version, header.correlation_id, header.client_id)
        if buffer[start - len(head) : start] != head:
            return None  # it has tags
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
        if constant_end + length_bytes + len(records) != end:
            return None
        return cls(context, version, view, partition, bytes(buffer[start - len(head) : constant_end]))

    def serve(self, buffer: bytearray, start: int, end: int, pending: Pending, now: float) -> bool:
        """Append the request `buffer[start:end]` if it is like the last; False, and nothing done, if it is not.

        `now`: monotonic seconds.
        """
        position = start + self._constant_end
        if buffer[start + 8 : position] != self._constant or buffer[start : start + 4] != self._head:
            return False
        context = self._context
        partition = self._partition
        if context.ownership.generation != self._generation or context.authority.rules is not self._rules:
            return False
        if end - position < HEADER_BYTES:
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
        batch = buffer[position : position + length]
        now_ms = context.clock.wall_ms()
        config = partition.config
        try:
            header = check_produced(
                memoryview(batch),
                config.max_message_bytes,
                now_ms,
                self._version,
                config.timestamp_before_max_ms,
                config.timestamp_after_max_ms,
            )
            if header.max_timestamp < header.base_timestamp or (
                header.producer_id >= 0 and partition.duplicate_of(header) is not None
            ):
                return False
        except Invalid:
            return False
        flusher = context.flusher
        base_offset, flush = flusher.append(partition, batch, header, now_ms)
        self.cells[_REQUESTS] += 1
        (correlation_id,) = _INT32(buffer, start + 4)
        waiting = _WaitingRepeated(self, pending, correlation_id, base_offset, partition.log_start_offset, now)
        flush.answers.append(waiting.complete)
        if flusher.is_full:
            context.hold_produce()
        return True

    def is_over(self, arrived: float, now: float) -> bool:
        """Whether the time that the client gave a request is over."""
        return now >= arrived + self._timeout_ms / 1000

    def answer_late(self, correlation_id: int, pending: Pending) -> None:
        """Answer a request whose time is over."""
        code = ErrorCode.REQUEST_TIMED_OUT
        self.cells[error_cell(code)] += 1
        result = (self._topic, self._partition.index, code, -1, -1, -1, None, None)
        pending.answer(encode_produce_response(self._version, correlation_id, [result]))


class _WaitingRepeated(Waiting):
    """A request that was served so and is not durable yet."""

    __slots__ = ("_arrived", "_base_offset", "_correlation_id", "_log_start_offset", "_pending", "_repeated")

    def __init__(
        self,
        repeated: RepeatedProduce,
        pending: Pending,
        correlation_id: int,
        base_offset: int,
        log_start_offset: int,
        arrived: float,
    ) -> None:
        self._repeated = repeated
        self._pending: Pending | None = pending
        self._correlation_id = correlation_id
        self._base_offset = base_offset
        self._log_start_offset = log_start_offset
        self._arrived = arrived

    def complete(self, now: float) -> None:
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        repeated = self._repeated
        PRODUCE_LATENCY.observe(repeated.cells, int((now - self._arrived) * 1e6))
        pending.answer_with_others(
            repeated.encode_answer(self._correlation_id, self._base_offset, self._log_start_offset)
        )

    def expire(self, now: float) -> None:
        pending = self._pending
        if pending is not None and self._repeated.is_over(self._arrived, now):
            self._pending = None
            self._repeated.answer_late(self._correlation_id, pending)
