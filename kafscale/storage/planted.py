"""Bugs that tests plant on purpose, to prove that the history checker can fail.

Every switch is off in production; nothing but a test's composition root turns one on.
"""

from __future__ import annotations

import msgspec


class PlantedBugs(msgspec.Struct, frozen=True, kw_only=True):
    """`acknowledge_before_write`: an object counts before the store has it. `plain_create`: a PUT overwrites what is
    there. `gap_is_the_end`: a log is taken to end at its first gap, without a seal. `seal_deleted`: the sweep takes
    seals too. `last_log_alone`: a slot is loaded from the last log of its list, the others are not waited for.
    `producer_state_lost`: producers are neither in manifests nor replayed. `duplicate_answered_early`: the answer does
    not wait for the original to be durable. `deleted_before_counting`: what a checkpoint gives up is deleted before it
    counts.
    """

    acknowledge_before_write: bool = False
    plain_create: bool = False
    gap_is_the_end: bool = False
    seal_deleted: bool = False
    last_log_alone: bool = False
    producer_state_lost: bool = False
    duplicate_answered_early: bool = False
    deleted_before_counting: bool = False


NO_BUGS = PlantedBugs()
