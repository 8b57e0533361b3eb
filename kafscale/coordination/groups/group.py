"""One classic group: its states, its members, and what can be asked of them. Owns no timer, writes and answers nothing.

What a member wants and what it was told lives here; when to act on it is decided in `rebalance.py` and `joining.py`.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from msgspec import Struct

from kafscale.coordination.groups.events import JoinedMember, Token
from kafscale.coordination.groups.records import GroupRecord, MemberRecord, subscribed_topics
from kafscale.protocol.error_codes import ErrorCode

CONSUMER_PROTOCOL_TYPE = "consumer"


class GroupState(Enum):
    """The values are the names that clients see."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


_S = GroupState
TRANSITIONS: dict[GroupState, frozenset[GroupState]] = {
    _S.EMPTY: frozenset((_S.PREPARING_REBALANCE, _S.DEAD)),
    _S.PREPARING_REBALANCE: frozenset((_S.COMPLETING_REBALANCE, _S.EMPTY, _S.DEAD)),
    _S.COMPLETING_REBALANCE: frozenset((_S.STABLE, _S.PREPARING_REBALANCE, _S.DEAD)),
    _S.STABLE: frozenset((_S.PREPARING_REBALANCE, _S.DEAD)),
    _S.DEAD: frozenset(),
}
"""From each state, those that may follow. What is loaded from the log starts Empty, CompletingRebalance or Stable."""


class Waiting(Struct, frozen=True):
    """A request whose reply a later event gives."""

    token: Token


class Member:
    """A member of a group. Only its `Group` changes it."""

    __slots__ = (
        "assignment",
        "client_host",
        "client_id",
        "instance_id",
        "is_new",
        "join",
        "member_id",
        "protocols",
        "rebalance_timeout_ms",
        "session_timeout_ms",
        "sync",
    )

    def __init__(
        self,
        *,
        member_id: str,
        instance_id: str | None,
        client_id: str,
        client_host: str,
        rebalance_timeout_ms: int,
        session_timeout_ms: int,
        protocols: tuple[tuple[str, bytes], ...],
        assignment: bytes = b"",
        is_new: bool = False,
    ) -> None:
        self.member_id = member_id
        self.instance_id = instance_id
        self.client_id = client_id
        self.client_host = client_host
        self.rebalance_timeout_ms = rebalance_timeout_ms
        self.session_timeout_ms = session_timeout_ms
        self.protocols = protocols
        self.assignment = assignment
        self.is_new = is_new
        """Has not been told its generation yet, so cannot send heartbeats."""
        self.join: Waiting | None = None
        self.sync: Waiting | None = None

    def metadata(self, protocol_name: str | None) -> bytes:
        for name, metadata in self.protocols:
            if name == protocol_name:
                return metadata
        return b""

    def protocol_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.protocols)

    def subscription_bytes(self) -> int:
        return sum(len(metadata) for _, metadata in self.protocols)


class Group:
    """A group's members and generation. Counts of waiting members and votes are kept, so that joining stays O(1)."""

    def __init__(self, group_id: str, wall_ms: int) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.previous_state = GroupState.DEAD
        self.state_timestamp_ms = wall_ms
        self.protocol_type: str | None = None
        self.generation = 0
        self.protocol_name: str | None = None
        self.leader: str | None = None
        self.members: dict[str, Member] = {}
        self.static_members: dict[str, str] = {}
        self.pending_join: set[str] = set()
        """Member ids given out with MEMBER_ID_REQUIRED and not yet used (KIP-394)."""
        self.pending_sync: set[str] = set()
        self.new_member_added = False
        self.initial_remaining_ms = 0
        """How much longer the first rebalance may be put off for members still arriving."""
        self.subscription: frozenset[str] | None = None
        """Topics that the members read; None where that can't be known."""
        self.record: GroupRecord | None = None
        """The last one written: what a takeover would load."""
        self.subscription_bytes = 0
        self._joining = 0
        self._supporters: Counter[str] = Counter()

    @classmethod
    def load(cls, group_id: str, record: GroupRecord) -> Group:
        """The group as its last record left it.

        A generation's first record is written before its members are told of it, with no assignments yet; so members
        without a single assigned byte are still waiting for their leader.
        """
        group = cls(group_id, record.state_timestamp_ms)
        group.protocol_type = record.protocol_type or None
        group.generation = record.generation
        group.protocol_name = record.protocol
        group.record = record
        for kept in record.members:
            group.add(
                Member(
                    member_id=kept.member_id,
                    instance_id=kept.instance_id,
                    client_id=kept.client_id,
                    client_host=kept.client_host,
                    rebalance_timeout_ms=kept.rebalance_timeout_ms,
                    session_timeout_ms=kept.session_timeout_ms,
                    protocols=((record.protocol or "", kept.subscription),),
                    assignment=kept.assignment,
                )
            )
        group.leader = record.leader
        if record.members:
            assigned = any(kept.assignment for kept in record.members)
            group.state = GroupState.STABLE if assigned else GroupState.COMPLETING_REBALANCE
        group.subscription = group._subscribed_topics()
        return group

    def to_record(self) -> GroupRecord:
        return GroupRecord(
            protocol_type=self.protocol_type or "",
            generation=self.generation,
            protocol=self.protocol_name,
            leader=self.leader,
            state_timestamp_ms=self.state_timestamp_ms,
            members=tuple(
                MemberRecord(
                    member_id=member.member_id,
                    instance_id=member.instance_id,
                    client_id=member.client_id,
                    client_host=member.client_host,
                    rebalance_timeout_ms=member.rebalance_timeout_ms,
                    session_timeout_ms=member.session_timeout_ms,
                    subscription=member.metadata(self.protocol_name),
                    assignment=member.assignment,
                )
                for member in self.members.values()
            ),
        )

    def transition(self, state: GroupState, wall_ms: int) -> None:
        assert state in TRANSITIONS[self.state], f"group {self.group_id!r}: {self.state.value} -> {state.value}"
        self.previous_state = self.state
        self.state = state
        self.state_timestamp_ms = wall_ms

    # --- members ---------------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        assert member.member_id not in self.members
        self.pending_join.discard(member.member_id)
        self.members[member.member_id] = member
        if member.instance_id is not None:
            self.static_members[member.instance_id] = member.member_id
        if self.leader is None:
            self.leader = member.member_id
        self._count(member, 1)

    def remove(self, member_id: str) -> Member:
        member = self.members.pop(member_id)
        assert member.join is None and member.sync is None, "a member leaves only when it has been answered"
        self.pending_sync.discard(member_id)
        if member.instance_id is not None:
            del self.static_members[member.instance_id]
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        self._count(member, -1)
        return member

    def replace_static(self, member: Member, new_member_id: str) -> None:
        """A static member has come back under a new id: it keeps its place and its assignment (KIP-345)."""
        assert member.instance_id is not None and member.join is None and member.sync is None
        old_member_id = member.member_id
        member.member_id = new_member_id
        # Rebuilt in order, so that a replayed record gives the same order of members.
        self.members = {kept.member_id: kept for kept in self.members.values()}
        self.static_members[member.instance_id] = new_member_id
        if self.leader == old_member_id:
            self.leader = new_member_id
        if old_member_id in self.pending_sync:
            self.pending_sync.remove(old_member_id)
            self.pending_sync.add(new_member_id)

    def update(
        self,
        member: Member,
        protocols: tuple[tuple[str, bytes], ...],
        session_timeout_ms: int,
        rebalance_timeout_ms: int,
    ) -> None:
        self._count(member, -1)
        member.protocols = protocols
        member.session_timeout_ms = session_timeout_ms
        member.rebalance_timeout_ms = rebalance_timeout_ms
        self._count(member, 1)

    def _count(self, member: Member, sign: int) -> None:
        self.subscription_bytes += sign * member.subscription_bytes()
        for name in member.protocol_names():
            self._supporters[name] += sign
            if not self._supporters[name]:
                del self._supporters[name]

    def await_join(self, member: Member, waiting: Waiting | None) -> Waiting | None:
        """Set the join that the member waits for; returns the one it replaces."""
        replaced = member.join
        member.join = waiting
        self._joining += (waiting is not None) - (replaced is not None)
        return replaced

    @property
    def joining(self) -> int:
        """Members waiting for their JoinGroup's reply."""
        return self._joining

    def all_joined(self) -> bool:
        return self._joining == len(self.members) and not self.pending_join

    def check_member(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID or NONE."""
        if instance_id is not None:
            current = self.static_members.get(instance_id)
            if current is None:
                return ErrorCode.UNKNOWN_MEMBER_ID
            if current != member_id:
                return ErrorCode.FENCED_INSTANCE_ID
        return ErrorCode.NONE if member_id in self.members else ErrorCode.UNKNOWN_MEMBER_ID

    def rebalance_timeout_ms(self) -> int:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    # --- protocols and generations ---------------------------------------------------------------------------------

    def supports(self, protocol_type: str, names: frozenset[str]) -> bool:
        """Could a member with these protocols join those that are here?"""
        if not protocol_type or not names:
            return False
        if not self.members:
            return True
        return protocol_type == self.protocol_type and any(
            self._supporters[name] == len(self.members) for name in names if name in self._supporters
        )

    def select_protocol(self) -> str:
        """By vote: each member is for the first of its protocols that all know; a tie goes to the first one named."""
        candidates = {name for name, count in self._supporters.items() if count == len(self.members)}
        votes: Counter[str] = Counter()
        for member in self.members.values():
            for name, _ in member.protocols:
                if name in candidates:
                    votes[name] += 1
                    break
        return max(votes, key=votes.__getitem__)

    def elect_leader(self) -> bool:
        """Make sure that the leader is one who joined; False if there is no leader to be had."""
        if self.leader is None:
            return False
        if self.members[self.leader].join is not None:
            return True
        for member in self.members.values():
            if member.join is not None:
                self.leader = member.member_id
                return True
        return False

    def next_generation(self, wall_ms: int) -> None:
        assert self.state is GroupState.PREPARING_REBALANCE
        self.generation += 1
        if self.members:
            self.protocol_name = self.select_protocol()
            for member in self.members.values():
                member.assignment = b""
            self.transition(GroupState.COMPLETING_REBALANCE, wall_ms)
        else:
            self.protocol_name = None
            self.transition(GroupState.EMPTY, wall_ms)
        self.subscription = self._subscribed_topics()

    def joined_members(self) -> tuple[JoinedMember, ...]:
        """What the leader gets to see."""
        return tuple(
            JoinedMember(
                member_id=member.member_id,
                instance_id=member.instance_id,
                metadata=member.metadata(self.protocol_name),
            )
            for member in self.members.values()
        )

    def uses_consumer_protocol(self) -> bool:
        return self.protocol_type == CONSUMER_PROTOCOL_TYPE

    def is_subscribed(self, topic: str) -> bool:
        """Might a member be reading this topic? Where subscriptions can't be read, consumers are taken to."""
        if self.subscription is not None:
            return topic in self.subscription
        return self.uses_consumer_protocol()

    def refresh_subscription(self) -> None:
        """After a member's metadata changed without a new generation."""
        self.subscription = self._subscribed_topics()

    def _subscribed_topics(self) -> frozenset[str] | None:
        if self.protocol_type is None:
            return None
        if not self.members:
            return frozenset()
        if not self.uses_consumer_protocol() or self.protocol_name is None:
            return None
        topics: set[str] = set()
        for member in self.members.values():
            found = subscribed_topics(member.metadata(self.protocol_name))
            if found is None:
                return None
            topics |= found
        return frozenset(topics)
