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

    Of planned moves: `released_before_flush`: a release does not wait for what was appended. `released_stays_open`: a
    slot that was given away is not closed. `released_is_given_up`: the old owner gives up what a released slot refers
    to. `released_is_forgotten`: it no longer names the manifest of a released slot.
    """

    acknowledge_before_write: bool = False
    plain_create: bool = False
    gap_is_the_end: bool = False
    seal_deleted: bool = False
    last_log_alone: bool = False
    producer_state_lost: bool = False
    duplicate_answered_early: bool = False
    deleted_before_counting: bool = False
    released_before_flush: bool = False
    released_stays_open: bool = False
    released_is_given_up: bool = False
    released_is_forgotten: bool = False


NO_BUGS = PlantedBugs()
