"""`make bench`: every load script against a broker it starts, and the results written to docs/bench.md.

Each script gets a broker of its own with one worker on default settings and an empty directory. What is asked of the
broker (the aims) stands beside what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest import fetch_bench, idle, latency, one_address, partitions, produce_bench, small_requests
from loadtest.measure import machine_shape, report
from loadtest.target import Target, started

Rows = list[dict[str, Any]]
ROOT = Path(__file__).parent.parent

HEAD = """# Benchmarks

Written by `make bench` (`python -m loadtest.bench`). Client and broker share the machine, so rates say as much about
the client; CPU seconds per GB and microseconds per request are steadier, and ratios within one run the steadiest.

| | |
|---|---|
| date | {date} |
| commit | {commit} |
| machine | {machine} |
| broker | one worker, default settings, local directory on {file_system} |
| seconds a case | {seconds:g} |
"""

ONE_ADDRESS = """Brokers of two workers each, and the CPU time of both: clients that reach every worker, and
clients that are spread over them by one address, so that half of what they send is passed on."""


def cases(seconds: float) -> list[tuple[str, str, Callable[[Target], tuple[Rows, dict[str, Any]]]]]:
    """Title, aim, and what measures it on a broker with one worker."""
    return [
        (
            "Produce at full speed",
            "1 KB records, acks=all, 8 partitions, confluent-kafka on default batching. Aim: at least 0.7 of the MB per"
            " CPU second of librdkafka's own mock broker, which keeps records in memory; what writing, fsyncing and"
            " linking the same bytes costs a bare script stands beside it.",
            lambda broker: produce_bench.measure(broker, seconds),
        ),
        (
            "Fetch from the tail",
            "The same records, read from memory over and over. Aim: at most 0.4 CPU-s/GB.",
            lambda broker: (fetch_bench.measure(broker, seconds), {}),
        ),
        (
            "One-record produce requests",
            "64 connections, acks=all. Aim: at most 20 µs of worker CPU each, 10 µs with eight in flight.",
            lambda broker: (small_requests.measure(broker, seconds), {}),
        ),
        (
            "Latency of one-record acks=all produce requests",
            "Open loop, counted from when a request was due.",
            lambda broker: (latency.measure(broker, seconds), {}),
        ),
        (
            "Data for many partitions in one request",
            "Aim: one object each, and less than 20 % more time for 100 partitions than for one.",
            lambda broker: (partitions.measure(broker, max(2.0, seconds / 4)), {}),
        ),
        (
            "Idle connections",
            "After ApiVersions and Metadata. Aim: at most 4 KB of worker memory each.",
            lambda broker: (idle.measure(broker), {}),
        ),
    ]


def markdown(title: str, aim: str, rows: Rows, summary: dict[str, Any]) -> str:
    """A section with a table of the rows and a list of the summary."""
    lines = [f"## {title}", "", aim, ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_text(value) for value in row.values()) + " |" for row in rows]
    if summary:
        lines += ["", *(f"- {name}: {_text(value)}" for name, value in summary.items())]
    return "\n".join([*lines, ""])


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def commit() -> str:
    """The commit that is checked out, and whether anything was changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        number = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return number.stdout.strip() + (" with local changes" if changed.stdout.strip() else "")


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on."""
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long to measure each case")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench.md")
    parser.add_argument("--data-parent", type=Path, help="where the brokers put their data; default a temporary folder")
    options = parser.parse_args()
    data_parent = options.data_parent or Path("/tmp")
    parts = [
        HEAD.format(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            commit=commit(),
            machine=machine_shape(),
            file_system=file_system(data_parent),
            seconds=options.seconds,
        )
    ]
    for title, aim, measure in cases(options.seconds):
        with started(options.data_parent) as broker:
            rows, summary = measure(broker)
        printed = report(title, rows, summary)
        parts.append(markdown(title, aim, printed["rows"], {name: printed[name] for name in summary}))
    rows = one_address.measure(options.data_parent, max(2.0, options.seconds / 2))
    parts.append(markdown("Behind one address", ONE_ADDRESS, report("Behind one address", rows)["rows"], {}))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(parts))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
