"""One-record produce requests: microseconds of worker CPU each, over 64 connections, one and eight at a time.

The client is one epoll loop in a process of its own. acks=all, 100-byte values, 8 partitions.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
import time
from typing import Any

from loadtest.measure import report
from loadtest.raw_requests import Requests, produce_frames, response_size
from loadtest.target import Target, add_arguments, target

CONNECTIONS = 64
PARTITIONS = 8
VALUE_BYTES = 100
DEPTHS = (1, 8)


class _Client:
    """One connection that keeps `depth` requests in flight."""

    def __init__(self, port: int, requests: Requests, size: int, depth: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._size = size
        self._partial = 0
        self.socket.sendall(requests.next(depth))

    def answers(self) -> int:
        """Read what has come; send a request for every response that is complete; returns their number."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the broker closed a connection")
        complete, self._partial = divmod(self._partial + len(data), self._size)
        if complete:
            self.socket.sendall(self._requests.next(complete))
        return complete


def run(ports: dict[int, int], topic: str, depth: int, seconds: float) -> dict[str, Any]:
    """Keep all connections busy for so long; returns requests answered and seconds."""
    requests = [
        Requests(produce_frames(topic, number % PARTITIONS, VALUE_BYTES, seed=number)) for number in range(CONNECTIONS)
    ]
    size = response_size(ports[0], requests[0])
    clients = {}
    poll = select.epoll()
    for number, mine in enumerate(requests):
        client = _Client(ports[number % PARTITIONS], mine, size, depth)
        clients[client.socket.fileno()] = client
        poll.register(client.socket.fileno(), select.EPOLLIN)
    answered = 0
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        for descriptor, _events in poll.poll(1.0):
            answered += clients[descriptor].answers()
    for client in clients.values():
        client.socket.close()
    return {"requests": answered, "seconds": elapsed}


def measure(broker: Target, seconds: float) -> list[dict[str, Any]]:
    """A row for each depth: requests a second, worker CPU share and microseconds of it per request."""
    topic = broker.create_topic(PARTITIONS)
    rows = []
    for depth in DEPTHS:
        command = [sys.executable, "-m", "loadtest.small_requests", "--bootstrap", broker.bootstrap]
        command += ["--client", topic, "--depth", str(depth)]
        subprocess.run([*command, "--seconds", "1"], stdout=subprocess.DEVNULL, check=True, timeout=120)
        before = broker.worker_cpu_seconds()
        done = subprocess.run([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, check=True, timeout=600)
        cpu = broker.worker_cpu_seconds() - before
        got = json.loads(done.stdout)
        rows.append(
            {
                "connections": CONNECTIONS,
                "in flight each": depth,
                "requests/s": int(got["requests"] / got["seconds"]),
                "worker CPU share": cpu / got["seconds"],
                "worker µs/request": cpu / got["requests"] * 1e6,
                "requests/worker CPU-s": int(got["requests"] / cpu) if cpu else 0,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=10)
    parser.add_argument("--client", metavar="TOPIC", help="only run the client against this topic; prints a JSON line")
    parser.add_argument("--depth", type=int, default=1)
    options = parser.parse_args()
    if options.client:
        ports = Target(options.bootstrap).leaders(options.client)
        print(json.dumps(run(ports, options.client, options.depth, options.seconds)))
        return
    with target(options) as broker:
        rows = measure(broker, options.seconds)
    report("one-record produce requests", rows)


if __name__ == "__main__":
    main()
