"""Goal: what a supervisor tells a worker by its pings is true: they are the worker's lease."""

from __future__ import annotations

import asyncio
import socket
import subprocess

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.control import Configure, Ping, Pong, encode_frame, worker_side_reader
from kafscale.coordination.cluster import ClusterState, encode_state
from supervisor.child import Child

CONFIGURE = Configure(
    settings=Settings(),
    worker_index=0,
    node_id=0,
    log_id="00" * 16,
    cluster_state=encode_state(ClusterState(version=1, cluster_id="c", slot_count=1)),
    nodes=[],
    sockets=[],
    metrics_fd=-1,
)


class WorkerSide:
    """The other end of a child's control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._reader = worker_side_reader()

    async def ping(self) -> Ping:
        """The next ping."""
        while True:
            data = await asyncio.get_running_loop().sock_recv(self._control, 1 << 16)
            for message in self._reader.feed(data):
                if isinstance(message, Ping):
                    return message

    async def answer(self, ping: Ping) -> None:
        await asyncio.get_running_loop().sock_sendall(self._control, encode_frame(Pong(ping.number, True)))


def test_pings_tell_when_the_worker_was_last_heard() -> None:
    """Goal: an answer renews the lease, a ping alone does not: else a worker that hangs, and is replaced because it was
    silent, would after its revival take the pings that piled up meanwhile for a lease."""

    async def main(process: subprocess.Popen[bytes], ours: socket.socket, theirs: socket.socket) -> None:
        clock = SystemClock()
        child = Child(process, ours, clock)
        worker = WorkerSide(theirs)
        try:
            await child.connect()
            before = clock.monotonic()
            child.configure(CONFIGURE, hang_seconds=1.0)
            first = await worker.ping()
            assert before <= first.heard_at <= clock.monotonic()
            silent = await worker.ping()
            assert silent.heard_at == first.heard_at
            answered = clock.monotonic()
            await worker.answer(silent)
            # One may have been on its way already.
            renewed = [await worker.ping(), await worker.ping()][-1]
            assert answered <= renewed.heard_at <= clock.monotonic()
        finally:
            child.kill()
            await child.gone

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with subprocess.Popen(["sleep", "60"]) as process, theirs:
        asyncio.run(asyncio.wait_for(main(process, ours, theirs), 20))
