"""The examples of docs/clients.md, as the page has them, with the addresses and files of a test's broker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
LANGUAGES = {"ini": "librdkafka", "properties": "java", "python": "python"}


class Example(NamedTuple):
    """`heading` is of the section it stands in; `library` aiokafka, kafka-python, java or librdkafka."""

    heading: str
    library: str
    text: str

    def filled_in(self, replacements: dict[str, str]) -> str:
        """With other addresses, files and secrets. AssertionError for one that the page does not have anywhere."""
        text = self.text
        for old, new in replacements.items():
            text = text.replace(old, new)
        return text

    def settings(self, replacements: dict[str, str]) -> dict[str, str]:
        """Of an example in lines of NAME=VALUE."""
        return dict(line.split("=", 1) for line in self.filled_in(replacements).splitlines() if line)


def examples() -> list[Example]:
    """All of the page's, in order."""
    found = []
    heading = ""
    for match in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
            continue
        library = LANGUAGES[match[2]]
        if library == "python":
            library = "aiokafka" if "AIOKafka" in match[3] else "kafka-python"
        found.append(Example(heading, library, match[3]))
    return found
