"""The file map in docs/ARCHITECTURE.md, one line per module from the head of its file: `python -m tests.docs_file_map`
writes it anew, between its two marks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
PACKAGES = ("supervisor", "workers", "kafscale")
BEGIN = "<!-- The file map: written by `make docs`, not by hand. -->\n"
END = "<!-- End of the file map. -->\n"

# A sentence ends at a full stop (perhaps in a bracket or quotation) before a capital letter, or with its paragraph.
SENTENCE = re.compile(r".+?(?:[.]\)?(?=\s+[A-Z`])|$)")


def modules() -> list[Path]:
    """Every module of production code, in the order of the map."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(found, key=lambda path: (PACKAGES.index(path.relative_to(ROOT).parts[0]), path.parent, path.name))


def first_sentence(path: Path) -> str:
    """What the module's docstring says first. Raises ValueError without one."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(f"{path} does not open with a paragraph that says what it owns")
    found = SENTENCE.match(" ".join(text.split("\n\n")[0].split()))
    assert found is not None
    return found[0].rstrip(":")


def file_map() -> str:
    """The map: a heading for each folder, a line for each file."""
    lines: list[str] = []
    folder = None
    for path in modules():
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"### {folder.relative_to(ROOT)}/", ""]
        lines.append(f"- `{path.name}`: {first_sentence(path)}")
    return "\n".join(lines[1:]) + "\n"


def split(page: str) -> tuple[str, str, str]:
    """What stands before the map, the map, and what stands after it."""
    before, found, rest = page.partition(BEGIN)
    within, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{PAGE} lacks the marks of the file map")
    return before + BEGIN, within, END + after


if __name__ == "__main__":
    before, _, after = split(PAGE.read_text())
    PAGE.write_text(f"{before}\n{file_map()}\n{after}")
