"""The broker that a load script measures: one it starts, or one that runs already.

`--broker-json` names the file of a running broker (its worker's CPU can then be measured), `--bootstrap` only an
address; with neither a broker with one worker is started for the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest import wire
from loadtest.broker_process import BrokerProcess, supervisor_pid_in, wait_for, worker_pids_in
from loadtest.measure import main_thread_cpu_seconds, process_cpu_seconds, resident_bytes


@dataclass(frozen=True)
class Target:
    """Where to connect, whose CPU and memory to read, and where the objects lie (both unknown for a bare address)."""

    bootstrap: str
    worker_pids: tuple[int, ...] = ()
    supervisor_pid: int | None = None
    data_dir: Path | None = None

    @property
    def port(self) -> int:
        return int(self.bootstrap.rpartition(":")[2])

    def worker_cpu_seconds(self) -> float:
        return sum(process_cpu_seconds(pid) for pid in self.worker_pids)

    def loop_cpu_seconds(self) -> float:
        """The part of the workers' CPU time that their event loops used."""
        return sum(main_thread_cpu_seconds(pid) for pid in self.worker_pids)

    def supervisor_cpu_seconds(self) -> float:
        return process_cpu_seconds(self.supervisor_pid) if self.supervisor_pid else 0.0

    def worker_resident_bytes(self) -> int:
        return sum(resident_bytes(pid) for pid in self.worker_pids)

    def objects(self) -> dict[str, int]:
        """Every object of a worker's log, with its size."""
        if self.data_dir is None:
            return {}
        found = {}
        for path in self.data_dir.rglob("*"):
            if path.parent.parent.name == "log" and path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    found[str(path)] = path.stat().st_size
        return found

    def create_topic(self, partitions: int = 8, name: str = "bench") -> str:
        """Create a topic with a name of its own and wait until all its partitions have leaders."""
        topic = f"{name}-{uuid.uuid4().hex[:8]}"
        with wire.Connection(self.port) as connection:
            if code := wire.create_topic(connection, topic, partitions):
                raise RuntimeError(f"creating {topic} failed with error {code}")
            wait_for(lambda: len(wire.leaders(connection, topic)) == partitions, 60, f"leaders of {topic}")
        return topic

    def leaders(self, topic: str) -> dict[int, int]:
        """The port of each partition's leader."""
        with wire.Connection(self.port) as connection:
            return wire.leaders(connection, topic)


def from_broker_json(path: Path) -> Target:
    info = json.loads(path.read_bytes())
    return Target(
        bootstrap=info["advertised"],
        worker_pids=tuple(worker_pids_in(info)),
        supervisor_pid=supervisor_pid_in(info),
        data_dir=path.resolve().parent,
    )


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--seconds", type=float, default=seconds, help="how long to measure each case")
    parser.add_argument("--bootstrap", help="address of a running broker; its CPU is then not measured")
    parser.add_argument("--broker-json", type=Path, help="broker.json in the data directory of a running broker")
    parser.add_argument("--data-parent", type=Path, help="where a broker that is started puts its data")


@contextlib.contextmanager
def target(options: argparse.Namespace) -> Iterator[Target]:
    """The target that the arguments ask for."""
    if options.broker_json:
        yield from_broker_json(options.broker_json)
    elif options.bootstrap:
        yield Target(options.bootstrap)
    else:
        with started(options.data_parent) as found:
            yield found


@contextlib.contextmanager
def started(
    data_parent: Path | None = None, workers: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """A broker, with one worker and on default settings unless told otherwise, for as long as the block runs."""
    data_dir = data_parent / f"kafscale-{uuid.uuid4().hex[:8]}" if data_parent else None
    with BrokerProcess(workers, data_dir, environment) as broker:
        yield from_broker_json(broker.data_dir / "broker.json")
