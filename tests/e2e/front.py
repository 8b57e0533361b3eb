"""One address in front of several: a TCP proxy that deals connections out in turn, as a load balancer does.

A process of its own, so that it never waits for the tests. It knows bytes only. A backend that refuses is passed over.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Self

_PROXY = """
import asyncio, sys

backends = [address.rpartition(":") for address in sys.argv[1:]]
turn = 0

async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def serve(reader, writer):
    global turn
    for _ in backends:
        host, _, port = backends[turn % len(backends)]
        turn += 1
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            continue
        await asyncio.gather(pump(reader, back), pump(there, writer))
        return
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


class Front:
    """Use as a context; `address` is what clients are given."""

    def __init__(self, backends: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROXY, *backends], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
