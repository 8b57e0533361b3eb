"""What to make of an object that nothing names: garbage that will go by itself, or one that nobody accounts for. Pure.

Regular operation leaves objects behind: a worker deletes what it has given up with the checkpoint after the next, what
an ended log leaves is the sweep's, and who is killed may have written what no checkpoint came to name. These are
leftovers. Anything else that nothing names is unreferenced: there is no rule by which it lies there.

Ages are told by the store's own clock: the newest object of a listing stands for now.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import StrEnum

import msgspec

from kafscale.storage.keys import Keys, sequence_of, writer_of
from kafscale.storage.store import ObjectInfo
from kafscale.storage.verification import Wrong
from supervisor.log_walk import WalkedLog


class Why(StrEnum):
    """Why an object that nothing names lies there, the least certain first."""

    NO_LOG = "there is no log of its writer"
    NO_SEAL = "says what an ended log holds, and the log has not ended"
    DISOWNED = "its worker's newest checkpoint is newer, and neither names it nor gives it up"
    AFTER_THE_END = "written long after its worker's log had ended"
    OVERDUE = "its log ended long ago, and no sweep has deleted it"
    YOUNG = "too young to say: its worker may be about to name it"
    AFTER_CHECKPOINT = "written after its worker's newest checkpoint, and of no use without one"
    NO_END = "of a log that no slot names and that has not ended"
    PROBE = "of a start that was broken off; it may be deleted"
    NOT_COUNTING = "above the end of its log: it does not count"
    MOVED = "of a log whose slots have moved: the sweep deletes it"
    WRITTEN_DOWN = "says what an ended log holds, for those who take over: the sweep deletes it"
    ENDED = "of a log that has ended: the next sweep deletes it"
    LEFT_BEHIND = "given up by its worker, which has ended: the sweep deletes it"
    GIVEN_UP = "given up by its worker, which deletes it with the checkpoint after the next"


_BAD = frozenset({Why.NO_LOG, Why.NO_SEAL, Why.DISOWNED, Why.AFTER_THE_END, Why.OVERDUE})
RANKS = {why: rank for rank, why in enumerate(Why)}


def wrong_with(why: Why) -> Wrong:
    return Wrong.UNREFERENCED if why in _BAD else Wrong.LEFTOVER


class LogSeal(msgspec.Struct, frozen=True):
    """When a log was ended, by the store's clock, and whether by its own worker."""

    created_ms: int
    is_own: bool


class Ages(msgspec.Struct, frozen=True, kw_only=True):
    """`young_ms`: what was created after it may yet come to be named. `overdue_ms`: what ended before it should have
    been swept. `late_ms`: how long a worker whose log others have ended may go on writing, before it learns of it."""

    young_ms: int
    overdue_ms: int
    late_ms: int


class Judge:
    """Judges objects that nothing names, by what is known of their writers' logs.

    `walked`: logs that slots name; `known`: all logs of which something lies there; `checkpoints_ms`: when walked logs'
    newest checkpoints were created; `owners`: the logs of the slots' owners; `seals`: the first of each log that has
    one.
    """

    def __init__(
        self,
        keys: Keys,
        walked: Mapping[str, WalkedLog],
        known: AbstractSet[str],
        checkpoints_ms: Mapping[str, int],
        owners: AbstractSet[str],
        seals: Mapping[str, LogSeal],
        ages: Ages,
    ) -> None:
        self._keys = keys
        self._walked = walked
        self._known = known
        self._checkpoints_ms = checkpoints_ms
        self._owners = owners
        self._seals = seals
        self._ages = ages
        self._given_up = {
            log_id: frozenset(log.checkpoint.given_up) if log.checkpoint is not None else frozenset()
            for log_id, log in walked.items()
        }

    def why(self, info: ObjectInfo) -> Why:
        """Why the object lies there; it is no seal."""
        is_young = info.created_ms > self._ages.young_ms
        log_id = writer_of(info.key)
        if log_id is None:
            return Why.YOUNG if is_young else Why.PROBE
        if info.key.startswith(self._keys.ended_prefix):
            return self._of_ended(log_id)
        if log_id in self._walked:
            return self._of_walked(info, self._walked[log_id], is_young)
        if log_id not in self._known:
            return Why.YOUNG if is_young else Why.NO_LOG
        seal = self._seals.get(log_id)
        if seal is None:
            return Why.YOUNG if is_young else Why.NO_END
        if self._is_after(info, seal):
            return Why.AFTER_THE_END
        return Why.OVERDUE if max(seal.created_ms, info.created_ms) < self._ages.overdue_ms else Why.ENDED

    def _of_ended(self, log_id: str) -> Why:
        walked, seal = self._walked.get(log_id), self._seals.get(log_id)
        if walked is not None:
            return Why.WRITTEN_DOWN if walked.sealed else Why.NO_SEAL
        if seal is None:
            return Why.NO_SEAL if log_id in self._known else Why.NO_LOG
        return Why.OVERDUE if seal.created_ms < self._ages.overdue_ms else Why.ENDED

    def _is_after(self, info: ObjectInfo, seal: LogSeal) -> bool:
        """Whoever has ended its log itself writes nothing more."""
        return info.created_ms > seal.created_ms + (0 if seal.is_own else self._ages.late_ms)

    def _of_walked(self, info: ObjectInfo, log: WalkedLog, is_young: bool) -> Why:
        if info.key in self._given_up[log.log_id]:
            return Why.LEFT_BEHIND if log.sealed else Why.GIVEN_UP
        seal = self._seals.get(log.log_id)
        if seal is not None and self._is_after(info, seal):
            return Why.AFTER_THE_END
        if is_young and not log.sealed:
            return Why.YOUNG
        if info.key.startswith(self._keys.log_prefix) and sequence_of(info.key) >= log.end:
            return Why.NOT_COUNTING
        if log.log_id not in self._owners:
            return Why.MOVED
        if info.created_ms >= self._checkpoints_ms.get(log.log_id, 0):
            return Why.AFTER_CHECKPOINT
        return Why.DISOWNED
