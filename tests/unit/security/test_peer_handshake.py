"""Goal: two workers that know the cluster's secret come to the same keys, and nobody else gets anywhere.

The wire between the two is the test's: it reads, changes, repeats and swaps what is sent.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.security.cluster_secret import ClusterSecret
from kafscale.security.peer_handshake import (
    MAGIC,
    MESSAGE_BYTES_MAX,
    NONCE_BYTES,
    HandshakeReader,
    Initiator,
    PeerAcceptor,
    PeerRefused,
    Session,
)

SECRET = ClusterSecret(["the secret of these tests"])
OTHER = ClusterSecret(["the secret of somebody else"])
WINDOW = 1 << 20

_nonces = itertools.count(1)


def nonce() -> bytes:
    return next(_nonces).to_bytes(NONCE_BYTES, "big")


def initiator(secret: ClusterSecret = SECRET, cluster: str = "c1", node: int = 1, peer: int = 2) -> Initiator:
    return Initiator(secret, cluster, node, peer, nonce(), is_private=False)


def acceptor(secret: ClusterSecret = SECRET, cluster: str = "c1", node: int = 2) -> PeerAcceptor:
    return PeerAcceptor(secret, cluster, node, nonce(), window_bytes=WINDOW, is_private=False)


def body(framed: bytes) -> bytes:
    """A message without magic and length."""
    reader = HandshakeReader(expects_magic=framed.startswith(MAGIC))
    reader.feed(framed)
    message = reader.next()
    assert message is not None and reader.rest() == b""
    return message


def shake(one: Initiator, other: PeerAcceptor) -> tuple[Session, Session]:
    """The whole handshake, undisturbed."""
    challenge = other.challenge(body(one.hello()))
    proof, theirs = other.finish(body(one.prove(body(challenge))))
    return one.finish(body(proof)), theirs


def test_both_sides_come_to_the_same_keys() -> None:
    """One key for each direction, and what the one sends with the other receives with."""
    ours, theirs = shake(initiator(), acceptor())
    assert ours.send_key == theirs.receive_key and ours.receive_key == theirs.send_key
    assert ours.send_key != ours.receive_key
    assert (ours.peer_node, theirs.peer_node) == (2, 1)
    assert ours.window_bytes == WINDOW


def test_no_two_connections_have_the_same_keys() -> None:
    """What was recorded on one connection proves nothing on another."""
    keys = [shake(initiator(), acceptor())[0].send_key for _ in range(3)]
    assert len(set(keys)) == 3


def test_a_secret_that_is_being_changed_is_accepted_both_ways() -> None:
    """The acceptor goes by the key that the initiator names."""
    both = ClusterSecret(["the secret of these tests", "the secret of somebody else"])
    shake(initiator(OTHER), acceptor(both))
    shake(initiator(both), acceptor(SECRET))


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (initiator(OTHER), acceptor(), "secret"),
        (initiator(cluster="c2"), acceptor(), "cluster"),
        (initiator(peer=3), acceptor(), "node"),
        (Initiator(SECRET, "c1", 1, 2, nonce(), is_private=True), acceptor(), "message"),
        (Initiator(SECRET, "c1", 1, 2, b"short", is_private=False), acceptor(), "message"),
    ],
)
def test_who_is_wrong_is_refused_and_told_why(one: Initiator, other: PeerAcceptor, reason: str) -> None:
    """Another secret, cluster, node or kind of connection: a word for a counter on both sides, no key on either."""
    with pytest.raises(PeerRefused) as refused:
        other.challenge(body(one.hello()))
    assert refused.value.reason == reason
    with pytest.raises(PeerRefused) as told:
        one.prove(body(other.refusal(reason)))
    assert told.value.reason == reason


def test_who_only_pretends_to_know_the_secret_fails_at_the_proof() -> None:
    """Naming the right key takes no knowledge; proving does, on both sides."""
    wanted = SECRET.keys[0]

    class Pretender(ClusterSecret):
        def __init__(self) -> None:
            super().__init__(["a guess of many characters"])
            self.keys[0].key_id = wanted.key_id

    one, other = initiator(Pretender()), acceptor()
    challenge = other.challenge(body(one.hello()))
    with pytest.raises(PeerRefused) as refused:
        other.finish(body(one.prove(body(challenge))))
    assert refused.value.reason == "secret"

    one, other = initiator(), acceptor(Pretender())
    challenge = other.challenge(body(one.hello()))
    one.prove(body(challenge))
    with pytest.raises(PeerRefused) as refused:
        one.finish(b"\0" * 32)
    assert refused.value.reason == "secret"


def test_a_recorded_handshake_cannot_be_played_again() -> None:
    """The same hello and the same proof, a second time: the acceptor's fresh bytes make the proof worthless."""
    one, other = initiator(), acceptor()
    hello = body(one.hello())
    proof = body(one.prove(body(other.challenge(hello))))
    other.finish(proof)
    again = acceptor()
    again.challenge(hello)
    with pytest.raises(PeerRefused) as refused:
        again.finish(proof)
    assert refused.value.reason == "secret"


def test_a_proof_cannot_be_reflected() -> None:
    """Who hears the connector's proof can't send it back as the acceptor's."""
    one, other = initiator(), acceptor()
    proof = body(one.prove(body(other.challenge(body(one.hello())))))
    with pytest.raises(PeerRefused):
        one.finish(proof)


@given(which=st.integers(0, 3), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_message_changed_on_the_way_ends_the_handshake(which: int, at: int, bit: int) -> None:
    """Whatever bit of whatever message is turned: no side believes that it speaks with the other."""

    def changed(number: int, message: bytes) -> bytes:
        if number != which:
            return message
        turned = bytearray(message)
        turned[at % len(turned)] ^= 1 << bit
        return bytes(turned)

    one, other = initiator(), acceptor()
    with pytest.raises(PeerRefused):
        challenge = other.challenge(changed(0, body(one.hello())))
        proof, _ = other.finish(changed(2, body(one.prove(changed(1, body(challenge))))))
        one.finish(changed(3, body(proof)))


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_handshake_are_refused_or_waited_for(data: bytes) -> None:
    """Nothing but PeerRefused comes of them, for either side."""
    reader = HandshakeReader(expects_magic=True)
    reader.feed(data)
    try:
        message = reader.next()
    except PeerRefused:
        return
    assert message is None
    for receive in (acceptor().challenge, initiator().prove, initiator().finish, acceptor().finish):
        with pytest.raises(PeerRefused):
            receive(data)


def test_messages_are_cut_from_any_pieces_and_are_small() -> None:
    """Byte by byte, and with the first frame behind the last message; a long one is refused by its length alone."""
    reader = HandshakeReader(expects_magic=True)
    hello = initiator().hello()
    for position in range(len(hello) - 1):
        reader.feed(hello[position : position + 1])
        assert reader.next() is None
    reader.feed(hello[-1:] + b"what follows")
    assert reader.next() == body(hello)
    assert reader.rest() == b"what follows"
    reader = HandshakeReader(expects_magic=False)
    reader.feed((MESSAGE_BYTES_MAX + 1).to_bytes(2, "big"))
    with pytest.raises(PeerRefused):
        reader.next()


def test_a_kafka_client_is_told_apart_by_its_first_bytes() -> None:
    """A Kafka frame's size is no magic, and the magic, taken for a size, is above every limit."""
    reader = HandshakeReader(expects_magic=True)
    reader.feed(b"\x00\x00\x00\x2b")
    with pytest.raises(PeerRefused) as refused:
        reader.next()
    assert refused.value.reason == "magic"
    assert int.from_bytes(MAGIC[:4], "big") > 1 << 30
