"""Who is alive, who leads, and how news of the cluster log spreads: the one interface to coordination, and the embedded
one.

Nothing that must last lives here: decisions are in the cluster log before they are published. An implementation may
lose everything it holds without harm. `EmbeddedCoordination` is that of a single broker, which is always alone and
always leads; the lock on its data directory is what makes that true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from kafscale.control import NodeAddress
from kafscale.coordination.assignment import Incarnation


class ClusterIdentity(msgspec.Struct, frozen=True):
    """What every broker of a cluster must agree on; written once, by the first."""

    cluster_id: str
    slot_count: int
    format_version: int


class Member(msgspec.Struct, frozen=True):
    """A broker that is alive: its number, its nodes as clients are told of them, the workers that can own slots, where
    its supervisor is reached by others ("host:port", empty for nowhere), whether it gives away what it owns, and
    whether the object store has long not answered it."""

    broker_id: int
    nodes: tuple[NodeAddress, ...]
    incarnations: tuple[Incarnation, ...] = ()
    peer: str = ""
    leaving: bool = False
    rack: str | None = None
    store_silent: bool = False

    @property
    def can_take_over(self) -> bool:
        """Whether slots may be given to its workers."""
        return not self.leaving and not self.store_silent


class CoordinationStore(Protocol):
    """Membership, election and the newest known version. No call is on the way of a produce, fetch or commit.

    `on_change` is called on the loop when members, leadership, availability or the newest version have changed.
    """

    on_change: Callable[[], None]

    @property
    def ttl_seconds(self) -> float:
        """How long a broker that died goes on being a member."""
        ...

    async def open(self, identity: ClusterIdentity) -> None:
        """Begin. Raises StartError where the coordination belongs to another cluster."""
        ...

    async def join(self, member: Member) -> None:
        """Say that this broker is alive, until `close`. Joining again replaces what was said."""
        ...

    async def campaign(self) -> None:
        """Take part in the election from now on. Returns at once."""
        ...

    @property
    def is_leader(self) -> bool:
        """Whether this broker leads, as far as it knows. Never a ground for a write: the cluster log decides that."""
        ...

    @property
    def is_available(self) -> bool:
        """Whether coordination answers, and is not behind the bucket."""
        ...

    @property
    def newest_version(self) -> int:
        """The newest version of the cluster log that was heard of."""
        ...

    def members(self) -> list[Member]:
        """The brokers that are alive, this one included; while coordination does not answer, those it named last."""
        ...

    async def publish(self, version: int, payload: bytes) -> None:
        """Tell the others that this version of the cluster log exists, and what it says."""
        ...

    async def close(self) -> None:
        """Leave, and give up leading."""
        ...


class EmbeddedCoordination:
    """The coordination of a broker that is its whole cluster."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._member: Member | None = None
        self._leads = False
        self._newest_version = 0

    @property
    def ttl_seconds(self) -> float:
        return 0.0

    async def open(self, identity: ClusterIdentity) -> None:
        pass

    async def join(self, member: Member) -> None:
        self._member = member

    async def campaign(self) -> None:
        self._leads = True

    @property
    def is_leader(self) -> bool:
        return self._leads

    @property
    def is_available(self) -> bool:
        return True

    @property
    def newest_version(self) -> int:
        return self._newest_version

    def members(self) -> list[Member]:
        return [] if self._member is None else [self._member]

    async def publish(self, version: int, payload: bytes) -> None:
        self._newest_version = max(self._newest_version, version)

    async def close(self) -> None:
        self._member = None
        self._leads = False
