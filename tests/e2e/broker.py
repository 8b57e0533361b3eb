"""The broker under test as real processes: start, kill, restart, look at memory and CPU.

It owns the processes it starts (by their own ids) and knows the broker only from outside, as a user's scripts would.
`ExternalBroker` stands in for it where a test only needs an address, so that the client tests can be tried against
another implementation: KAFSCALE_E2E_BOOTSTRAP=host:port.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass

import psutil

from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.measure import process_cpu_seconds, resident_bytes


class Broker(BrokerProcess):
    """A broker process that can be hurt in all the ways the tests need."""

    def worker_ports(self) -> list[int]:
        """The private port of each worker, by index."""
        return [worker["port"] for worker in self.info()["workers"]]

    def kill_worker(self, index: int, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal to one worker; returns its pid."""
        self.remember()
        pid = self.worker_pids()[index]
        os.kill(pid, signal_number)
        return pid

    def kill_supervisor(self, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal to the supervisor; returns its pid. After SIGKILL it is reaped, its workers may live on."""
        assert self.process is not None
        self.remember()
        self.process.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            self.process.wait(30)
        return self.process.pid

    def kill_everything(self) -> None:
        """SIGKILL supervisor and workers, as near to at once as can be, and wait until they are gone."""
        assert self.process is not None
        self.remember()
        doomed = [self.process.pid, *self.worker_pids()]
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        wait_for(lambda: not any(is_running(pid) for pid in (*doomed, *self._seen)), 30, "all processes gone")
        # A spare worker that was being started then has the socket too, and goes once it knows.
        wait_for(self._is_port_free, 30, "nobody has the port")

    def _is_port_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
                probe.listen(1)
            except OSError:
                return False
        return True

    def wait_worker_replaced(self, index: int, old_pid: int, timeout_s: float = 30.0) -> int:
        """Wait until broker.json names another process for the worker; returns its pid."""

        def replaced() -> int:
            pids = self.worker_pids()
            return pids[index] if len(pids) > index and pids[index] != old_pid else 0

        pid = wait_for(replaced, timeout_s, f"worker {index} replaced")
        self.remember()
        return pid

    def restart(self) -> None:
        """Start again on the same ports and data after the supervisor has ended."""
        self.start()

    def resident_bytes(self) -> int:
        """Resident memory of supervisor and workers together."""
        return sum(resident_bytes(pid) for pid in self.living_pids())

    def cpu_seconds(self) -> float:
        """CPU seconds of supervisor and workers together."""
        return sum(process_cpu_seconds(pid) for pid in self.living_pids())

    def living_pids(self) -> list[int]:
        assert self.process is not None
        return [pid for pid in (self.process.pid, *self.worker_pids()) if is_running(pid)]


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class ExternalBroker:
    """Somebody else's broker: only an address."""

    bootstrap: str

    @property
    def port(self) -> int:
        return int(self.bootstrap.rpartition(":")[2])
