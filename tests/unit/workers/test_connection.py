"""Goal: whatever way bytes arrive and answers come about, frames are whole, answers in order, and nothing grows without
bound.
"""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import Coroutine
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.errors import ProtocolError
from kafscale.metrics import BYTES_RECEIVED, BYTES_SENT, CONNECTIONS_CLOSED, CONNECTIONS_OPEN
from tests.unit.workers.doubles import Bench, FakeTransport
from workers.connection import (
    BEGUN_PER_TURN_MAX,
    IN_FLIGHT_MAX,
    SMALL_FRAME_BYTES,
    WAITING_BYTES_MAX,
    WAITING_FRAMES_MAX,
    Connection,
)
from workers.pending import Pending
from workers.slabs import SlabPool

PRODUCE = b"\0\0"
FETCH = b"\0\1"
MIB = 1 << 20


class Recorder:
    """Dispatch that keeps what it was given; the test answers."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.buffers: list[bytearray | memoryview] = []
        self.pending: list[Pending] = []
        self.refuse: bytes | None = None

    def __call__(
        self, connection: Connection, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
    ) -> None:
        frame = bytes(buffer[start:end])
        if self.refuse is not None and frame.startswith(self.refuse):
            raise ProtocolError("not a request")
        self.frames.append(frame)
        self.buffers.append(buffer)
        self.pending.append(pending)


def echo(connection: Connection, buffer: bytearray | memoryview, start: int, end: int, pending: Pending) -> None:
    """Dispatch that answers at once, with the frame itself."""
    pending.answer(framed(bytes(buffer[start:end])))


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


def body_of(api: bytes, number: int, size: int = 20) -> bytes:
    return api + struct.pack(">i", number) + bytes((number % 251,)) * (size - 6)


sizes = st.one_of(
    st.integers(6, 200),
    st.integers(6, 70_000),
    st.sampled_from([SMALL_FRAME_BYTES - 1, SMALL_FRAME_BYTES, SMALL_FRAME_BYTES + 1, 256 * 1024 - 4, 256 * 1024]),
    st.integers(60_000, 400_000),
)
chunks = st.one_of(st.integers(1, 9), st.integers(1, 5000), st.integers(1, 300_000))


@settings(max_examples=120)
@given(st.lists(sizes, min_size=1, max_size=12), st.lists(chunks, min_size=1, max_size=60))
def test_any_chunking_gives_the_same_frames(frame_sizes: list[int], pieces: list[int]) -> None:
    """However a stream is cut into reads, dispatch sees its frames, whole and in order; large ones may be kept."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    frames = [body_of(PRODUCE, number, size) for number, size in enumerate(frame_sizes)]
    stream = b"".join(map(framed, frames))
    position = 0
    while position < len(stream):
        piece = pieces.pop(0) if len(pieces) > 1 else max(pieces[0], 1000)
        transport.send(stream[position : position + piece])
        position += piece
    assert recorder.frames == frames
    assert bench.count(BYTES_RECEIVED) == len(stream)
    for frame, buffer in zip(frames, recorder.buffers, strict=True):
        assert isinstance(buffer, memoryview) == (len(frame) > SMALL_FRAME_BYTES)
        if isinstance(buffer, memoryview):
            assert buffer == frame, "kept bytes must not have been overwritten"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from([PRODUCE, PRODUCE, FETCH]), st.integers(6, 300)), min_size=1, max_size=40),
    st.integers(0, 2**32),
)
def test_answers_leave_in_request_order(requests: list[tuple[bytes, int]], seed: int) -> None:
    """Answered in any order, answers go out in the order of the requests; only Produce requests run side by side."""
    random = Random(seed)
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    frames = [body_of(api, number, size) for number, (api, size) in enumerate(requests)]
    unsent = b"".join(map(framed, frames))
    answered: set[int] = set()
    while len(answered) < len(frames):
        cut = random.randint(0, len(unsent))
        transport.send(unsent[:cut])
        unsent = unsent[cut:]
        open_now = [n for n in range(len(recorder.frames)) if n not in answered]
        apis = {recorder.frames[n][:2] for n in open_now}
        assert apis <= {PRODUCE} or len(open_now) == 1
        if open_now:
            number = random.choice(open_now)
            answered.add(number)
            answer = framed(recorder.frames[number])
            # One buffer, or several, or none at all where the request wants no answer.
            recorder.pending[number].answer([answer[:3], memoryview(answer)[3:]] if number % 2 else answer)
        bench.turn()
    bench.settle()
    assert recorder.frames == frames
    assert transport.written == b"".join(map(framed, frames))
    assert bench.count(BYTES_SENT) == len(transport.written)


def test_a_thousand_pipelined_requests_keep_their_order() -> None:
    """Pipelining deeper than any bound only makes the rest wait."""
    bench = Bench(echo)
    transport = bench.connect()
    frames = [body_of(FETCH if n % 3 else PRODUCE, n, 30) for n in range(5000)]
    transport.send(b"".join(map(framed, frames)))
    while transport.unread:
        bench.turn()
        transport.send()
    bench.settle()
    assert transport.written == b"".join(map(framed, frames))


def test_answers_of_a_turn_are_one_write() -> None:
    """All that is answered in a turn of the loop, or before an explicit flush, leaves in one write per connection."""
    recorder = Recorder()
    bench = Bench(recorder)
    first, second = bench.connect(), bench.connect()
    for transport in (first, second):
        transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(10)))
    for pending in reversed(recorder.pending):
        pending.answer(b"x" * 10)
    assert not first.writes
    bench.connections.flush_dirty()
    bench.turn()
    assert [len(t.writes) for t in (first, second)] == [1, 1]
    assert len(first.written) == 100


def test_large_answers_are_not_joined() -> None:
    """Buffers of a large answer go to the transport as they are."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(framed(body_of(FETCH, 1)))
    parts = [b"head", memoryview(bytearray(b"a" * 100_000)), b"tail"]
    received: list[object] = []
    transport.writelines = received.extend  # type: ignore[assignment, method-assign]
    recorder.pending[0].answer(parts)
    bench.turn()
    assert all(got is sent for got, sent in zip(received, parts, strict=True))


@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1, 100 * MIB + 1])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_hostile_sizes_close_at_once_and_cost_nothing(size: int, chunk: int) -> None:
    """A negative or excessive size closes the connection before any memory is set aside."""
    recorder = Recorder()
    bench = Bench(recorder, slabs=SlabPool(MIB, 256 * MIB))
    transport = bench.connect()
    transport.send(struct.pack(">i", size) + b"x" * 50, chunk)
    assert transport.is_closing
    assert bench.slabs.allocated_bytes == 0
    assert bench.count(CONNECTIONS_CLOSED.at("too_large")) == 1
    assert not recorder.frames


def test_a_size_alone_takes_no_memory() -> None:
    """Two hundred connections that announce 100 MiB each and send little hold little."""
    bench = Bench(Recorder(), slabs=SlabPool(MIB, 256 * MIB))
    for _ in range(200):
        bench.connect().send(struct.pack(">i", 100 * MIB) + b"x" * 1000)
    assert bench.slabs.allocated_bytes == 0


def test_frames_before_a_bad_one_are_handled() -> None:
    """What came before a bad size in the same read still reaches dispatch; nothing after it does."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(framed(body_of(PRODUCE, 1)) + b"\xff\xff\xff\xff" + framed(body_of(PRODUCE, 2)))
    assert len(recorder.frames) == 1
    assert transport.is_closing


def test_what_is_no_request_closes_after_earlier_answers() -> None:
    """An undecodable request closes the connection, but answers before it still go out, and what follows is dropped."""
    recorder = Recorder()
    recorder.refuse = PRODUCE + b"\0\0\0\2"
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in (1, 2, 3)))
    assert len(recorder.frames) == 1
    assert not transport.is_closing
    recorder.pending[0].answer(b"one")
    assert transport.written == b"one"
    assert transport.is_closing
    assert bench.count(CONNECTIONS_CLOSED.at("protocol")) == 1


def test_acks_0_with_an_error_closes_in_order() -> None:
    """A failed request that wants no answer closes the connection, after its forerunners' answers."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in (1, 2, 3)))
    recorder.pending[2].answer(b"three")
    recorder.pending[1].close_connection("error")
    assert not transport.is_closing
    recorder.pending[0].answer(b"one")
    assert transport.written == b"one"
    assert transport.is_closing


def test_no_answer_keeps_the_order_of_the_others() -> None:
    """Requests without an answer (acks=0) leave no trace in the stream."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(4)))
    for number in (3, 1, 2, 0):
        recorder.pending[number].answer(None if number % 2 else b"%d" % number)
    bench.turn()
    assert transport.written == b"02"


def test_an_answer_given_twice_is_a_defect() -> None:
    """It would go to another request's place: stop it where it happens."""
    recorder = Recorder()
    bench = Bench(recorder)
    bench.connect().send(framed(body_of(PRODUCE, 1)))
    recorder.pending[0].answer(b"x")
    with pytest.raises(AssertionError):
        recorder.pending[0].answer(b"x")


def test_unanswered_requests_are_called_off_when_the_client_goes() -> None:
    """Whoever waits for data is told, once, and may answer into the void."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(3)))
    called: list[int] = []
    for number, pending in enumerate(recorder.pending):
        pending.on_close = lambda number=number: called.append(number)
    recorder.pending[1].answer(b"x")
    transport.lose()
    assert called == [0, 2]
    recorder.pending[0].answer(b"y")
    bench.settle()
    assert not transport.writes
    assert bench.count(CONNECTIONS_OPEN) == 0
    assert bench.count(CONNECTIONS_CLOSED.at("client")) == 1


def test_waiting_requests_are_bounded_in_number() -> None:
    """While one request is being handled only so many more are taken in; answers let them in again."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    stream = b"".join(framed(body_of(FETCH, n)) for n in range(3 * WAITING_FRAMES_MAX))
    transport.send(stream, chunk_bytes=24 * 10)
    assert not transport.is_reading
    assert len(recorder.frames) == 1
    assert len(stream) - len(transport.unread) <= 24 * (WAITING_FRAMES_MAX + 11)
    answered = 0
    while answered < 3 * WAITING_FRAMES_MAX:
        recorder.pending[answered].answer(b"x")
        answered += 1
        bench.settle()
        transport.send(chunk_bytes=240)
    assert len(transport.written) == 3 * WAITING_FRAMES_MAX


def test_waiting_requests_are_bounded_in_bytes() -> None:
    """A few large frames are as many as a thousand small ones."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(framed(body_of(FETCH, 1)))
    transport.send(b"".join(framed(body_of(PRODUCE, n, MIB // 4)) for n in range(16)))
    assert not transport.is_reading
    assert len(transport.unread) >= 16 * MIB // 4 - WAITING_BYTES_MAX - MIB // 2
    recorder.pending[0].answer(b"x")
    transport.send()
    assert len(recorder.frames) == 17


def test_what_has_waited_no_longer_counts() -> None:
    """Many times the bound may wait over time, as long as little waits at once; and waiting room is all free again."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    for number in range(40):
        transport.send(framed(body_of(FETCH, number)) + framed(body_of(PRODUCE, number, 60_000)))
        assert transport.is_reading, "one small frame waits"
        for pending in recorder.pending[-2:]:
            if not pending._is_answered:
                pending.answer(b"x")
        recorder.pending[-1].answer(b"x")
        bench.settle()
        assert transport.is_reading
        assert not transport.unread
    assert len(recorder.frames) == 80


def test_a_long_queue_answered_at_once_is_no_deep_recursion() -> None:
    """Requests that waited and are answered within dispatch follow each other in a loop."""
    held: list[Pending] = []

    def dispatch(
        connection: Connection, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
    ) -> None:
        if bytes(buffer[start : start + 2]) == FETCH:
            held.append(pending)
        else:
            pending.answer(b"x")

    bench = Bench(dispatch)
    transport = bench.connect()
    frames = [framed(body_of(FETCH, 0)), *[framed(body_of(PRODUCE, n)) for n in range(WAITING_FRAMES_MAX - 1)]]
    transport.send(b"".join(frames))
    held[0].answer(b"x")
    bench.settle()
    assert len(transport.written) == WAITING_FRAMES_MAX


def test_produce_requests_in_flight_are_bounded() -> None:
    """A producer that never waits is not read beyond a number of requests."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(5 * IN_FLIGHT_MAX)), chunk_bytes=2400)
    assert len(recorder.frames) == IN_FLIGHT_MAX
    assert not transport.is_reading
    for _ in range(100):
        for pending in recorder.pending:
            if not pending._is_answered:
                pending.answer(b"x")
        bench.settle()
        transport.send(chunk_bytes=2400)
    assert len(recorder.frames) == 5 * IN_FLIGHT_MAX == len(transport.written)


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    """While answers pile up unsent no request begins and nothing more is received; then all goes on."""
    bench = Bench(echo)
    transport = bench.connect()
    transport.protocol.pause_writing()
    transport.send(b"".join(framed(body_of(FETCH, n)) for n in range(100)))
    bench.settle()
    assert not transport.writes
    assert not transport.is_reading
    transport.protocol.resume_writing()
    transport.send()
    bench.settle()
    assert len(transport.written) == 100 * 24


def test_frames_received_when_writing_stops_wait() -> None:
    """Frames that came in the same read as the answer that filled the transport are kept, not handled."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(FETCH, n)) for n in range(3)))
    transport.protocol.pause_writing()
    recorder.pending[0].answer(b"x")
    bench.settle()
    assert len(recorder.frames) == 1
    transport.protocol.resume_writing()
    assert len(recorder.frames) == 2


def test_one_pipeline_does_not_hold_up_the_others() -> None:
    """Of one client's queue only so many requests begin in a turn."""
    begun = 0

    def count(connection: Connection, buffer: object, start: int, end: int, pending: Pending) -> None:
        nonlocal begun
        begun += 1
        pending.answer(b"x")

    bench = Bench(count)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(FETCH, n)) for n in range(500)))
    assert begun == BEGUN_PER_TURN_MAX
    bench.turn()
    assert begun <= 2 * BEGUN_PER_TURN_MAX
    bench.settle()
    assert begun == 500


# -- memory ------------------------------------------------------------------------------------------------------------


def test_without_memory_reading_stops_and_goes_on() -> None:
    """A large frame that finds no memory waits with its connection unread; other connections' small ones don't."""
    recorder = Recorder()
    bench = Bench(recorder, slabs=SlabPool(MIB, MIB))
    held = bench.slabs.take(MIB)
    transport, other = bench.connect(), bench.connect()
    frames = [body_of(PRODUCE, n, size) for n, size in enumerate((50, 300_000, 70, 100_000, 90))]
    transport.send(b"".join(map(framed, frames)), chunk_bytes=200_000)
    assert recorder.frames == frames[:1]
    assert not transport.is_reading
    other.send(framed(body_of(PRODUCE, 7)))
    assert len(recorder.frames) == 2
    bench.clock.advance(0.1)
    assert len(recorder.frames) == 2
    del held
    bench.clock.advance(0.1)
    transport.send()
    assert recorder.frames == [frames[0], body_of(PRODUCE, 7), *frames[1:]]
    assert recorder.buffers[2] == frames[1]


def test_memory_goes_to_those_that_waited_longest() -> None:
    """A large frame is not passed over for ever by smaller ones that came later."""
    recorder = Recorder()
    bench = Bench(recorder, slabs=SlabPool(MIB, MIB))
    held = [bench.slabs.take(300_000) for _ in range(3)]
    first, second = bench.connect(), bench.connect()
    first.send(framed(body_of(PRODUCE, 1, 900_000)))
    second.send(framed(body_of(PRODUCE, 2, 800_000)))
    for _ in range(3):
        bench.clock.advance(0.05)
        assert not recorder.frames
    held.clear()
    for _ in range(3):
        bench.clock.advance(0.05)
        for transport in (first, second):
            transport.send()
        recorder.buffers.clear()
    assert [frame[2:6] for frame in recorder.frames] == [b"\0\0\0\1", b"\0\0\0\2"]


@settings(max_examples=60)
@given(st.lists(st.integers(6, 300_000), min_size=1, max_size=10), st.lists(chunks, min_size=1, max_size=20))
def test_frames_survive_any_shortage(frame_sizes: list[int], pieces: list[int]) -> None:
    """With memory for hardly more than a frame, and every frame kept for a while, all frames arrive whole."""
    recorder = Recorder()
    bench = Bench(recorder, slabs=SlabPool(300_000, 300_000))
    transport = bench.connect()
    frames = [body_of(PRODUCE, number, size) for number, size in enumerate(frame_sizes)]
    stream = b"".join(map(framed, frames))
    position = 0
    for _ in range(10_000):
        if position < len(stream):
            piece = pieces.pop(0) if len(pieces) > 1 else max(pieces[0], 5000)
            transport.send(stream[position : position + piece])
            position += piece
        elif not transport.unread and len(recorder.frames) == len(frames):
            break
        if not transport.is_reading:
            recorder.buffers.clear()
            bench.clock.advance(0.02)
        transport.send()
    assert recorder.frames == frames


def test_held_produce_requests_wait_others_do_not() -> None:
    """When too much is not yet durable, producers are not read; other requests and clients go on as ever."""
    recorder = Recorder()
    bench = Bench(recorder)
    producer, consumer = bench.connect(), bench.connect()
    bench.connections.hold_produce()
    producer.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(10)))
    consumer.send(framed(body_of(FETCH, 99)))
    assert recorder.frames == [body_of(FETCH, 99)]
    assert not producer.is_reading
    assert consumer.is_reading
    bench.connections.release_produce()
    producer.send()
    assert len(recorder.frames) == 11


def test_a_hold_during_release_stops_it() -> None:
    """Those that waited longest come first; when the buffer is full again the rest go on waiting."""
    order: list[str] = []

    def dispatch(connection: Connection, buffer: object, start: int, end: int, pending: Pending) -> None:
        order.append(connection.client_host)
        bench.connections.hold_produce()

    bench = Bench(dispatch)
    bench.connections.hold_produce()
    for host in ("a", "b", "c"):
        bench.connect(host).send(framed(body_of(PRODUCE, 1)))
    for expected in (["a"], ["a", "b"], ["a", "b", "c"]):
        bench.connections.release_produce()
        assert order == expected


def test_an_idle_connection_costs_little() -> None:
    """After some requests, of any size and cut anywhere, nothing but the connection's slots remains."""
    bench = Bench(echo)
    transports = [bench.connect() for _ in range(500)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        connections = [bench.connection() for _ in range(500)]
        idle, _ = tracemalloc.get_traced_memory()
        for transport in transports:
            transport.send(framed(body_of(FETCH, 1)) + framed(body_of(FETCH, 2, 3000)), chunk_bytes=1000)
            transport.send(framed(body_of(FETCH, 3)) * 40)
            bench.settle()
            transport.writes.clear()
            transport.unread = bytearray()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (idle - before) / len(connections) < 500
    assert (after - idle) / len(transports) < 200


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_byte_a_second_is_timed_out() -> None:
    """A request that does not arrive within its time closes its connection; quick ones stay."""
    bench = Bench(echo, Settings(frame_header_timeout_ms=5000))
    slow, good = bench.connect(), bench.connect()
    for second in range(20):
        if not slow.is_closing:
            slow.send(b"\0\0\1\0"[second : second + 1] or b"x")
        good.send(framed(body_of(FETCH, second)))
        bench.clock.advance(1)
        bench.settle()
    assert slow.is_closing
    assert bench.count(CONNECTIONS_CLOSED.at("slow_request")) == 1
    assert not good.is_closing
    assert len(good.written) == 20 * 24


def test_a_large_request_gets_the_time_it_needs() -> None:
    """What matters for a large frame is its rate, not the time for a small one."""
    recorder = Recorder()
    bench = Bench(recorder, Settings(frame_header_timeout_ms=5000))
    transport = bench.connect()
    stream = framed(body_of(PRODUCE, 1, 2 * MIB))
    for position in range(0, len(stream), 64 * 1024):
        transport.send(stream[position : position + 64 * 1024])
        bench.clock.advance(1)
    assert len(recorder.frames) == 1


def test_a_stalled_frame_gives_way_when_memory_is_short() -> None:
    """Frames begun and left lying can't keep everyone else out."""
    recorder = Recorder()
    bench = Bench(recorder, slabs=SlabPool(MIB, MIB))
    stalled = bench.connect()
    stalled.send(struct.pack(">i", 900_000) + PRODUCE + b"x" * 100_000)
    bench.clock.advance(10)
    assert not stalled.is_closing, "with memory to spare it has its time"
    good = bench.connect()
    good.send(framed(body_of(PRODUCE, 1, 500_000)))
    assert not recorder.frames
    bench.clock.advance(5)
    assert stalled.is_closing
    good.send()
    assert len(recorder.frames) == 1


def test_idle_connections_are_closed_and_only_they() -> None:
    """A connection without requests for the idle time goes; one that waits for an answer or talks stays."""
    recorder = Recorder()
    bench = Bench(recorder, Settings(connections_idle_ms=60_000))
    idle, waiting, talking = bench.connect(), bench.connect(), bench.connect()
    waiting.send(framed(body_of(FETCH, 1)))
    for second in range(80):
        talking.send(framed(body_of(PRODUCE, second)))
        recorder.pending[-1].answer(b"x")
        bench.clock.advance(1)
        bench.settle()
    assert idle.is_closing
    assert not waiting.is_closing
    assert not talking.is_closing
    assert bench.count(CONNECTIONS_CLOSED.at("idle")) == 1


def test_a_client_that_never_reads_is_closed_in_the_end() -> None:
    """Waiting for an answer is no excuse for not taking those that are there; nor does closing wait for ever."""
    recorder = Recorder()
    bench = Bench(recorder, Settings(connections_idle_ms=60_000))
    transport = bench.connect()
    transport.send(framed(body_of(FETCH, 1)) * 3)
    recorder.pending[0].answer(b"x")
    bench.settle()
    transport.protocol.pause_writing()
    assert transport.protocol.unanswered
    bench.clock.advance(65)
    assert transport.is_closing
    assert not transport.was_aborted
    bench.clock.advance(25)
    assert transport.was_aborted


def test_connections_over_the_limit_are_turned_away() -> None:
    """The limit holds, is counted, and frees up as clients go."""
    bench = Bench(echo, Settings(connections_max=3))
    transports = [bench.connect() for _ in range(5)]
    assert [t.is_closing for t in transports] == [False, False, False, True, True]
    assert bench.count(CONNECTIONS_CLOSED.at("limit")) == 2
    for transport in (transports[0], transports[3], transports[4]):
        transport.lose()
    assert not bench.connect().is_closing


def test_complaints_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand attackers write one line, which says how it goes on."""
    bench = Bench(echo)
    for _ in range(1000):
        bench.connect().send(b"PROXY TCP4 1.2.3.4")
    assert len(caplog.records) == 1
    bench.clock.advance(60)
    bench.connect().send(b"PROXY TCP4 1.2.3.4")
    assert caplog.records[1].held_back == 999  # type: ignore[attr-defined]


def test_drain_answers_what_was_received() -> None:
    """Draining reads nothing more, turns new clients away, and ends when the last answer is written."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(FETCH, n)) for n in range(2)))
    drained = _Driver(bench.connections.drain())
    transport.unread += framed(body_of(FETCH, 9))
    transport.send()
    assert bench.connect().is_closing
    assert not drained.step(bench)
    recorder.pending[0].answer(b"a")
    assert not drained.step(bench)
    recorder.pending[1].answer(b"b")
    assert drained.step(bench)
    assert transport.written == b"ab"
    assert len(recorder.frames) == 2


class _Driver:
    """Runs a coroutine on the manual clock: each step lets its sleep end."""

    def __init__(self, coroutine: Coroutine[None, None, None]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(coroutine)
        self._spin()

    def _spin(self) -> None:
        for _ in range(5):
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def step(self, bench: Bench) -> bool:
        bench.clock.advance(1)
        self._spin()
        if self._task.done():
            self._task.result()
            self._loop.close()
            return True
        return False


def test_ipv4_clients_on_an_ipv6_socket_look_like_themselves() -> None:
    """::ffff:10.0.0.1 and 10.0.0.1 are the same host to every rule."""
    bench = Bench(echo)
    hosts = [FakeTransport(bench.connection(), host).protocol.client_host for host in ("::ffff:10.0.0.1", "::1")]
    assert hosts == ["10.0.0.1", "::1"]


def test_abandoned_connections_say_nothing_more() -> None:
    """A worker that was replaced lets no answer out, not even one that is due."""
    recorder = Recorder()
    bench = Bench(recorder)
    transport = bench.connect()
    transport.send(b"".join(framed(body_of(PRODUCE, n)) for n in range(2)))
    recorder.pending[0].answer(b"a")
    bench.connections.abandon("fenced")
    recorder.pending[1].answer(b"b")
    bench.settle()
    assert transport.was_aborted
    assert not transport.writes
    assert bench.connect().is_closing
