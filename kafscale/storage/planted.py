"""Bugs that tests plant on purpose, to prove that the history checker can fail.

Every switch is off in production; nothing but a test's composition root turns one on.
"""

from __future__ import annotations

import msgspec


class PlantedBugs(msgspec.Struct, frozen=True, kw_only=True):
    acknowledge_before_write: bool = False
    plain_create: bool = False
    gap_is_the_end: bool = False
    seal_deleted: bool = False
    producer_state_lost: bool = False
    duplicate_answered_early: bool = False


NO_BUGS = PlantedBugs()
