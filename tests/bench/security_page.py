"""docs/bench-security.md: each program that measures writes its own part of it, with date, commit and machine."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any, Final

from loadtest.measure import machine_shape

Rows = list[dict[str, Any]]

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "bench-security.md"


class SecurityPage:
    """The part of the page under `heading`, and the same on standard output as it comes."""

    def __init__(self, heading: str, target: str) -> None:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._heading = heading
        self._parts: list[str] = []
        self._add(f"## {heading}\n\nBy `make {target}`, {date}, commit {commit}, on\n{machine_shape()}.\n")

    def _add(self, text: str) -> None:
        self._parts.append(text)
        print(text, flush=True)

    def add(self, title: str, aim: str, rows: Rows) -> None:
        """A table and what it is to show."""
        self._add(f"### {title}\n\n{aim}\n\n{_table(rows)}\n")

    def write(self) -> None:
        """Put it into its place on the page, which others share."""
        begin, end = f"<!-- {self._heading}: written by a program. -->", f"<!-- End of {self._heading}. -->"
        page = PAGE.read_text() if PAGE.exists() else "# Benchmarks of security\n"
        part = begin + "\n\n" + "\n".join(self._parts) + f"\n{end}"
        if begin in page:
            before, _, rest = page.partition(begin)
            page = before + part + rest.partition(end)[2]
        else:
            page = page.rstrip() + "\n\n" + part + "\n"
        PAGE.write_text(page)


def _table(rows: Rows) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_text(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
