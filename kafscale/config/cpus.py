"""How many CPUs this process may use: the smaller of its affinity and of the CPU quota of its control groups.

Reads /proc and /sys only. Formats: the kernel's cgroup-v2 (`cpu.max`) and cgroup-v1 (`cpu.cfs_quota_us`) documents.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(proc_cgroup: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole CPUs usable, at least 1. A part of a CPU in the quota is left to the supervisor."""
    quota = cgroup_quota_cpus(proc_cgroup, mount)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def cgroup_quota_cpus(proc_cgroup: Path, mount: Path) -> float | None:
    """The tightest CPU quota from the process's group up to the root, in CPUs; None if there is none or no cgroups."""
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            # The unified tree, alone or beside version 1 (systemd's hybrid layout).
            for root in (mount, mount / "unified"):
                quotas += [q for d in _upwards(root, path) if (q := _quota_v2(d)) is not None]
        elif "cpu" in controllers.split(","):
            for root in (mount / controllers, mount / "cpu"):
                quotas += [q for d in _upwards(root, path) if (q := _quota_v1(d)) is not None]
    return min(quotas, default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it; in a container the path may be the host's, then only the root exists."""
    folder = root / path.strip("/")
    folders = [folder, *folder.parents]
    return folders[: folders.index(root) + 1] if root in folders else [root]


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
