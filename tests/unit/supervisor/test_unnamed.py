"""Goal: what a worker can have written in good faith is a leftover, however late it came; what nobody can is not."""

from __future__ import annotations

import pytest

from kafscale.storage.store import ObjectInfo
from supervisor.unnamed import Ages, Judge, LogSeal, Why
from tests.unit.storage.rig import KEYS, log_id

HOUR_MS = 3_600_000
NOW_MS = 1000 * HOUR_MS
ENDED_AT_MS = NOW_MS - 10 * HOUR_MS
AGES = Ages(young_ms=NOW_MS - HOUR_MS, overdue_ms=NOW_MS - 20 * HOUR_MS, late_ms=HOUR_MS)


@pytest.mark.parametrize(
    ("is_own", "ended_ms", "created_ms", "why"),
    [
        # Another ended the log: its worker was loading slots, or paused, and knew nothing of it.
        (False, ENDED_AT_MS, ENDED_AT_MS - HOUR_MS, Why.ENDED),
        (False, ENDED_AT_MS, ENDED_AT_MS + HOUR_MS, Why.ENDED),
        (False, ENDED_AT_MS, ENDED_AT_MS + HOUR_MS + 1, Why.AFTER_THE_END),
        (False, NOW_MS - 30 * HOUR_MS, NOW_MS - 29 * HOUR_MS, Why.OVERDUE),
        # Whoever ends its own log has written everything before.
        (True, ENDED_AT_MS, ENDED_AT_MS, Why.ENDED),
        (True, ENDED_AT_MS, ENDED_AT_MS + 1, Why.AFTER_THE_END),
        (True, NOW_MS - 30 * HOUR_MS, NOW_MS - 31 * HOUR_MS, Why.OVERDUE),
    ],
)
def test_objects_of_ended_logs(is_own: bool, ended_ms: int, created_ms: int, why: Why) -> None:
    ended = log_id(1)
    judge = Judge(KEYS, {}, {ended}, {}, set(), {ended: LogSeal(ended_ms, is_own)}, AGES)
    assert judge.why(ObjectInfo(KEYS.manifest(ended, 0), 100, created_ms)) is why
