"""A worker that serves no clients and misbehaves on demand: it speaks the control protocol and seals its log when it
drains, no more. Run as `python stub_worker.py --mode … --control-fd N`.

Modes: well; dies (exits before it serves); silent (never answers); nonsense (sends bytes that are no frame);
lingers (outlives its supervisor while a file called "stays" lies beside the data).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
from pathlib import Path

import msgspec

from kafscale.clock import SystemClock
from kafscale.control import (
    AdoptListener,
    ClusterVersion,
    CommandReply,
    CommandRequest,
    Configure,
    Drain,
    Drained,
    DropListener,
    Ping,
    Pong,
    Serving,
    StoreBroken,
    WorkerFenced,
    encode_frame,
    worker_side_reader,
)
from kafscale.coordination.cluster import apply, decode_state, decode_version
from kafscale.storage.keys import Keys
from kafscale.storage.local import LocalStore
from kafscale.storage.takeover import seal_log


class StubWorker:
    """Answers the bootstrap port with a JSON line that says who and what it is, and takes one-line orders there."""

    def __init__(self, control: socket.socket, mode: str) -> None:
        self.control = control
        self.mode = mode
        self.adopted: set[int] = set()
        self.replies: asyncio.Queue[CommandReply] = asyncio.Queue()
        self.listening: dict[int, socket.socket] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        reader, self.writer = await asyncio.open_unix_connection(sock=self.control)
        frames = worker_side_reader()
        try:
            while data := await reader.read(65536):
                for message in frames.feed(data):
                    await self.obey(message)
        except ConnectionError:
            pass  # The supervisor is gone.
        while self.mode == "lingers" and self.stays.exists():  # noqa: ASYNC110 - what is waited for is a file
            await asyncio.sleep(0.01)

    async def obey(self, message: object) -> None:
        match message:
            case Configure():
                await self.begin(message)
            case ClusterVersion(version, payload):
                self.state = apply(self.state, decode_version(payload))
                assert self.state.version == version
            case Ping(number):
                if self.mode != "silent":
                    self.say(Pong(number, True))
            case AdoptListener(worker_index):
                self.adopted.add(worker_index)
                self.listen(worker_index)
            case DropListener(worker_index):
                self.adopted.discard(worker_index)
                bound = self.listening.pop(worker_index)
                asyncio.get_running_loop().remove_reader(bound)
                bound.close()
            case CommandReply():
                self.replies.put_nowait(message)
            case Drain():
                await seal_log(self.store, self.keys, self.log_id, SystemClock(), random.Random(), "self", "drained")
                self.say(Drained())
                await self.writer.drain()
                os._exit(0)

    async def begin(self, configure: Configure) -> None:
        self.configure = configure
        self.log_id = configure.log_id
        self.state = decode_state(configure.cluster_state)
        self.store = LocalStore(Path(configure.settings.data_dir), threads=1)
        self.keys = Keys(configure.settings.cluster_namespace)
        self.stays = Path(configure.settings.data_dir).with_name("stays")
        if self.mode == "dies":
            os._exit(3)
        if self.mode == "nonsense":
            self.writer.write(b"\xff\xff\xff\xff")
            return
        if self.mode == "silent":
            return
        self.listen(configure.worker_index)
        self.say(Serving(self.state.version))

    def listen(self, index: int) -> None:
        """Accept by hand: a server of asyncio's may leave what it has just accepted unanswered when it is closed."""
        bound = socket.socket(fileno=os.dup(self.configure.sockets[0].bootstrap_fds[index]))
        bound.setblocking(False)
        bound.listen(100)
        self.listening[index] = bound
        asyncio.get_running_loop().add_reader(bound, self.accept, bound)

    def accept(self, bound: socket.socket) -> None:
        try:
            connection, _ = bound.accept()
        except BlockingIOError:
            return  # Another worker was quicker.
        task = asyncio.ensure_future(self.serve(connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        order = (await reader.readline()).decode().split()
        match order:
            case ["who"]:
                answer: object = {
                    "index": self.configure.worker_index,
                    "pid": os.getpid(),
                    "node_id": self.configure.node_id,
                    "log_id": self.log_id,
                    "version": self.state.version,
                    "topics": sorted(self.state.topics),
                    "epochs": {
                        slot: entries[-1].epoch
                        for slot, entries in enumerate(self.state.slots)
                        if entries[-1].log_id == self.log_id
                    },
                    "adopted": sorted(self.adopted),
                }
            case ["command", hex_bytes]:
                self.say(CommandRequest(7, bytes.fromhex(hex_bytes)))
                reply = await self.replies.get()
                answer = {"version": reply.version, "results": reply.results.hex(), "known": self.state.version}
            case ["broken"]:
                self.say(StoreBroken("an fsync failed"))
                await self.writer.drain()
                answer = {}
            case ["fenced"]:
                self.say(WorkerFenced("met a seal"))
                await self.writer.drain()
                answer = {}
            case _:
                answer = {"error": order}
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()
        writer.close()

    def say(self, message: Pong | Serving | CommandRequest | WorkerFenced | Drained) -> None:
        self.writer.write(encode_frame(message))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="well")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--descriptors-fd", type=int)
    given = parser.parse_args()
    mode = given.mode
    if mode.startswith("file:"):
        # The mode of the processes started from now on stands in a file, so that a test can mend what was broken.
        mode = Path(mode.removeprefix("file:")).read_text().strip()
    asyncio.run(StubWorker(socket.socket(fileno=given.control_fd), mode).run())


if __name__ == "__main__":
    main()
