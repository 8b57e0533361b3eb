"""S3 servers for tests: moto, which honours conditional writes, and rclone's, which ignores them.

Each is a process of its own on a port that was free, ended when the context is. moto keeps objects in memory, rclone as
files. moto by itself looks for the key and then writes, and lets two of many threads win now and then: so conditional
PUTs pass one at a time here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.s3_server import settings_for

START_SECONDS = 60.0
_MOTO = """
import io, sys, threading
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()
def app(environ, start_response):
    if "HTTP_IF_NONE_MATCH" not in environ:
        return moto(environ, start_response)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    with one_at_a_time:
        return list(moto(environ, start_response))
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
server.serve_forever()
"""


@contextmanager
def moto() -> Iterator[str]:
    """The endpoint of a server without buckets. It ends with this process even if that is killed."""
    command = [sys.executable, "-c", _MOTO]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def rclone(root: Path) -> Iterator[str]:
    """The endpoint of a server whose buckets are the folders of `root`; its key is "key", the secret "secret"."""
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", "key,secret", "-v", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"Starting s3 server on \[(http://[\d.:]+)", line):
                break
        else:
            raise RuntimeError("rclone did not start")
        yield found.group(1)
    finally:
        process.kill()
        process.communicate()


def make_bucket(endpoint: str, name: str) -> str:
    """Make a bucket; returns its name."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=START_SECONDS).close()
    return name


def in_bucket(endpoint: str, bucket: str) -> dict[str, str]:
    """A test broker's settings for a bucket."""
    # A flush in a test need not save money.
    return {**settings_for(endpoint, bucket), "KAFSCALE_FLUSH_INTERVAL_MS": "20"}
