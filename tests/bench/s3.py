"""`make bench-s3`: everything that is measured on S3 and etcd, and the results written to docs/bench-s3.md.

Each script builds its own cluster of processes on an S3 server (ministack), with a proxy that delays or caps it where
that is said. In all it takes about twelve minutes. What was asked of the broker (the aims) stands beside what was
measured.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest import interruptions, s3_acknowledge, s3_cold_reads, s3_flushes
from loadtest.bench import ROOT, Rows, commit, markdown
from loadtest.measure import machine_shape, report
from tests.bench import day, takeover

HEAD = """# Benchmarks on S3 and etcd

Written by `make bench-s3` (`python -m tests.bench.s3`). Brokers, clients, etcd, proxies and the S3 server share the
machine, so seconds say as much about it as about the broker; numbers of requests do not.

| | |
|---|---|
| date | {date} |
| commit | {commit} |
| machine | {machine} |
| load average | {load} at the start |
| S3 server | ministack, in memory, on the same machine |
"""

Section = tuple[str, str, Rows]


def flushes() -> list[Section]:
    puts, money = s3_flushes.measure(20)
    return [
        (
            "PUTs do not follow partitions",
            "Three brokers of two workers, 1,000 active partitions, flush interval 250 ms; all PUTs of a worker's log,"
            " its checkpoints too. Aim: at most 4 a second below 16 MiB/s, none when nobody writes.",
            puts,
        ),
        (
            "Money at saturation",
            "All requests, from the first record until compaction has nothing left to do, at AWS's prices ($5 a million"
            " PUTs, $0.40 a million GETs). On few cores six workers together take no more than one does, and each pays"
            " for a PUT an interval: so one worker stands beside them. Aim: at most $0.0015 per GiB.",
            money,
        ),
    ]


def acknowledgements() -> list[Section]:
    aim = (
        "From a flush's oldest record: (time to acknowledge less the flush interval) ÷ (time of one PUT of a bare"
        " client), through a proxy that delays the store. Aim: at most 1.2 at p50 and 2 at p99."
    )
    return [("Time to acknowledge", aim, s3_acknowledge.measure(30))]


def cold_reads() -> list[Section]:
    aim = (
        "2 GiB that are in nobody's memory, from a store capped at 100 MB/s. Aim: 80 % of what a bare client reads of"
        " the same objects; three groups that drain together cost no more GETs than one."
    )
    return [("Draining older data", aim, s3_cold_reads.measure(2))]


def takeovers() -> list[Section]:
    aim = (
        "10,000 partitions whose manifests describe 100 GiB, 120 flushes since the last checkpoints, a store delayed by"
        " 20 ms: from the notice that the broker is lost until every partition has taken a record; all requests count."
        " Aim: 5 s and 500 requests."
    )
    return [("Taking over a lost broker", aim, takeover.measure(10_000, 100, 20, 2, 60))]


def moves() -> list[Section]:
    aim = (
        "Sixteen partitions, each with a client that writes one record after the other, at a 50 ms store and a lease of"
        " 2 s: the longest time between two acknowledgements, less what is usual. Aim: 1 s for what is planned, 2 s"
        " for a lost worker, the lease and 3 s for a lost broker."
    )
    return [("Interruptions", aim, interruptions.measure())]


def days() -> list[Section]:
    rows = [
        {
            "hour": number,
            "flushes": look.flushes,
            "objects": sum(look.objects.values()),
            "PUTs": sum(count for name, count in look.requests.items() if name.startswith("put/")),
            "dollars": round(look.dollars(), 3),
        }
        for number, look in enumerate(day.run(24, 40, 250), 1)
        if number in (1, 2, 4, 8, 12, 16, 20, 24)
    ]
    aim = (
        "One worker in virtual time, a small record for some of 40 partitions every 250 ms, no retention. Aim: the"
        " number of objects in the bucket stays bounded."
    )
    return [("A day of flushes", aim, rows)]


CASES: dict[str, Callable[[], list[Section]]] = {
    "flushes": flushes,
    "acknowledge": acknowledgements,
    "cold-reads": cold_reads,
    "takeover": takeovers,
    "interruptions": moves,
    "day": days,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench-s3.md")
    options = parser.parse_args()
    parts = [
        HEAD.format(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            commit=commit(),
            machine=machine_shape(),
            load=", ".join(f"{load:.1f}" for load in os.getloadavg()),
        )
    ]
    for name in options.only:
        began = time.monotonic()
        for title, aim, rows in CASES[name]():
            printed: dict[str, Any] = report(title, rows)
            parts.append(markdown(title, aim, printed["rows"], {}))
        print(f"{name}: {time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    options.out.write_text("\n".join(parts))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
