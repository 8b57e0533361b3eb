"""Who is alive, who leads, and how news of the cluster log spreads: the one interface to coordination, and the embedded
one.

Nothing that must last lives here: decisions are in the cluster log before they are published. An implementation may
lose everything it holds without harm. `EmbeddedCoordination` is that of a single broker, which is always alone and
always leads; the lock on its data directory is what makes that true.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from kafscale.control import NodeAddress


class Member(msgspec.Struct, frozen=True):
    """A broker that is alive: its number and its nodes."""

    broker_id: int
    nodes: tuple[NodeAddress, ...]


class CoordinationStore(Protocol):
    """Membership, election and the newest known version. No call is on the way of a produce, fetch or commit."""

    async def join(self, member: Member) -> None:
        """Say that this broker is alive, until `close`. Joining again replaces what was said."""
        ...

    async def campaign(self) -> None:
        """Return once this broker leads."""
        ...

    @property
    def is_leader(self) -> bool:
        """Whether this broker leads, as far as it knows. Never a ground for a write: the cluster log decides that."""
        ...

    def members(self) -> list[Member]:
        """The brokers that are alive, this one included."""
        ...

    async def publish(self, version: int) -> None:
        """Tell the others that this version of the cluster log exists."""
        ...

    async def close(self) -> None:
        """Leave, and give up leading."""
        ...


class EmbeddedCoordination:
    """The coordination of a broker that is its whole cluster."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._leads = False
        self.published_version = 0

    async def join(self, member: Member) -> None:
        self._member = member

    async def campaign(self) -> None:
        self._leads = True

    @property
    def is_leader(self) -> bool:
        return self._leads

    def members(self) -> list[Member]:
        return [] if self._member is None else [self._member]

    async def publish(self, version: int) -> None:
        self.published_version = max(self.published_version, version)

    async def close(self) -> None:
        self._member = None
        self._leads = False
