"""librdkafka's own mock broker (in memory, in C) in a process of its own, as the yardstick for a broker's CPU cost.

Run as a program it prints its address, creates the topic it was asked for and serves until its stdin closes. Its work
is done by one thread, named rdk:mock, whose CPU time `MockBroker.cpu_seconds` reads. The mock API is not part of the
Python binding, so it is called in the C library that the binding carries, after librdkafka's rdkafka_mock.h.
"""

from __future__ import annotations

import ctypes
import glob
import subprocess
import sys
from pathlib import Path
from typing import Self

import confluent_kafka

from loadtest.measure import thread_cpu_seconds

RD_KAFKA_PRODUCER = 0


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = glob.glob(str(folder / "librdkafka*.so*"))
    if not found:
        raise RuntimeError(f"no librdkafka in {folder}: confluent-kafka was not installed from its wheel")
    return ctypes.CDLL(found[0])


def serve(topic: str, partitions: int) -> None:
    """Serve a mock cluster of one node with one topic until stdin closes."""
    library = _library()
    for name in ("rd_kafka_new", "rd_kafka_mock_cluster_new", "rd_kafka_conf_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    handle = library.rd_kafka_new(RD_KAFKA_PRODUCER, ctypes.c_void_p(library.rd_kafka_conf_new()), error, 512)
    if not handle:
        raise RuntimeError(error.value.decode())
    cluster = library.rd_kafka_mock_cluster_new(ctypes.c_void_p(handle), 1)
    if not cluster:
        raise RuntimeError("librdkafka could not create a mock cluster")
    if code := library.rd_kafka_mock_topic_create(ctypes.c_void_p(cluster), topic.encode(), partitions, 1):
        raise RuntimeError(f"librdkafka could not create the topic: error {code}")
    print(library.rd_kafka_mock_cluster_bootstraps(ctypes.c_void_p(cluster)).decode(), flush=True)
    sys.stdin.buffer.read()


class MockBroker:
    """A mock broker process with one topic; use it in a `with` statement."""

    def __init__(self, topic: str = "bench", partitions: int = 8) -> None:
        self.topic = topic
        self.partitions = partitions

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "loadtest.mock_broker", self.topic, str(self.partitions)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.bootstrap = self._process.stdout.readline().decode().strip()
        if not self.bootstrap:
            self.__exit__()
            raise RuntimeError("the mock broker did not start")
        return self

    def cpu_seconds(self) -> float:
        return thread_cpu_seconds(self._process.pid, "rdk:mock")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
