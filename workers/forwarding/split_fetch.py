"""A Fetch of partitions that several workers lead: each is asked for its own, and one answer laid out of the results.

Owns the place of the answer, and the records that came and were not passed on. As if one worker led all, the answer
comes when min_bytes are there in all, or an error, or the time is over: whoever goes on waiting says what it has found,
and once that is enough all are asked to answer at once. Results come first and records behind them; records are passed
on in the order of the request, as the client takes them, so that a slow client costs no more than each part's window.

max_bytes is divided among the parts, each of which may send one batch that is larger, as an owner may.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from kafscale.errors import ProtocolError
from kafscale.metrics import PASSED_FAILED, PASSED_PARTS
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.fetch import (
    TOPIC_IDS_FROM,
    FetchPartition,
    FetchRequestView,
    FetchResult,
    encode_fetch_response,
)
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.messages import fetch as messages
from kafscale.protocol.schema import Buffer
from workers.caller import Caller
from workers.connections import Dispatch
from workers.forwarding.clients import PassingClient
from workers.forwarding.passing import CLOSING_REASONS
from workers.peers.frames import RESULTS
from workers.peers.outgoing import PassedRequest
from workers.pending import Answer, OrderedPending, Pending

log = logging.getLogger(__name__)

# How much of a part's records may come before its turn: there may be a part for each worker.
PART_WINDOW_BYTES: Final = 128 * 1024
GRANT_BYTES: Final = PART_WINDOW_BYTES // 2

_LENGTH: Final = struct.Struct(">I")
_decoder = msgspec.msgpack.Decoder()


class Records:
    """Records that come from a part, in the answer's layout: `left` bytes of them are still to be passed on."""

    __slots__ = ("left", "part")

    def __init__(self, part: FetchPart, left: int) -> None:
        self.part = part
        self.left = left

    def __len__(self) -> int:
        return self.left


class SplitFetch:
    """One fetch of several workers."""

    def __init__(
        self,
        client: PassingClient,
        dispatch: Dispatch,
        header: RequestHeader,
        view: FetchRequestView,
        pending: OrderedPending,
        max_bytes: int,
    ) -> None:
        self._client = client
        self._dispatch = dispatch
        self._header = header
        self._view = view
        self._pending = pending
        self._max_bytes = min(view.max_bytes, max_bytes)
        self._min_bytes = min(view.min_bytes, self._max_bytes)
        self._parts: list[FetchPart] = []
        self._results: list[FetchResult | None] = [None] * len(view.partitions)
        self._layout: deque[Buffer | Records] = deque()
        self._share = 0
        self._is_hurried = False
        self._has_begun = False
        self._is_over = False

    def ask(self, positions_of: dict[int, list[int]], own: int) -> None:
        """Ask each node for the partitions at these positions of the request."""
        self._pending.on_close = self._abandon
        self._share = max(1, self._max_bytes // len(positions_of))
        self._parts = [FetchPart(self, node, positions) for node, positions in positions_of.items()]
        # This worker's own part last: it may answer at once, and then the others are to know.
        for part in sorted(self._parts, key=lambda part: part.node == own):
            if self._is_over:
                return
            if part.node == own:
                self.ask_here(part)
            else:
                self._ask_there(part)

    def ask_here(self, part: FetchPart) -> None:
        """Have a part served here: by its owner, or by one who knows that the owner is another."""
        frame = memoryview(b"".join(_request_of(self._header, self._view, part.positions, self._share)))
        part.request = None
        part.local = LocalFetch(part, self._client.local)
        try:
            self._dispatch(self._client.local, frame, 0, len(frame), part.local)
        except ProtocolError:
            part.local.close_connection("protocol")
        if self._is_hurried:
            part.hurry()

    def _ask_there(self, part: FetchPart) -> None:
        self._client.cells[PASSED_PARTS] += 1
        channel = self._client.channel(part.node)
        if channel is None:
            part.failed("can't be reached", False)
        else:
            request = _request_of(self._header, self._view, part.positions, self._share)
            part.request = channel.request(request, part, RESULTS, PART_WINDOW_BYTES)
            if self._is_hurried:
                part.hurry()

    # What the parts say

    @property
    def client(self) -> PassingClient:
        return self._client

    def wanted(self, position: int) -> FetchPartition:
        """What the client asked for at this position."""
        return self._view.partitions[position]

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be done."""
        return self._is_over

    @property
    def header(self) -> RequestHeader:
        return self._header

    def found(self) -> None:
        """A part has found more: perhaps it is enough in all."""
        if sum(part.found_bytes for part in self._parts) >= self._min_bytes:
            self._hurry()

    def got(self, part: FetchPart, results: Sequence[FetchResult]) -> None:
        """A part's results. Whatever made it answer, the client hears of it at once."""
        if self._is_over:
            return
        if len(results) != len(part.positions):
            log.error("a part of a fetch has %d results for %d partitions", len(results), len(part.positions))
            self.close("error")
            return
        for position, result in zip(part.positions, results, strict=True):
            self._results[position] = result
        part.has_results = True
        if all(part.has_results for part in self._parts):
            self._lay_out()
        else:
            self._hurry()

    def _hurry(self) -> None:
        if not self._is_hurried:
            self._is_hurried = True
            for part in self._parts:
                if not part.has_results:
                    part.hurry()

    def _lay_out(self) -> None:
        results = cast("list[FetchResult]", self._results)
        header = self._header
        self._has_begun = True
        self._layout.extend(encode_fetch_response(header.api_version, header.correlation_id, 0, 0, results))
        self.pump()

    def pump(self) -> None:
        """Pass on what is there, in order."""
        if not self._has_begun or self._is_over:
            return
        layout, pending = self._layout, self._pending
        while layout:
            item = layout[0]
            if isinstance(item, Records):
                data = item.part.take(item.left)
                if data is None:
                    self._wait_or_grant()
                    return
                pending.answer_part(data)
                item.left -= len(data)
                if item.left:
                    continue
            else:
                pending.answer_part(item)
            layout.popleft()
        self._is_over = True
        pending.on_close = None
        pending.on_writable = None
        pending.answer([])

    def _wait_or_grant(self) -> None:
        """More records are to come: now, or once the client takes what it was sent."""
        if self._client.connection.is_congested:
            self._pending.on_writable = self._grant
        else:
            self._grant()

    def _grant(self) -> None:
        self._pending.on_writable = None
        for part in self._parts:
            part.grant()

    def close(self, reason: str) -> None:
        """Close the client's connection."""
        if not self._is_over:
            self._is_over = True
            self._pending.on_close = None
            self._pending.on_writable = None
            self._pending.close_connection(reason)

    def _abandon(self) -> None:
        self._is_over = True
        self._layout.clear()
        for part in self._parts:
            if part.local is not None and part.local.on_close is not None:
                part.local.on_close()


class FetchPart:
    """What one worker serves of a fetch. For another worker, the asker (see `workers.peers.outgoing.Asker`)."""

    __slots__ = (
        "_data",
        "_head",
        "_owed",
        "_split",
        "found_bytes",
        "has_results",
        "local",
        "node",
        "positions",
        "request",
    )

    def __init__(self, split: SplitFetch, node: int, positions: list[int]) -> None:
        self._split = split
        self.node = node
        self.positions = positions
        self.request: PassedRequest | None = None
        self.local: LocalFetch | None = None
        self.found_bytes = 0
        self.has_results = False
        self._head = bytearray()
        self._data: deque[memoryview] = deque()
        self._owed = 0

    def hurry(self) -> None:
        if self.request is not None:
            self.request.hurry()
        elif self.local is not None and self.local.on_hurry is not None:
            self.local.on_hurry()

    def take(self, wanted: int) -> memoryview | None:
        """Up to so many bytes of records; None while none are there."""
        if not self._data:
            return None
        data = self._data.popleft()
        if len(data) > wanted:
            self._data.appendleft(data[wanted:])
            data = data[:wanted]
        self._owed += len(data)
        return data

    def grant(self) -> None:
        """Have as many more bytes sent as were passed on."""
        if self.request is not None and self._owed >= GRANT_BYTES:
            self.request.grant(self._owed)
            self._owed = 0

    # The asker's side

    def held(self) -> None:
        self._split.client.held()

    def sent(self) -> None:
        self._split.client.sent()

    def answered(self, data: bytes, is_last: bool, flags: int) -> None:
        if self.has_results:
            if data:
                self._data.append(memoryview(data))
            self._split.pump()
            return
        self._head += data
        if not flags & RESULTS:
            if is_last:
                self._plain(bytes(self._head))
            elif self.request is not None:
                self.request.grant(len(data))
            return
        told_bytes = _LENGTH.unpack_from(self._head)[0] if len(self._head) >= _LENGTH.size else 1 << 32
        records_at = _LENGTH.size + told_bytes
        if len(self._head) < records_at:
            if self.request is not None:
                self.request.grant(len(data))
            return
        # What told the results is paid back at once; records are when they are passed on.
        self._owed += records_at - (len(self._head) - len(data))
        told = _decoder.decode(memoryview(self._head)[_LENGTH.size : records_at])
        rest = memoryview(bytes(self._head[records_at:]))
        self._head = bytearray()
        if rest:
            self._data.append(rest)
        self._split.got(self, [self._result(position, *fields) for position, fields in zip(self.positions, told)])  # noqa: B905

    def _result(
        self,
        position: int,
        error: int,
        high_watermark: int,
        stable: int,
        start: int,
        leader: Sequence[int] | None,
        diverging: Sequence[int] | None,
        replica: int,
        length: int,
    ) -> FetchResult:
        """A result as its worker told it, its records being on their way."""
        topic, index, *_ = self._split.wanted(position)
        records: Any = (Records(self, length),) if length else ()
        return (
            topic,
            index,
            error,
            high_watermark,
            stable,
            start,
            None if leader is None else (leader[0], leader[1]),
            None if diverging is None else (diverging[0], diverging[1]),
            replica,
            records,
            length,
        )

    def _plain(self, raw: bytes) -> None:
        """An answer as for a client: there was something that stood in the way of all results."""
        header = self._split.header
        try:
            _, answer = decode_response(APIS[ApiKey.FETCH], header.api_version, raw, 4, len(raw))
        except ProtocolError:
            log.exception("a part of a fetch can't be read")
            self._split.close("error")
            return
        self._fail_all(answer.error_code or ErrorCode.UNKNOWN_SERVER_ERROR)

    def unanswered(self) -> None:
        self._split.close("error")

    def found(self, byte_count: int) -> None:
        self.found_bytes = byte_count
        self._split.found()

    def failed(self, reason: str, was_sent: bool) -> None:
        split = self._split
        if reason in CLOSING_REASONS:
            split.close(reason)
            return
        split.client.cells[PASSED_FAILED.at("lost" if was_sent else "unsent")] += 1
        if self.has_results:
            # Some of the answer is out, and the rest will never come.
            split.close("peer")
        elif not was_sent and not split.is_over:
            split.ask_here(self)
        else:
            self._fail_all(ErrorCode.NOT_LEADER_OR_FOLLOWER)

    def _fail_all(self, code: int) -> None:
        self._split.got(self, [_failed(self._split.wanted(position), code) for position in self.positions])


class LocalFetch(Pending):
    """The place of the answer to the part that is served here."""

    __slots__ = ("_caller", "_part")

    def __init__(self, part: FetchPart, caller: Caller) -> None:
        super().__init__()
        self._part = part
        self._caller = caller

    @property
    def caller(self) -> Caller:
        return self._caller

    @property
    def wants_results(self) -> bool:
        return True

    def give_results(self, results: Sequence[FetchResult]) -> None:
        self._part._split.got(self._part, results)

    def answer(self, buffers: Answer | None) -> None:
        joined = b"".join(buffers) if isinstance(buffers, list) else bytes(buffers or b"")
        self._part._plain(joined)

    def report(self, found: int) -> None:
        self._part.found(found)

    def close_connection(self, reason: str) -> None:
        self._part.failed(reason, True)


def _request_of(header: RequestHeader, view: FetchRequestView, positions: list[int], max_bytes: int) -> list[Buffer]:
    """A request for some partitions of another, without its size."""
    by_id = header.api_version >= TOPIC_IDS_FROM
    topics: list[messages.FetchTopic] = []
    partitions: list[messages.FetchPartition] = []
    before: str | bytes | None = None
    for position in positions:
        topic, index, leader_epoch, offset, last_epoch, log_start, partition_max_bytes = view.partitions[position]
        if topic != before:
            before, partitions = topic, []
            named: dict[str, Any] = {"topic_id": topic} if by_id else {"topic": topic}
            topics.append(messages.FetchTopic(partitions=partitions, **named))
        partitions.append(
            messages.FetchPartition(
                partition=index,
                current_leader_epoch=leader_epoch,
                fetch_offset=offset,
                last_fetched_epoch=last_epoch,
                log_start_offset=log_start,
                partition_max_bytes=partition_max_bytes,
            )
        )
    request = messages.FetchRequest(
        replica_id=view.replica_id,
        replica_state=messages.ReplicaState(replica_id=view.replica_id),
        max_wait_ms=view.max_wait_ms,
        min_bytes=view.min_bytes,
        max_bytes=max_bytes,
        isolation_level=view.isolation_level,
        topics=topics,
        rack_id=view.rack_id,
    )
    encoded = encode_request(APIS[ApiKey.FETCH], header.api_version, header.correlation_id, header.client_id, request)
    encoded[0] = memoryview(encoded[0])[4:]
    return encoded


def _failed(wanted: FetchPartition, code: int) -> FetchResult:
    return wanted[0], wanted[1], code, -1, -1, -1, None, None, -1, (), 0
