"""Starts and ends a `kafscale serve` process and knows where it listens; all a script needs to run against a broker.

It owns the process it started and nothing else, and knows the broker only from outside: its command line, its
`broker.json`, its HTTP endpoints and /proc.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

T = TypeVar("T")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


def wait_for(condition: Callable[[], T], timeout_s: float, what: str, pause_s: float = 0.02) -> T:
    """Call `condition` until it returns something true, and return that.

    Raises:
        TimeoutError: it stayed false for `timeout_s`.
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        pause.wait(pause_s)
    return value


def free_port() -> int:
    """A TCP port nobody listens on, below the range of outgoing connections so that it stays free for a restart.

    Ten thousand above it, where a broker puts its workers' ports by default, is in range too.
    """
    ports = random.SystemRandom()
    for _ in range(1_000):
        port = ports.randrange(12_000, 22_000)
        try:
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise
            continue
        return port
    raise RuntimeError("found no free port in 1,000 tries")


class BrokerProcess:
    """A broker in a process of its own, on free ports, in a data directory of its own unless one is given."""

    def __init__(
        self,
        workers: int = 1,
        data_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        apart: bool = False,
    ) -> None:
        """`apart`: in a process group of its own, so that a terminal's Ctrl-C does not reach it."""
        self.workers = workers
        self._process_group = 0 if apart else None
        self._owned_dir = None if data_dir else tempfile.TemporaryDirectory(prefix="kafscale-data-")
        self.data_dir = data_dir if data_dir else Path(str(self._owned_dir and self._owned_dir.name)) / "data"
        self.environment = dict(environment or {})
        self.arguments = arguments
        self.port = free_port()
        self.metrics_port = free_port()
        self.log_path = Path(tempfile.mkstemp(prefix="kafscale-log-", suffix=".txt")[1])
        self.process: subprocess.Popen[bytes] | None = None
        # Every process ever seen to belong to this broker, to be ended in `close` whatever happened before.
        self._seen: dict[int, psutil.Process] = {}

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "kafscale", "serve"),
            *("--data-dir", str(self.data_dir)),
            *("--listen", f"127.0.0.1:{self.port}"),
            *("--metrics", f"127.0.0.1:{self.metrics_port}"),
            *("--workers", str(self.workers)),
            *self.arguments,
        ]

    def start(self, wait: bool = True) -> Self:
        """Start the process; with `wait`, return when it is ready to serve."""
        assert self.process is None or self.process.poll() is not None, "still running"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFSCALE_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | self.environment,
                process_group=self._process_group,
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen[self.process.pid] = psutil.Process(self.process.pid)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until this process has written its broker.json and /readyz says yes."""

        def ready() -> bool:
            assert self.process is not None
            if (code := self.process.poll()) is not None:
                raise RuntimeError(f"broker exited with {code} before it was ready:\n{self.log()[-4000:]}")
            return self.supervisor_pid() == self.process.pid and self.http_status("/readyz") == 200

        try:
            wait_for(ready, timeout_s, "broker ready")
        except TimeoutError as late:
            raise TimeoutError(f"{late}:\n{self.log()[-4000:]}") from None
        self.remember()

    def info(self) -> dict[str, Any]:
        """broker.json, or {} while there is none."""
        try:
            parsed: dict[str, Any] = json.loads((self.data_dir / "broker.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return parsed

    def supervisor_pid(self) -> int | None:
        return supervisor_pid_in(self.info())

    def worker_pids(self) -> list[int]:
        """The workers' process ids by index, from broker.json; some may be gone."""
        return worker_pids_in(self.info())

    def http_status(self, path: str) -> int:
        """The status of a GET on the metrics port, 0 while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            return refused.code
        except (urllib.error.URLError, OSError):
            return 0

    def http_body(self, path: str) -> str:
        """The body of a GET on the metrics port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def log(self) -> str:
        """All the broker has written so far, its restarts included."""
        return self.log_path.read_text(errors="replace")

    def remember(self) -> None:
        """Note the processes that belong to the broker now, so that `close` can end them."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                self._seen[process.pid] = process

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM and wait; returns the exit code."""
        assert self.process is not None
        self.remember()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End every process of the broker, gently first, and remove what was made for it."""
        self.remember()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)
        for process in self._seen.values():
            # psutil compares creation times, so a number that was given to someone else is left alone.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
        psutil.wait_procs(list(self._seen.values()), timeout=15)
        self.log_path.unlink(missing_ok=True)
        if self._owned_dir is not None:
            self._owned_dir.cleanup()

    def __enter__(self) -> Self:
        if self.process is None:
            try:
                self.start()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def supervisor_pid_in(info: Mapping[str, Any]) -> int | None:
    """The supervisor's process id in a broker.json."""
    return info.get("supervisor_pid")


def worker_pids_in(info: Mapping[str, Any]) -> list[int]:
    """The workers' process ids in a broker.json, by index."""
    return [worker["pid"] for worker in info.get("workers", ())]
