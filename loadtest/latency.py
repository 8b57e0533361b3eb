"""Latency of one-record acks=all produce requests: at 10,000 a second, and of a light client beside a full-speed one.

Open loop: requests are due at fixed times whether or not earlier ones are answered, and a request's latency counts
from when it was due, so that a stall shows in full.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import subprocess
import sys
import time
from typing import Any

import uvloop

from loadtest.full_speed_producer import Neighbour
from loadtest.measure import percentile, report
from loadtest.raw_requests import Requests, produce_frames, response_size
from loadtest.target import Target, add_arguments, target

PARTITIONS = 8
VALUE_BYTES = 100
TICK_S = 0.001
LIGHT_RATE = 100
LIMITS_MS = {"10,000 a second": 5.0, "light client beside a full-speed producer": 50.0}


class _Connection(asyncio.Protocol):
    """One connection: when each unanswered request was due, and how long the answered ones took."""

    def __init__(self, requests: Requests, size: int, took: list[float]) -> None:
        self._requests = requests
        self._size = size
        self._took = took
        self._due: collections.deque[float] = collections.deque()
        self._partial = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def send(self, due: float) -> None:
        assert self._transport is not None
        self._due.append(due)
        self._transport.write(self._requests.next())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        complete, self._partial = divmod(self._partial + len(data), self._size)
        for _ in range(complete):
            self._took.append(now - self._due.popleft())

    @property
    def unanswered(self) -> int:
        return len(self._due)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


async def open_loop(ports: dict[int, int], topic: str, rate: float, connections: int, seconds: float) -> list[float]:
    """Send at a steady rate for so long; returns the latencies in seconds, sorted, the first second left out."""
    loop = asyncio.get_running_loop()
    took: list[float] = []
    opened = []
    for number in range(connections):
        requests = Requests(produce_frames(topic, number % PARTITIONS, VALUE_BYTES, seed=number))
        size = await asyncio.to_thread(response_size, ports[number % PARTITIONS], requests)
        made = _Connection(requests, size, took)
        await loop.create_connection(lambda made=made: made, "127.0.0.1", ports[number % PARTITIONS])
        opened.append(made)
    gc.freeze()
    gc.disable()  # The client's own pauses are not the broker's.
    began = time.perf_counter()
    sent = 0
    warm = 0
    while (elapsed := time.perf_counter() - began) < seconds + 1:
        if elapsed < 1:
            warm = sent
        while sent < elapsed * rate:
            opened[sent % connections].send(began + sent / rate)
            sent += 1
        await asyncio.sleep(TICK_S)
    deadline = time.perf_counter() + 30
    while any(one.unanswered for one in opened):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{sum(one.unanswered for one in opened)} requests were never answered")
        await asyncio.sleep(TICK_S)
    for one in opened:
        one.close()
    return sorted(took[warm:])


def client(bootstrap: str, topic: str, rate: float, connections: int, seconds: float) -> dict[str, Any]:
    """`open_loop` as a row, in milliseconds."""
    ports = Target(bootstrap).leaders(topic)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took = runner.run(open_loop(ports, topic, rate, connections, seconds))
    row: dict[str, Any] = {"requests": len(took)}
    for name, share in (("p50 ms", 0.5), ("p99 ms", 0.99), ("p999 ms", 0.999), ("max ms", 1.0)):
        row[name] = percentile(took, share) * 1000
    return row


def _client_process(bootstrap: str, topic: str, rate: float, connections: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtest.latency", "--bootstrap", bootstrap, "--client", topic]
    command += ["--rate", str(rate), "--connections", str(connections), "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 120)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure(broker: Target, seconds: float, rate: float = 10_000) -> list[dict[str, Any]]:
    """A row for the steady rate and one for the light client beside a full-speed producer."""
    topic = broker.create_topic(PARTITIONS)
    steady = _client_process(broker.bootstrap, topic, rate, 64, seconds)
    busy = broker.create_topic(PARTITIONS)
    with Neighbour(broker.bootstrap, busy) as neighbour:
        light = _client_process(broker.bootstrap, topic, LIGHT_RATE, 1, seconds)
    rows = []
    for (case, limit), row in zip(LIMITS_MS.items(), (steady, light), strict=True):
        rows.append({"case": case} | row | {"p99 aim ms": limit})
    if neighbour.result:
        rate_mb = neighbour.result["bytes"] / neighbour.result["seconds"] / 1e6
        rows[1]["case"] += f" ({rate_mb:.0f} MB/s)"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=10)
    parser.add_argument("--rate", type=float, default=10_000, help="requests a second")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--client", metavar="TOPIC", help="only run the client against this topic; prints a JSON line")
    options = parser.parse_args()
    if options.client:
        row = client(options.bootstrap, options.client, options.rate, options.connections, options.seconds)
        print(json.dumps(row))
        return
    with target(options) as broker:
        rows = measure(broker, options.seconds, options.rate)
    report("produce latency", rows)


if __name__ == "__main__":
    main()
