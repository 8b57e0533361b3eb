"""Goal: `make cluster` serves, shows a kill, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.broker_process import wait_for

pytestmark = pytest.mark.cluster


def test_a_kill_can_be_watched_and_all_ends_with_ctrl_c(tmp_path: Path) -> None:
    """Goal: what is typed is done and told of, slots find owners again, and Ctrl-C ends every process and folder."""
    output = tmp_path / "output"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with output.open("wb") as out:
        program = subprocess.Popen(
            [sys.executable, "-m", "loadtest.local_cluster", "--port", "0"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )

    def seen(*texts: str) -> bool:
        assert program.poll() is None, output.read_text()
        lines = output.read_text().splitlines()
        return any(all(text in line for text in texts) for line in lines)

    def type_in(line: str) -> None:
        assert program.stdin is not None
        program.stdin.write(line.encode() + b"\n")
        program.stdin.flush()

    try:
        wait_for(lambda: seen("slots have owners", "broker 0: 8", "broker 2: 8"), 120, "the cluster serves")
        processes = psutil.Process(program.pid).children(recursive=True)
        assert len(processes) >= 8
        type_in("kill 7")
        type_in("kill 1")
        wait_for(lambda: seen("broker 1 was killed"), 30, "the kill is done")
        assert seen("'kill 7' is no command")
        wait_for(lambda: seen("slots have owners after", "broker 0: 128, broker 2: 128"), 60, "others take over")
        type_in("start 1")
        wait_for(lambda: seen("slots have owners after", "broker 1: 8"), 60, "it is back")
        processes += psutil.Process(program.pid).children(recursive=True)
        assert not seen("REFUSED")
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0
    finally:
        program.kill()
        program.wait()
    assert output.read_text().endswith("Ended; nothing is left behind.\n")
    assert not [process for process in processes if process.is_running()]
    assert list(scratch.iterdir()) == []
