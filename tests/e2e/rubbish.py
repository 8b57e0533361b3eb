"""Sends random and truncated frames on many connections until stdin closes: a bad neighbour in a process of its own.

Usage: python -m tests.e2e.rubbish PORT CONNECTIONS. Prints a line when all connections are busy, and at the end the
number of frames sent. It sends some two thousand frames a second, so that it does not take the processor from those
whose latency is measured.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import sys
import threading

from kio.index import load_request_schema

from loadtest import wire


def frames(seed: int) -> list[bytes]:
    """A mixture: random bytes, random bodies behind good headers, valid requests cut short or with flipped bytes."""
    choose = random.Random(seed)
    made = []
    versions = [pair for pair in wire.request_versions() if pair[0] < 51]
    for _ in range(500):
        key, version = choose.choice(versions)
        schema = load_request_schema(key, version)
        valid = wire.header(schema) + wire.encode(wire.example(schema, wire.batch()))
        kind = choose.randrange(5)
        if kind == 0:
            made.append(choose.randbytes(choose.randrange(1, 300)))
        elif kind == 1:
            made.append(wire.frame(wire.header(schema) + choose.randbytes(choose.randrange(0, 300))))
        elif kind == 2:
            made.append(wire.frame(valid[: choose.randrange(len(valid))]))
        elif kind == 3:
            flipped = bytearray(valid)
            for _flip in range(choose.randrange(1, 5)):
                flipped[choose.randrange(len(flipped))] ^= 1 << choose.randrange(8)
            made.append(wire.frame(bytes(flipped)))
        else:
            # The size says more than comes: the rest of the frame is the next one's beginning.
            made.append(struct.pack(">i", len(valid) + choose.randrange(1, 5_000)) + valid)
    return made


def attack(port: int, connections: int, stop: threading.Event) -> int:
    """Keep so many connections busy until told to stop; returns the number of frames sent."""
    choose = random.Random(1)
    rubbish = frames(2)
    selector = selectors.DefaultSelector()
    sent = 0

    def connect() -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", port))
        opened.setblocking(False)
        selector.register(opened, selectors.EVENT_READ)
        return opened

    open_ones = [connect() for _ in range(connections)]
    announced = False
    while not stop.wait(0.01):
        for index in choose.sample(range(connections), min(20, connections)):
            try:
                open_ones[index].send(choose.choice(rubbish))
                sent += 1
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(open_ones[index])
                open_ones[index].close()
                open_ones[index] = connect()
        for key, _events in selector.select(0):
            try:
                if key.fileobj.recv(65_536):  # type: ignore[union-attr]
                    continue
            except OSError:
                pass
            selector.unregister(key.fileobj)
            index = open_ones.index(key.fileobj)  # type: ignore[arg-type]
            open_ones[index].close()
            open_ones[index] = connect()
        if not announced and sent > connections:
            announced = True
            print("busy", flush=True)
    for one in open_ones:
        one.close()
    return sent


def main() -> None:
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    print(attack(int(sys.argv[1]), int(sys.argv[2]), stop), flush=True)


if __name__ == "__main__":
    main()
