"""Goal: as a process, the broker obeys signals, and its workers never outlive it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE = 20.0


@contextmanager
def broker(root: Path, mode: str = "well", *listen: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "broker_process.py"), str(root), mode, *listen],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=(root.parent / "stderr").open("a"),
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.005)


def ready(process: subprocess.Popen[str], root: Path) -> dict:
    """What broker.json says once it is this process's."""
    found: dict = {}

    def is_there() -> bool:
        assert process.poll() is None, (root.parent / "stderr").read_text()
        try:
            found.update(json.loads((root / "broker.json").read_text()))
        except FileNotFoundError:
            return False
        return found["supervisor_pid"] == process.pid

    until(is_there)
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_is_clean(tmp_path, number) -> None:
    with broker(tmp_path / "d") as process:
        found = ready(process, tmp_path / "d")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert "is ready" in process.stdout.read()
    assert not any(is_running(worker["pid"]) for worker in found["workers"])
    assert not (tmp_path / "d" / "broker.json").exists()


def test_a_killed_supervisor_is_followed_by_its_workers_and_a_new_one_takes_over(tmp_path) -> None:
    """Also when the new one is started at once, while the workers are still ending."""
    root = tmp_path / "d"
    with broker(root) as first:
        before = ready(first, root)
        first.kill()
        first.wait()
        with broker(root, "well", before["listen"]) as second:
            after = ready(second, root)
            assert not any(is_running(worker["pid"]) for worker in before["workers"])
            assert (after["listen"], after["cluster_id"]) == (before["listen"], before["cluster_id"])
            second.terminate()
            assert second.wait(PATIENCE) == 0


def test_workers_that_still_end_are_waited_for(tmp_path) -> None:
    """The lock is theirs too: while one is left, nobody else may have the directory."""
    root = tmp_path / "d"
    (tmp_path / "stays").write_text("")
    with broker(root, "lingers") as first:
        before = ready(first, root)
        first.kill()
        first.wait()
        with broker(root) as second:
            until(lambda: "waiting for its workers" in (tmp_path / "stderr").read_text())
            assert all(is_running(worker["pid"]) for worker in before["workers"])
            (tmp_path / "stays").unlink()
            ready(second, root)
            assert not any(is_running(worker["pid"]) for worker in before["workers"])
            second.terminate()
            assert second.wait(PATIENCE) == 0


def test_a_hangup_rereads_the_level_of_the_log(tmp_path) -> None:
    root = tmp_path / "d"
    config = tmp_path / "d.toml"
    config.write_text('log_level = "error"\n')
    with broker(root) as process:
        ready(process, root)
        config.write_text('log_level = "info"\n')
        process.send_signal(signal.SIGHUP)
        until(lambda: "settings were read again" in (tmp_path / "stderr").read_text())
        config.write_text("nonsense = \n")
        process.send_signal(signal.SIGHUP)
        until(lambda: "the old ones stay" in (tmp_path / "stderr").read_text())
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_ctrl_c_at_a_terminal_reaches_the_supervisor_alone(tmp_path) -> None:
    """Workers are in process groups of their own: they drain rather than being interrupted."""
    with broker(tmp_path / "d") as process:
        found = ready(process, tmp_path / "d")
        groups = [os.getpgid(worker["pid"]) for worker in found["workers"]]
        assert groups == [worker["pid"] for worker in found["workers"]]
        process.terminate()
        assert process.wait(PATIENCE) == 0
