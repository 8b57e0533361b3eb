"""Goal: records wait for a worker that takes their copies, in order, and not in unbounded memory."""

from __future__ import annotations

import pytest

from kafscale.control import AuditCopy
from supervisor import audit_copies
from supervisor.audit_copies import AuditCopies


def test_copies_wait_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are dropped where there are too many, and whoever takes the rest is told how many."""
    monkeypatch.setattr(audit_copies, "WAITING_BYTES_MAX", 8)
    taken: list[AuditCopy] = []
    is_serving = False

    def send(copy: AuditCopy) -> bool:
        if is_serving:
            taken.append(copy)
        return is_serving

    copies = AuditCopies(send)
    for lines in (b"a\nb\n", b"c\n", b"d\n", b"e\n"):
        copies.put(lines)
    is_serving = True
    copies.hand_on()
    assert taken == [AuditCopy(b"c\n", 2), AuditCopy(b"d\n"), AuditCopy(b"e\n")]
    copies.put(b"f\n")
    assert taken[-1] == AuditCopy(b"f\n") and len(taken) == 4
