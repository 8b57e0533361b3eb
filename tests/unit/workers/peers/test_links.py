"""Goal: nobody without the cluster's secret can have a request served as somebody else's, on any kind of port.

The test is the network: it connects to workers' ports itself, and changes, repeats and cuts what workers send each
other. Whatever it does costs the link and no more: no record is stored for it, and no worker stumbles.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafscale.metrics import CONNECTIONS_CLOSED, PEER_LINKS, PEER_REFUSED
from kafscale.protocol.api import APIS, ApiKey, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.security.cluster_secret import ClusterSecret
from kafscale.security.peer_handshake import MAGIC, NONCE_BYTES, HandshakeReader, Initiator, PeerAcceptor, Session
from tests.unit.workers.forwarding.many_workers import SECRET, SLOTS, Cluster, settings_of
from tests.unit.workers.peers.wires import WireTransport, join
from tests.unit.workers.whole_worker import batch_of, produce_request, run
from workers.peers.frames import HEADER, REQUEST_HEAD, Identity, Kind, Sealer, encode_identity
from workers.peers.link import SILENT_SECONDS
from workers.peers.peers import STRANGERS_MAX

# The node of the other broker: between the two every frame is proven.
OTHER = 100
PARTITION_OF_OTHER = 2


class Stranger(asyncio.BufferedProtocol):
    """Whatever the test wants to be: it keeps what it is sent."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_closed = False
        self.transport: Any = None
        self._buffer = bytearray(1 << 16)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self._buffer[:nbytes]

    def eof_received(self) -> bool:
        return False


def stranger_at(cluster: Cluster, node: int, *, is_private: bool = False) -> Stranger:
    """Connected to a worker's port for other workers."""
    peers = cluster.workers[node].worker.peers
    assert peers is not None
    stranger = Stranger()
    join(stranger, peers.accept(is_private=is_private))
    return stranger


async def handshake(stranger: Stranger, secret: str, node: int, *, cluster_id: str = "c1") -> Session:
    """Prove knowledge of the secret as node 0 would."""
    one = Initiator(ClusterSecret([secret]), cluster_id, 0, node, b"\x07" * NONCE_BYTES, is_private=False)
    reader = HandshakeReader(expects_magic=False)

    async def answer() -> bytes:
        while True:
            reader.feed(bytes(stranger.received))
            stranger.received.clear()
            message = reader.next()
            if message is not None:
                return message
            assert not stranger.is_closed, "refused"
            await asyncio.sleep(0.01)

    stranger.transport.write(one.hello())
    stranger.transport.write(one.prove(await answer()))
    return one.finish(await answer())


def request_frames(sealer: Sealer, principal: str) -> bytes:
    """A Produce on somebody's behalf."""
    frame = b"".join(
        encode_request(APIS[ApiKey.PRODUCE], 9, 1, "x", produce_request(("t", PARTITION_OF_OTHER, batch_of())))
    )
    opened = sealer.seal(Kind.OPEN, 1, 0, [encode_identity(Identity(principal, "10.6.6.6", "clients"))])
    asked = sealer.seal(Kind.REQUEST, 1, 1, [REQUEST_HEAD.pack(0, 1 << 20), frame[4:]])
    return b"".join([*opened, *asked])


async def begun(**changes: Any) -> Cluster:
    cluster = await Cluster(**changes).start()
    cluster.create("t", SLOTS, 6)
    return cluster


def stored(cluster: Cluster) -> int:
    return cluster.workers[OTHER].partition("t", PARTITION_OF_OTHER).next_offset


def refusals(cluster: Cluster, node: int, reason: str) -> int:
    return cluster.workers[node].metrics.cells[PEER_REFUSED.at(reason)]


def test_who_knows_the_secret_is_served() -> None:
    """The tools of this file do what a worker does; else the refusals below would prove nothing."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        session = await handshake(stranger, SECRET, OTHER)
        stranger.transport.write(request_frames(Sealer(session.send_key), "User:alice"))
        await asyncio.sleep(1)
        assert stored(cluster) == 1 and not stranger.is_closed
        cluster.stop()

    run(main())


@pytest.mark.parametrize(
    ("secret", "cluster_id", "node", "reason"),
    [
        ("another secret and just as long", "c1", OTHER, "secret"),
        (SECRET, "c2", OTHER, "cluster"),
        (SECRET, "c1", 1, "node"),
    ],
)
def test_who_does_not_belong_is_refused(
    secret: str, cluster_id: str, node: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong secret, cluster or node: closed, counted, and said in a line that names neither secret."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        one = Initiator(ClusterSecret([secret]), cluster_id, 0, node, b"\x07" * NONCE_BYTES, is_private=False)
        stranger.transport.write(one.hello())
        await asyncio.sleep(1)
        assert stranger.is_closed
        assert refusals(cluster, OTHER, reason) == 1
        cluster.stop()

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "no link to another worker" in caplog.text
    logged = str([vars(record) for record in caplog.records])
    assert SECRET not in logged and secret not in logged


def test_brokers_of_different_secrets_are_strangers_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """A secret that was set wrong on one broker: its clients get errors to retry, its own partitions are served, both
    brokers count and log why, and the workers live."""

    async def main() -> None:
        wrong = settings_of(cluster_secret="another secret and just as long")
        cluster = await begun(settings_by_node={OTHER: wrong})
        answer = await cluster.call(ApiKey.PRODUCE, 9, produce_request(*(("t", i, batch_of()) for i in range(3))))
        codes = [p.error_code for p in answer.responses[0].partition_responses]
        assert codes == [0, 0, ErrorCode.NOT_LEADER_OR_FOLLOWER]
        assert refusals(cluster, 0, "secret") >= 1 and refusals(cluster, OTHER, "secret") >= 1
        await cluster.workers[OTHER].produce("t", batch_of(), index=PARTITION_OF_OTHER)
        assert not any(worker.stopped for worker in cluster.workers.values())
        cluster.stop()

    with caplog.at_level(logging.WARNING):
        run(main())
    reasons = [getattr(record, "why", "") for record in caplog.records]
    assert any("has another cluster secret" in reason for reason in reasons), reasons


def test_frames_without_a_handshake_are_nothing() -> None:
    """Frames sent straight away, or instead of a proof, or after another's proof was heard."""

    async def main() -> None:
        cluster = await begun()
        for head in (b"", MAGIC, MAGIC + b"\x00\x20" + b"\x00" * 32):
            stranger = stranger_at(cluster, OTHER)
            stranger.transport.write(head + request_frames(Sealer(None), "User:admin"))
            await asyncio.sleep(5)
            assert stranger.is_closed
        assert stored(cluster) == 0
        cluster.stop()

    run(main())


@pytest.mark.parametrize("is_private", [False, True])
def test_a_kafka_client_at_a_port_for_workers_is_refused(is_private: bool) -> None:
    """By its first bytes, without an answer; and counted."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER, is_private=is_private)
        request = produce_request(("t", PARTITION_OF_OTHER, batch_of()))
        stranger.transport.write(b"".join(encode_request(APIS[ApiKey.PRODUCE], 9, 1, "x", request)))
        await asyncio.sleep(1)
        assert stranger.is_closed and not stranger.received
        assert refusals(cluster, OTHER, "magic") == 1 and stored(cluster) == 0
        cluster.stop()

    run(main())


def test_a_worker_s_greeting_at_a_port_for_clients_is_refused() -> None:
    """Its first bytes are too large a size for any frame; nothing is reserved for it."""

    async def main() -> None:
        cluster = await begun()
        client = cluster.connect()
        one = Initiator(ClusterSecret([SECRET]), "c1", 100, 0, b"\x07" * NONCE_BYTES, is_private=False)
        client.send(one.hello() + request_frames(Sealer(None), "User:admin"))
        assert await client.frame() is None
        assert cluster.front.metrics.cells[CONNECTIONS_CLOSED.at("too_large")] == 1
        cluster.stop()

    run(main())


def test_a_private_link_is_not_had_from_outside() -> None:
    """Whoever comes over the network can't ask for frames without proof by calling its link private."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        one = Initiator(ClusterSecret([SECRET]), "c1", 0, OTHER, b"\x07" * NONCE_BYTES, is_private=True)
        stranger.transport.write(one.hello())
        await asyncio.sleep(1)
        assert stranger.is_closed and refusals(cluster, OTHER, "message") == 1
        cluster.stop()

    run(main())


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 100_000), bit=st.integers(0, 7))
def test_a_frame_changed_on_its_way_ends_the_link(at: int, bit: int) -> None:
    """Whatever bit of an established link's bytes is turned, in either direction: nothing is made of it."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER)
        changed = 0

        def turn(piece: bytes) -> bytes:
            nonlocal changed
            changed += 1
            turned = bytearray(piece)
            turned[at % len(turned)] ^= 1 << bit
            return bytes(turned)

        ours, theirs = cluster.wires[0, OTHER]
        (theirs if at % 2 else ours).tamper = turn
        answer = await cluster.call(ApiKey.PRODUCE, 9, produce_request(("t", PARTITION_OF_OTHER, batch_of(b"y"))))
        (result,) = answer.responses[0].partition_responses
        # It may have turned the length, and the rest of the frame be waited for: then the silence ends the link.
        assert result.error_code == ErrorCode.REQUEST_TIMED_OUT
        assert changed >= 1 and ours.is_closing and theirs.is_closing
        ours.tamper = theirs.tamper = None
        await cluster.front.produce("t", batch_of(b"z"), index=PARTITION_OF_OTHER)
        assert stored(cluster) == (2 if at % 2 else 3)
        cluster.stop()

    run(main())


def replayed(wire: WireTransport, data: bytes) -> None:
    """Have these bytes arrive once more."""
    wire.unread += data
    wire.arrive_soon()


def test_what_was_recorded_is_worth_nothing() -> None:
    """A request that is sent again on the same link, on another, or with the whole of its connection."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER)
        _, theirs = cluster.wires[0, OTHER]
        whole = bytes(theirs.received)
        theirs.received.clear()
        await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER)
        request = bytes(theirs.received)
        assert HEADER.unpack_from(request)[1] in (Kind.OPEN, Kind.REQUEST) and stored(cluster) == 2
        # Again, where it came from.
        replayed(theirs, request)
        await asyncio.sleep(1)
        assert theirs.is_closing and refusals(cluster, OTHER, "forged") == 1
        # On a new link between the same two.
        await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER)
        _, theirs = cluster.wires[0, OTHER]
        replayed(theirs, request)
        await asyncio.sleep(1)
        assert refusals(cluster, OTHER, "forged") == 2
        # The whole connection, from its greeting on.
        stranger = stranger_at(cluster, OTHER)
        stranger.transport.write(whole + request)
        await asyncio.sleep(5)
        assert stranger.is_closed and refusals(cluster, OTHER, "secret") == 1
        assert stored(cluster) == 3
        cluster.stop()

    run(main())


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400), has_magic=st.booleans())
def test_rubbish_costs_a_connection(data: bytes, has_magic: bool) -> None:
    """Any bytes at a port for workers: closed sooner or later, and the worker serves on."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        stranger.transport.write((MAGIC if has_magic else b"") + data + b"\0")
        await asyncio.sleep(6)
        assert stranger.is_closed
        assert await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER) == [0]
        cluster.stop()

    run(main())


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    kind=st.one_of(st.sampled_from(list(Kind)), st.integers(0, 255)),
    first=st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    second=st.sampled_from([0, 1, 0xFFFFFFFF]),
    body=st.binary(max_size=100),
)
def test_nonsense_from_who_knows_the_secret_costs_the_link(kind: int, first: int, second: int, body: bytes) -> None:
    """A worker gone mad, or of another version: its frames are refused or ignored, and its neighbours live."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        session = await handshake(stranger, SECRET, OTHER)
        sealer = Sealer(session.send_key)
        stranger.transport.write(request_frames(sealer, "User:alice"))
        stranger.transport.write(b"".join(sealer.seal(kind, first, second, [body])))
        await asyncio.sleep(1)
        assert await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER) == [1]
        assert not cluster.workers[OTHER].stopped
        cluster.stop()

    run(main())


def test_strangers_that_say_nothing_are_few_and_do_not_stay() -> None:
    """Many open connections at a worker's port: their number is bounded, time ends them, and a worker gets through."""

    async def main() -> None:
        cluster = await begun()
        strangers = [stranger_at(cluster, OTHER) for _ in range(STRANGERS_MAX + 20)]
        await asyncio.sleep(0.5)
        assert sum(not stranger.is_closed for stranger in strangers) <= STRANGERS_MAX
        assert refusals(cluster, OTHER, "limit") >= 20
        assert await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER) == [0]
        await asyncio.sleep(6)
        assert all(stranger.is_closed for stranger in strangers)
        cluster.stop()

    run(main())


def test_a_frame_that_is_too_large_is_refused_by_its_length() -> None:
    """Nothing is reserved for what can't be a request."""

    async def main() -> None:
        cluster = await begun()
        stranger = stranger_at(cluster, OTHER)
        await handshake(stranger, SECRET, OTHER)
        stranger.transport.write(HEADER.pack(0xFFFFFFFF, Kind.REQUEST, 1, 1))
        await asyncio.sleep(1)
        assert stranger.is_closed and refusals(cluster, OTHER, "forged") == 1
        cluster.stop()

    run(main())


def test_a_peer_that_falls_silent_is_given_up() -> None:
    """A machine that is gone without a word: its requests are answered after a few seconds, not after TCP's minutes.
    One that has nothing to say is asked and stays."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=PARTITION_OF_OTHER)
        await asyncio.sleep(10 * SILENT_SECONDS)
        ours, theirs = cluster.wires[0, OTHER]
        assert not ours.is_closing
        ours.hold()
        theirs.hold()
        began = cluster.front.clock.monotonic()
        answer = await cluster.call(ApiKey.PRODUCE, 9, produce_request(("t", PARTITION_OF_OTHER, batch_of())))
        assert answer.responses[0].partition_responses[0].error_code == ErrorCode.REQUEST_TIMED_OUT
        assert cluster.front.clock.monotonic() - began < SILENT_SECONDS + 3
        cluster.stop()

    run(main())


def test_links_are_few_and_counted() -> None:
    """However many clients: one link for each direction between two workers, shown in a gauge."""

    async def main() -> None:
        cluster = await begun()
        for _ in range(50):
            client = cluster.connect()
            for index in range(6):
                await cluster.front.produce("t", batch_of(), index=index, client=client)
        assert sorted(cluster.dials) == [(0, 1), (0, 100)]
        assert cluster.front.metrics.cells[PEER_LINKS] == 2
        assert [cluster.workers[node].metrics.cells[PEER_LINKS] for node in (1, 100)] == [1, 1]
        cluster.stop()

    run(main())


def test_siblings_need_no_proof_for_each_frame() -> None:
    """Between workers of one broker nobody can listen in; who they are is proven once."""

    async def main() -> None:
        cluster = await begun()
        for index in (1, 2):
            await cluster.front.produce("t", batch_of(), index=index)
        assert cluster.wires[0, 1][1].received.startswith(MAGIC)
        sealed, plain = len(cluster.wires[0, OTHER][1].received), len(cluster.wires[0, 1][1].received)
        assert sealed > plain
        cluster.stop()

    run(main())


def test_large_requests_come_whole_through_small_pieces() -> None:
    """Frames far larger than what is read at once, proven as a whole, one behind the other."""

    async def main() -> None:
        cluster = await begun(piece_bytes=1000)
        for number in range(3):
            bases = await cluster.front.produce("t", batch_of(b"x" * 400_000), batch_of(b"y"), index=PARTITION_OF_OTHER)
            assert bases == [2 * number, 2 * number + 1]
        cluster.stop()

    run(main())


def test_an_acceptor_that_is_none_is_not_believed() -> None:
    """A connection that ends up at somebody who doesn't know the secret: nothing is sent to it but the greeting."""

    async def main() -> None:
        cluster = await begun()
        asked: list[Stranger] = []

        async def divert(node: Any, link: Any) -> None:
            stranger = Stranger()
            asked.append(stranger)
            join(link, stranger)
            acceptor = PeerAcceptor(
                ClusterSecret([SECRET]), "c1", OTHER, b"\x01" * NONCE_BYTES, window_bytes=1 << 20, is_private=False
            )
            await asyncio.sleep(0.1)
            greeting = bytes(stranger.received)
            stranger.transport.write(acceptor.challenge(greeting[len(MAGIC) + 2 :]))
            await asyncio.sleep(0.1)
            # It has heard the proof, and can't make its own.
            stranger.transport.write(b"\x00\x20" + bytes(32))

        peers = cluster.front.worker.peers
        assert peers is not None
        peers._dial = divert
        answer = await cluster.call(ApiKey.PRODUCE, 9, produce_request(("t", PARTITION_OF_OTHER, batch_of(b"secret"))))
        assert answer.responses[0].partition_responses[0].error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert b"secret" not in asked[0].received and refusals(cluster, 0, "secret") == 1
        cluster.stop()

    run(main())
