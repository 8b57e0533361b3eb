"""One call's effects, gathered: records to write, replies to let go, timers to set. Owns the table of deadlines.

It decides nothing; it only makes sure that what is decided comes out in order and once.
"""

from __future__ import annotations

from typing import Any

from kafscale.coordination.groups.events import Outcome, TimerKey, TimerKind, Token
from kafscale.coordination.groups.group import Group, Member
from kafscale.coordination.groups.records import group_key, group_value


class Step:
    """What one call has decided so far."""

    __slots__ = ("_deadlines", "_replies", "_timers", "_writes", "now_ms", "rebalances", "wall_ms")

    def __init__(self, now_ms: int, wall_ms: int, deadlines: dict[TimerKey, int]) -> None:
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self.rebalances = 0
        self._deadlines = deadlines
        self._writes: list[tuple[bytes, bytes | None]] = []
        self._replies: list[tuple[Token, Any]] = []
        self._timers: dict[TimerKey, int | None] = {}

    def write(self, key: bytes, value: bytes | None) -> None:
        self._writes.append((key, value))

    def persist(self, group: Group) -> None:
        """Write the group's generation as it is now."""
        group.record = group.to_record()
        self.write(group_key(group.group_id), group_value(group.record))

    def bury(self, group: Group) -> None:
        """Write that the group is gone, if it was ever written."""
        if group.record is not None:
            group.record = None
            self.write(group_key(group.group_id), None)

    def reply(self, token: Token, response: Any) -> None:
        self._replies.append((token, response))

    def schedule(self, key: TimerKey, delay_ms: int) -> None:
        self._deadlines[key] = self._timers[key] = self.now_ms + max(delay_ms, 0)

    def cancel(self, key: TimerKey) -> None:
        if self._deadlines.pop(key, None) is not None:
            self._timers[key] = None

    def start_session(self, group: Group, member: Member) -> None:
        self.schedule(TimerKey(TimerKind.SESSION, group.group_id, member.member_id), member.session_timeout_ms)

    def end_session(self, group: Group, member_id: str) -> None:
        self.cancel(TimerKey(TimerKind.SESSION, group.group_id, member_id))

    def outcome(self) -> Outcome:
        return Outcome(
            writes=self._writes,
            replies=self._replies,
            timers=list(self._timers.items()),
            rebalances=self.rebalances,
        )
