"""Takes the data directory for this broker, waiting out the workers that a killed supervisor left. Blocks only
briefly."""

from __future__ import annotations

import logging
from pathlib import Path

from kafscale.clock import Clock
from kafscale.errors import StartError
from kafscale.storage.directory import lock_directory

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
WAIT_SECONDS = 5.0
POLL_SECONDS = 0.02


async def take_directory(root: Path, clock: Clock) -> int:
    """The descriptor that holds the lock, to be inherited by workers. Raises StartError.

    Workers end when they see that their supervisor has gone. While they do, the directory is theirs.
    """
    deadline = clock.monotonic() + WAIT_SECONDS
    told = False
    while True:
        try:
            return lock_directory(root)
        except StartError:
            holder = _holder(root)
            if holder is None or _is_running(holder) or clock.monotonic() >= deadline:
                raise
            if not told:
                told = True
                log.warning("the last broker here has gone; waiting for its workers to end", extra={"pid": holder})
        await clock.sleep(POLL_SECONDS)


def _holder(root: Path) -> int | None:
    """The process that took the lock last."""
    try:
        text = (root / LOCK_FILE).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def _is_running(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and was not waited for (proc(5), stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
