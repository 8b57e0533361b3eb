"""The links of a worker: to other workers, made when they are first needed, and from others; and what all links share.

One link for each direction between two workers. Workers of one broker meet at sockets that nobody else can listen in
on, those of different brokers over TCP, where every frame is proven. It knows who is where (from the cluster's view),
not what is asked. It fails softly: a worker that can't be reached, or is not who it should be, is said so to whoever
asks, at once for a moment after a failure, and is tried again with the next request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from kafscale.clock import Clock, Timer
from kafscale.control import NodeAddress
from kafscale.coordination.assignment import broker_of
from kafscale.logs import RateLimited
from kafscale.metrics import PASSED_SERVED, PEER_LINKS, PEER_REFUSED, MetricsBlock
from kafscale.security.cluster_secret import ClusterSecret
from kafscale.security.peer_handshake import NONCE_BYTES, Initiator, PeerAcceptor, PeerRefused
from workers.connections import Connections, Dispatch, Holdable
from workers.context import ClusterView
from workers.listener import Listener
from workers.peers.incoming import IncomingLink
from workers.peers.link import Link
from workers.peers.outgoing import OutgoingLink
from workers.slabs import SlabPool

log = logging.getLogger(__name__)

# Connect the link to this node. Raises OSError.
Dial = Callable[[NodeAddress, OutgoingLink], Awaitable[None]]

RECEIVE_BUFFER_BYTES: Final = 256 * 1024
CONNECT_SECONDS: Final = 3.0
# After a failure whoever asks is told so at once for this long.
RETRY_SECONDS: Final = 0.2
TICK_SECONDS: Final = 1.0
DRAIN_POLL_SECONDS: Final = 0.005
COMPLAINT_INTERVAL_SECONDS: Final = 10.0
# Connections of others that have not proven who they are.
STRANGERS_MAX: Final = 64
# What each other worker may send that is not begun here: together a part of what may be received and not durable.
WINDOW_BYTES_MIN: Final = 1 << 20
WINDOW_SHARE: Final = 2


async def no_way(node: NodeAddress, link: OutgoingLink) -> None:
    """For a worker that passes nothing on."""
    raise OSError(f"there is no way to node {node.node_id}")


class Peers:
    """`dispatch` serves what others pass on, for clients of `listeners`. `start` before the first link."""

    def __init__(
        self,
        clock: Clock,
        cluster: ClusterView,
        metrics: MetricsBlock,
        slabs: SlabPool,
        connections: Connections,
        dispatch: Dispatch,
        listeners: Mapping[str, Listener],
        secret: ClusterSecret,
        produce_buffer_bytes: int,
        dial: Dial = no_way,
        fresh_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.clock = clock
        self.cells = metrics.cells
        self.slabs = slabs
        self.dispatch = dispatch
        self.now = clock.monotonic()
        self.receive_buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self.receive_view = memoryview(self.receive_buffer)
        # A request with its header, and what stands before it.
        self.request_bytes_max = connections.frame_bytes_max + 64
        self._cluster = cluster
        self._connections = connections
        self._listeners = listeners
        self._secret = secret
        self._produce_buffer_bytes = produce_buffer_bytes
        self._dial = dial
        self._fresh_bytes = fresh_bytes
        self._call_soon: Callable[[Callable[[], None]], object] | None = None
        self._timer: Timer | None = None
        self._is_draining = False
        self._outgoing: dict[int, OutgoingLink] = {}
        self._not_before: dict[int, float] = {}
        self._all: dict[Link, None] = {}
        self._up = 0
        self._dirty: list[Link] = []
        self._is_flush_due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)

    def start(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Begin to watch over the links. `call_soon` is that of the loop which serves them."""
        self._call_soon = call_soon
        self._timer = self.clock.call_later(TICK_SECONDS, self._tick)

    # Links to others

    def link(self, node_id: int) -> OutgoingLink | None:
        """The link to a node, perhaps not there yet; None if none can be had at the moment."""
        link = self._outgoing.get(node_id)
        if link is not None:
            return link
        node = self._cluster.nodes.get(node_id)
        is_sibling = broker_of(node_id) == broker_of(self._cluster.node_id)
        if node is None or self._is_draining or not (node.peer or is_sibling):
            return None
        if self.clock.monotonic() < self._not_before.get(node_id, 0.0):
            return None
        initiator = Initiator(
            self._secret,
            self._cluster.state.cluster_id,
            self._cluster.node_id,
            node_id,
            self._fresh_bytes(NONCE_BYTES),
            is_private=is_sibling,
        )
        link = self._outgoing[node_id] = OutgoingLink(self, initiator, node_id)
        task = asyncio.get_running_loop().create_task(self._connect(node, link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link

    async def _connect(self, node: NodeAddress, link: OutgoingLink) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._dial(node, link)
        except (OSError, TimeoutError) as error:
            self.cells[PEER_REFUSED.at("unreachable")] += 1
            self._complaints.log(
                log,
                logging.WARNING,
                "another worker can't be reached",
                key=("unreachable", node.node_id),
                node=node.node_id,
                address=node.peer or "this broker's",
                cause=str(error) or "no answer",
            )
            link.close("can't be reached")

    def retire(self, link: OutgoingLink) -> None:
        """It takes no more requests; the next are for a new one."""
        if self._outgoing.get(link.node_id) is link:
            del self._outgoing[link.node_id]
            if link.peer_node < 0:
                self._not_before[link.node_id] = self.clock.monotonic() + RETRY_SECONDS

    # Links from others

    def accept(self, *, is_private: bool) -> IncomingLink:
        """The protocol of a connection that another worker has made; `is_private`: at a socket of this broker's own."""
        others = max(1, len(self._cluster.nodes) - 1)
        acceptor = PeerAcceptor(
            self._secret,
            self._cluster.state.cluster_id,
            self._cluster.node_id,
            self._fresh_bytes(NONCE_BYTES),
            window_bytes=max(WINDOW_BYTES_MIN, self._produce_buffer_bytes // (WINDOW_SHARE * others)),
            is_private=is_private,
        )
        return IncomingLink(self, acceptor)

    def listener(self, name: str) -> Listener | None:
        """The listener that another worker says its client came to."""
        return self._listeners.get(name)

    # What links share

    def add(self, link: Link) -> None:
        self._all[link] = None
        if self._is_draining:
            link.abort()
        elif len(self._all) - self._up > STRANGERS_MAX:
            # The one that has had the most time: who knows the secret needs a few milliseconds.
            self.cells[PEER_REFUSED.at("limit")] += 1
            next(link for link in self._incoming() if link.peer_node < 0).abort()

    def remove(self, link: Link) -> None:
        if link in self._all:
            del self._all[link]
            if link.peer_node >= 0:
                self._up -= 1
                self.cells[PEER_LINKS] = self._up

    def established(self, link: Link) -> None:
        self._up += 1
        self.cells[PEER_LINKS] = self._up

    def refused(self, link: Link, refused: PeerRefused) -> None:
        """One of the two sides is not who it should be."""
        self.cells[PEER_REFUSED.at(refused.reason)] += 1
        self._complaints.log(
            log, logging.WARNING, "no link to another worker", key=("refused", refused.reason), why=str(refused)
        )

    def distrust(self, link: Link, what: str) -> None:
        """Something came that its other end can't have sent."""
        self.cells[PEER_REFUSED.at("forged")] += 1
        self._complaints.log(
            log, logging.ERROR, "a link to another worker is broken off", key="forged", node=link.peer_node, why=what
        )

    def count_served(self) -> None:
        self.cells[PASSED_SERVED] += 1

    def holds_produce(self, size: int) -> bool:
        """Whether a Produce request of this size must wait."""
        return size > self._connections.produce_bytes_max

    def hold(self, channel: Holdable) -> None:
        self._connections.hold(channel)

    def forget_held(self, channel: Holdable) -> None:
        self._connections.forget_held(channel)

    def mark_dirty(self, link: Link) -> None:
        """There is something to write: once, at the end of the loop's turn."""
        self._dirty.append(link)
        if not self._is_flush_due:
            self._is_flush_due = True
            assert self._call_soon is not None, "start() comes before the first link"
            self._call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.flush()

    def _tick(self) -> None:
        self._timer = self.clock.call_later(TICK_SECONDS, self._tick)
        self.now = self.clock.monotonic()
        for link in list(self._all):
            link.tick(self.now)

    # The end

    def _incoming(self) -> Iterator[IncomingLink]:
        return (link for link in list(self._all) if isinstance(link, IncomingLink))

    def release_waiting(self) -> None:
        """Have no client of this worker wait for others any longer than they need to store something."""
        for link in list(self._outgoing.values()):
            link.release_waiting()

    async def drain(self) -> None:
        """Take no more requests from others, and return when all that were taken are answered."""
        self._is_draining = True
        for link in self._incoming():
            link.drain()
        while any(link.unanswered_count for link in self._incoming()):
            await self.clock.sleep(DRAIN_POLL_SECONDS)
        self._flush()

    def stop(self) -> None:
        """Close every link."""
        self._end()
        for link in list(self._all):
            link.close("drain")

    def abandon(self) -> None:
        """Drop every link without another byte: this incarnation may say nothing more."""
        self._end()
        for link in list(self._all):
            link.abort()

    def _end(self) -> None:
        self._is_draining = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for link in list(self._outgoing.values()):
            link.close("drain")
