"""`make demo`: the flights of New York in 2013 through a broker, with progress shown and the rates printed.

Starts a broker of its own unless `--bootstrap` names one. All flights go through confluent-kafka, a tenth of them
through aiokafka and kafka-python; each time a group of three reads them back, one member leaves half-way, and what was
read is compared with what was sent, byte for byte. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest import flights_aiokafka, flights_confluent, flights_kafka_python
from loadtest.broker_process import BrokerProcess
from loadtest.flights import Flight, differences, load

PARTITIONS = 12
CLIENTS: list[tuple[str, ModuleType, float]] = [
    ("confluent-kafka", flights_confluent, 1.0),
    ("aiokafka", flights_aiokafka, 0.1),
    ("kafka-python", flights_kafka_python, 0.1),
]


@contextlib.contextmanager
def broker_address(bootstrap: str | None, workers: int, console: Console) -> Iterator[str]:
    """The address that was given, or that of a broker started for the demo."""
    if bootstrap:
        yield bootstrap
        return
    began = time.monotonic()
    with BrokerProcess(workers=workers) as broker:
        took = time.monotonic() - began
        console.print(f"started kafscale with {workers} workers on {broker.bootstrap} in {took:.2f} s")
        yield broker.bootstrap


def timed(
    progress: Progress, label: str, total: int, step: Callable[[Callable[[int], None]], Any]
) -> tuple[Any, float]:
    """Run a step with a progress bar; returns what it returned and the seconds it took."""
    task = progress.add_task(label, total=total)
    began = time.monotonic()
    result = step(lambda done: progress.update(task, completed=done))
    progress.update(task, completed=total)
    return result, time.monotonic() - began


def one_client(
    progress: Progress, name: str, client: ModuleType, bootstrap: str, flights: Sequence[Flight]
) -> tuple[list[str], list[str]]:
    """Send and read back with one client; returns a row of the table and what was wrong."""
    topic = f"flights-{name}-{uuid.uuid4().hex[:8]}"
    flights_confluent.create_topic(bootstrap, topic, PARTITIONS)
    count = len(flights)
    _, sending_s = timed(progress, f"{name}: send", count, lambda p: client.produce(bootstrap, topic, flights, p))
    processed, reading_s = timed(
        progress,
        f"{name}: read by a group of 3, one leaves",
        count,
        lambda p: client.consume(bootstrap, topic, f"demo-{topic}", count, progress=p),
    )
    problems = differences(flights, processed)
    megabytes = sum(len(flight.value) for flight in flights) / 1e6
    shares = [sum(1 for record in processed if record.member == member) for member in range(3)]
    row = [
        name,
        f"{count:,}",
        f"{count / sending_s:,.0f}/s, {megabytes / sending_s:.1f} MB/s",
        f"{count / reading_s:,.0f}/s, {megabytes / reading_s:.1f} MB/s",
        " + ".join(f"{share:,}" for share in shares),
        "the same" if not problems else f"[red]{len(problems)} differences",
    ]
    return row, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", help="a running broker; without it one is started")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    console = Console()
    with console.status("loading the flights"):
        flights = load()
    console.print(f"{len(flights):,} flights, {sum(len(f.value) for f in flights) / 1e6:.0f} MB of JSON")
    table = Table("client", "flights", "sent", "read", "by member", "records, order, bytes")
    wrong: list[str] = []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        broker_address(options.bootstrap, options.workers, console) as bootstrap,
        Progress(*columns, console=console) as progress,
    ):
        for name, client, share in CLIENTS:
            row, problems = one_client(progress, name, client, bootstrap, flights[: int(len(flights) * share)])
            table.add_row(*row)
            wrong += problems
    console.print(table)
    for problem in wrong:
        console.print(f"[red]{problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
