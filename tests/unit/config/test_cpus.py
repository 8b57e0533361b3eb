"""Goal: the number of workers follows what the machine and its control groups allow, in both cgroup versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kafscale.config.cpus import cgroup_quota_cpus, usable_cpus


def tree(root: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "fs").mkdir(exist_ok=True)
    proc = root / "cgroup"
    proc.write_text(membership)
    return proc, root / "fs"


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2.0),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({}, "0::/\n", None),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "150000 100000\n"}, "0::/a\n", 1.5),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3.0),
        ({"cpu.max": "100000 100000\n"}, "0::/the/hosts/path\n", 1.0),
        ({"cpu.max": "100000 100000\n"}, "0::/../outside\n", 1.0),
        ({"cpu.max": "nonsense"}, "0::/\n", None),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/\n", 2.5),
        (
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            "3:cpu,cpuacct:/x\n",
            0.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n0::/\n", None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "0"}, "1:cpu:/\n", None),
        ({"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, "1:cpuset:/\n", None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], membership: str, quota: float | None) -> None:
    """Goal: the tightest quota from the group up to the root counts, and no file or number that makes no sense."""
    assert cgroup_quota_cpus(*tree(tmp_path, files, membership)) == quota


def test_workers_are_whole_and_at_least_one(tmp_path: Path) -> None:
    """Goal: half a CPU gives one worker, a large quota no more than the affinity allows."""
    allowed = len(os.sched_getaffinity(0))
    assert usable_cpus(*tree(tmp_path, {"cpu.max": "50000 100000"}, "0::/")) == 1
    assert usable_cpus(*tree(tmp_path, {"cpu.max": "99900000 100000"}, "0::/")) == allowed
    assert usable_cpus(tmp_path / "none", tmp_path / "none") == allowed
