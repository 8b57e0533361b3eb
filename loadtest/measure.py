"""What the load scripts share in measuring and reporting: CPU time from /proc, percentiles, a table and a JSON line.

It knows nothing of brokers or of the Kafka protocol, and imports nothing of the broker's own code.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MB = 1_000_000
GB = 1_000_000_000


def _ticks_of(stat: str) -> int:
    """utime + stime of a /proc stat line (proc(5), fields 14 and 15); the name in brackets may hold spaces."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])


def process_cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, its ended threads included; resolution one tick (mostly 10 ms)."""
    return _ticks_of(Path(f"/proc/{pid}/stat").read_text()) / TICKS_PER_SECOND


def thread_cpu_seconds(pid: int, name_prefix: str) -> float:
    """CPU seconds of a process's live threads whose name begins with `name_prefix`.

    Raises:
        LookupError: no such thread.
    """
    ticks, found = 0, False
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith(name_prefix):
            found = True
            ticks += _ticks_of((task / "stat").read_text())
    if not found:
        raise LookupError(f"process {pid} has no thread named {name_prefix}…")
    return ticks / TICKS_PER_SECOND


def main_thread_cpu_seconds(pid: int) -> float:
    """CPU seconds of a process's first thread: of a worker, the event loop's."""
    return _ticks_of(Path(f"/proc/{pid}/task/{pid}/stat").read_text()) / TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), statm field 2)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of an ascending sequence lies; nan if it is empty."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine_shape() -> str:
    """The machine in a few words: processor, usable cores, memory, kernel."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {memory / 2**30:.0f} GiB, Linux {platform.release()}"


def rounded(value: Any) -> Any:
    """Floats with four significant digits, so that tables and JSON lines stay readable."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def report(name: str, rows: Sequence[dict[str, Any]], summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """Print rows (dicts with the same keys) as a table, then everything as one JSON line; return what was printed."""
    clean = [{key: rounded(value) for key, value in row.items()} for row in rows]
    result: dict[str, Any] = {"name": name, "rows": clean}
    result |= {key: rounded(value) for key, value in (summary or {}).items()}
    table = Table(title=name)
    for key in clean[0] if clean else ():
        table.add_column(key, justify="right")
    for row in clean:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps(result), flush=True)
    return result
