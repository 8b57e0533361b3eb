"""This broker among the others: it is registered, others' nodes are known, and a broker of the same number is refused.

Owns what this broker last said of itself and which nodes of others clients are told of. Must not know slots. While
coordination does not answer everything stays as it was: others' nodes are shown on, and what was to be said is said
when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kafscale.clock import Clock
from kafscale.control import NodeAddress
from kafscale.coordination.store import CoordinationStore, Member
from kafscale.errors import KafscaleError, StartError

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
CLAIM_POLL_SECONDS = 0.2
# A registration outlives its broker by its time to live, and some time until that is told.
CLAIM_MARGIN_SECONDS = 2.0
# A broker that is gone is still shown for so long: it may be back at once, and clients look for its partitions anyway.
SHOWN_WHILE_GONE_SECONDS = 10.0


class Membership:
    """`claim`, then `run` until the broker drains; `changed` whenever `describe` would answer differently, or
    coordination has news. `on_nodes` gets all nodes that clients are to be told of, whenever they have changed."""

    def __init__(
        self,
        coordination: CoordinationStore,
        clock: Clock,
        describe: Callable[[], Member],
        on_nodes: Callable[[list[NodeAddress]], None],
        ttl_seconds: float,
    ) -> None:
        self.leaving = False
        self._coordination = coordination
        self._clock = clock
        self._describe = describe
        self._on_nodes = on_nodes
        self._ttl_seconds = ttl_seconds
        self._said: Member | None = None
        self._others: dict[int, tuple[tuple[NodeAddress, ...], float]] = {}
        self._nodes: list[NodeAddress] = []
        self._woken = asyncio.Event()

    @property
    def others_stay(self) -> bool:
        """Whether there is another broker, as far as is known, that takes over what others give away."""
        return any(member.can_take_over for member in self._others_registered())

    async def claim(self) -> None:
        """Register, once no other broker of this number is. Raises StartError where one lives on, and as `join`."""
        ours = self._describe()
        deadline = self._clock.monotonic() + self._ttl_seconds + CLAIM_MARGIN_SECONDS
        waited = False
        while (holder := self._holder(ours)) is not None:
            if self._clock.monotonic() >= deadline:
                nodes = ", ".join(f"{node.host}:{node.port}" for node in holder.nodes)
                raise StartError(
                    f"broker id {ours.broker_id} belongs to a living broker (its workers are at {nodes or 'no port'}); "
                    "give every broker of a cluster a number of its own (--broker-id, KAFSCALE_BROKER_ID)"
                )
            if not waited:
                waited = True
                log.warning(
                    "a broker of this number is registered; waiting for its registration to run out",
                    extra={"broker_id": ours.broker_id, "ttl_seconds": self._ttl_seconds},
                )
            await self._clock.sleep(CLAIM_POLL_SECONDS)
        await self._say(ours)
        self._look()

    def nodes(self) -> list[NodeAddress]:
        """The nodes that clients are told of."""
        return self._nodes

    def changed(self) -> None:
        self._look()
        self._woken.set()

    def leave(self) -> None:
        """Have others take over everything."""
        self.leaving = True
        self.changed()

    async def run(self) -> None:
        while True:
            ours = self._describe()
            if ours != self._said:
                try:
                    await self._say(ours)
                except KafscaleError as error:
                    log.warning("the broker could not be registered", extra={"cause": str(error)})
            self._look()
            timer = self._clock.call_later(TICK_SECONDS, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            self._woken.clear()

    async def _say(self, ours: Member) -> None:
        await self._coordination.join(ours)
        self._said = ours

    def _holder(self, ours: Member) -> Member | None:
        """Another broker that is registered under our number. One at our own peer address was an earlier life of this
        one: the address is bound by us now."""
        for member in self._coordination.members():
            if member.broker_id == ours.broker_id and not (ours.peer and member.peer == ours.peer):
                return member
        return None

    def _others_registered(self) -> list[Member]:
        broker_id = self._describe().broker_id
        return [member for member in self._coordination.members() if member.broker_id != broker_id]

    def _look(self) -> None:
        """Take over what is known of others' nodes."""
        now = self._clock.monotonic()
        for member in self._others_registered():
            self._others[member.broker_id] = (member.nodes, now)
        if self._coordination.is_available:
            self._others = {
                broker_id: (nodes, seen_at)
                for broker_id, (nodes, seen_at) in self._others.items()
                if now - seen_at < SHOWN_WHILE_GONE_SECONDS
            }
        else:
            # Nobody is seen to go.
            self._others = {broker_id: (nodes, now) for broker_id, (nodes, _) in self._others.items()}
        found = list(self._describe().nodes)
        for nodes, _ in self._others.values():
            found += nodes
        found.sort(key=lambda node: node.node_id)
        if found != self._nodes:
            self._nodes = found
            self._on_nodes(found)
