"""`make soak`: minutes of every fault, and what a cluster does without etcd and without its store; the result is
docs/soak.md.

Each fault gets a cluster of its own: three brokers of two workers, a real etcd, an S3 server, and a proxy before both
of each broker. SECONDS (300) go to each of them; etcd is away for twice as long. A fault that fails is told with what
was found and counts; the others are tried all the same.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from loadtest.cluster import Cluster
from loadtest.measure import machine_shape, rounded
from tests.e2e.broker import Broker
from tests.soak.faults import FAULTS, anything
from tests.soak.stability import MEMORY_SETTINGS, without_etcd, without_s3
from tests.soak.trial import SETTINGS, endure

BROKERS, WORKERS, LEASE_TTL_MS = 3, 2, 2000
LOG_SHOWN_CHARACTERS = 4_000
ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "soak.md"
HEAD = """# Soak

Written by `make soak` (`python -m tests.soak.run --write`): brokers as processes, a real etcd, an S3 server
(ministack), a proxy before both of each broker. A numbered load of an idempotent producer and a group that commits run
throughout; after each act both must go on, and at the end everything is read back and `kafscale verify` looks at the
bucket (`tests/soak/trial.py`). CI does a few of these acts for seconds (`tests/soak/test_soak.py`).

| | |
|---|---|
| date | {date} |
| commit | {commit} |
| machine | {machine}; load average at the start {load} |
| cluster | {brokers} brokers of {workers} workers, lease {ttl:g} s |
| seconds a fault | {seconds:g} |
| seed | {seed} |
| result | {result} |
"""

Trial = Callable[[], dict[str, Any]]


def trials(seconds: float, etcd_seconds: float, seed: int) -> dict[str, dict[str, Trial]]:
    """Title of a table → name of a trial → what runs it."""

    def hurt(name: str) -> dict[str, Any]:
        act = anything if name == "any of these, mixed" else FAULTS[name]
        with _cluster() as cluster, _logs_if_it_fails(cluster):
            return endure(cluster, [act], seconds, LEASE_TTL_MS / 1000, seed)

    def still(how: Callable[[Cluster, float], dict[str, Any]], lasting: float) -> dict[str, Any]:
        with _cluster() as cluster, _logs_if_it_fails(cluster):
            return how(cluster, lasting)

    faults = {name: (lambda name=name: hurt(name)) for name in (*FAULTS, "any of these, mixed")}
    return {
        "Faults": faults,
        "Without etcd": {"etcd stopped": lambda: still(without_etcd, etcd_seconds)},
        "Without the store": {"S3 silent, producers flooding": lambda: still(without_s3, seconds)},
    }


def _cluster() -> Cluster:
    return Cluster(BROKERS, WORKERS, SETTINGS | MEMORY_SETTINGS, make=Broker, lease_ttl_ms=LEASE_TTL_MS)


@contextmanager
def _logs_if_it_fails(cluster: Cluster) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for broker in cluster.brokers:
            print(f"--- broker {broker.bootstrap}\n{broker.log()[-LOG_SHOWN_CHARACTERS:]}")
        raise


def run(tables: dict[str, dict[str, Trial]], only: str) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Rows of each table, and how many trials failed."""
    rows: dict[str, list[dict[str, Any]]] = {}
    failed = 0
    for title, named in tables.items():
        for name, trial in named.items():
            if only and only not in name:
                continue
            print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)
            try:
                row = {"": name, **trial(), "result": "clean"}
            except (AssertionError, OSError, RuntimeError, LookupError, ValueError, KafkaException) as problem:
                failed += 1
                traceback.print_exc()
                row = {
                    "": name,
                    "result": f"FAILED: {str(problem).splitlines()[0][:200] if str(problem) else problem!r}",
                }
            print(f"          {row}", flush=True)
            rows.setdefault(title, []).append({key: rounded(value) for key, value in row.items()})
    return rows, failed


def page(head: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    sections = [head]
    for title, entries in rows.items():
        columns = list(dict.fromkeys(key for entry in entries for key in entry))
        lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_text(entry.get(column, "")) for column in columns) + " |" for entry in entries]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="for each fault")
    parser.add_argument("--etcd-seconds", type=float, help="how long etcd is away; twice as long unless said")
    parser.add_argument("--only", default="", help="trials whose name contains this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    load = f"{os.getloadavg()[0]:.1f}"
    began = datetime.datetime.now(datetime.UTC)
    tables = trials(options.seconds, options.etcd_seconds or 2 * options.seconds, options.seed)
    rows, failed = run(tables, options.only)
    count = sum(map(len, rows.values()))
    result = f"{count} trials, {failed} failed"
    print(f"{result}, seed {options.seed}")
    if options.write:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        head = HEAD.format(
            date=f"{began:%Y-%m-%d %H:%M} UTC",
            commit=commit.stdout.strip() or "unknown",
            machine=machine_shape(),
            load=load,
            brokers=BROKERS,
            workers=WORKERS,
            ttl=LEASE_TTL_MS / 1000,
            seconds=options.seconds,
            seed=options.seed,
            result=result,
        )
        PAGE.write_text(page(head, rows))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
