"""A coordination store in memory for several brokers of one test: members, a leader, news, and an outage."""

from __future__ import annotations

from collections.abc import Callable

from kafscale.coordination.store import ClusterIdentity, Member
from kafscale.errors import Retry, StartError


class Hub:
    """What all brokers share. Whoever campaigned first, and is still here, leads."""

    def __init__(self) -> None:
        self.identity: ClusterIdentity | None = None
        self.members: dict[int, Member] = {}
        self.candidates: list[HubCoordination] = []
        self.clients: list[HubCoordination] = []
        self.newest_version = 0
        self.is_up = True
        self.ttl_seconds = 1.0

    def tell(self) -> None:
        for client in self.clients:
            client.on_change()

    def set_up(self, is_up: bool) -> None:
        self.is_up = is_up
        self.tell()

    def lose(self, broker_id: int) -> None:
        """A broker's lease runs out."""
        self.members.pop(broker_id, None)
        self.candidates = [client for client in self.candidates if client.broker_id != broker_id]
        self.tell()


class HubCoordination:
    """One broker's view of the hub."""

    def __init__(self, hub: Hub) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.broker_id = -1
        self._hub = hub
        hub.clients.append(self)

    @property
    def ttl_seconds(self) -> float:
        return self._hub.ttl_seconds

    async def open(self, identity: ClusterIdentity) -> None:
        self._hub.identity = self._hub.identity or identity
        if self._hub.identity != identity:
            raise StartError("another cluster")

    async def join(self, member: Member) -> None:
        if not self._hub.is_up:
            raise Retry(7, "down")
        self.broker_id = member.broker_id
        self._hub.members[member.broker_id] = member
        self._hub.tell()

    async def campaign(self) -> None:
        self._hub.candidates.append(self)
        self._hub.tell()

    @property
    def is_leader(self) -> bool:
        return self._hub.candidates[:1] == [self]

    @property
    def is_available(self) -> bool:
        return self._hub.is_up

    @property
    def newest_version(self) -> int:
        return self._hub.newest_version

    def members(self) -> list[Member]:
        return sorted(self._hub.members.values(), key=lambda member: member.broker_id)

    async def publish(self, version: int, payload: bytes) -> None:
        if not self._hub.is_up:
            raise Retry(7, "down")
        if version > self._hub.newest_version:
            self._hub.newest_version = version
            self._hub.tell()

    async def close(self) -> None:
        if self.broker_id >= 0:
            self._hub.lose(self.broker_id)
        self._hub.clients.remove(self)
