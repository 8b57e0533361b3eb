"""Goal: docs/security-cases.md promises no test that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_is_named_is_there() -> None:
    """File and function; and every row names at least one."""
    page = (ROOT / "docs" / "security-cases.md").read_text().partition("## Long runs")[0]
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| what is tried")]
    assert len(rows) > 40
    functions: dict[str, set[str]] = {}
    for row in rows:
        named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", row)
        assert named, row
        for path, function in named:
            if path not in functions:
                tree = ast.parse((ROOT / path).read_text())
                functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in functions[path], f"{path}::{function}"
