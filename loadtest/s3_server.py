"""The S3 server that benchmarks, soaks and the cluster on one machine use: ministack, in a venv of its own.

It pins botocore, so it is never installed beside the broker: `make ministack` builds `.venv-ministack`. Its CRC32C is
written in Python and would cap uploads at some 10 MB/s, so the hardware's is put in its place. Objects live in memory
and go with the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from loadtest.broker_process import free_port, wait_for

PYTHON = Path(__file__).parent.parent / ".venv-ministack" / "bin" / "python"
START_SECONDS = 60.0
_ENTRY = re.compile(r"<Contents>.*?<Key>(.*?)</Key>.*?<Size>(\d+)</Size>.*?</Contents>", re.S)
_FOLLOWING = re.compile(r"<NextContinuationToken>(.*?)</NextContinuationToken>")
_PROGRAM = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
import crc32c, ministack.services.s3
ministack.services.s3._crc32c = crc32c.crc32c
sys.argv = sys.argv[:1]
from ministack.app import main
main()
"""


class S3Server:
    """One server with one bucket; ends with the context, or with this process."""

    def __init__(self, bucket: str = "kafscale", apart: bool = False) -> None:
        """`apart`: a terminal's Ctrl-C does not reach it."""
        if not PYTHON.exists():
            raise RuntimeError(f"there is no {PYTHON}: run: make ministack")
        self.bucket = bucket
        self._process_group = 0 if apart else None
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="kafscale-s3-")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KAFSCALE_"))}
        environment |= {
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "SERVICES": "s3",
            "LOG_LEVEL": "ERROR",
            "TMPDIR": self._folder.name,
        }
        self.process = subprocess.Popen(
            [str(PYTHON), "-c", _PROGRAM],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=self._process_group,
        )
        wait_for(self._has_bucket, START_SECONDS, "the S3 server has started", pause_s=0.1)
        return self

    def _has_bucket(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"ministack ended with {self.process.returncode}")
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except urllib.error.HTTPError as refused:
            return refused.code == 409
        except OSError:
            return False
        return True

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Every key of the bucket that begins so, with the object's size."""
        found: dict[str, int] = {}
        query = {"list-type": "2", "prefix": prefix}
        while True:
            url = f"{self.endpoint}/{self.bucket}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                page = answer.read().decode()
            found |= {key: int(size) for key, size in _ENTRY.findall(page)}
            following = _FOLLOWING.search(page)
            if following is None:
                return found
            query["continuation-token"] = following.group(1)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def settings_for(endpoint: str, bucket: str) -> Mapping[str, str]:
    """The broker's settings for a bucket at an endpoint."""
    return {
        "KAFSCALE_S3_BUCKET": bucket,
        "KAFSCALE_S3_ENDPOINT": endpoint,
        "KAFSCALE_S3_PATH_STYLE": "true",
        "KAFSCALE_S3_ACCESS_KEY": "key",
        "KAFSCALE_S3_SECRET_KEY": "secret",
    }


if __name__ == "__main__":
    with S3Server() as server:
        print(server.endpoint, flush=True)
        sys.stdin.read()
