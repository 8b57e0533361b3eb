"""The page docs/apis.md, from the list of handlers and the heads of their files: `python -m tests.docs_apis`."""

from __future__ import annotations

import inspect
import re
import sys

from kafscale.protocol.table import APIS
from workers.apis import handlers
from workers.dispatch import AnyHandler

# How the head of a handler's file begins.
HEAD = re.compile(r"(?P<name>\w+) \(key (?P<key>\d+)\), v(?:ersions? )?(?P<low>\d+)(?:(?: to |-)(?P<high>\d+))?[:;.] ")

INTRODUCTION = """\
# Kafka APIs

Written by `python -m tests.docs_apis` from `workers/apis.py` and the heads of the files in `workers/handlers/`; do not
edit by hand. Versions are those that are served; a client that asks for another, or for an API that is not listed, has
its connection closed, as by Kafka (ApiVersions alone is answered in any version). Every worker serves every API; what
concerns a partition or a group is for the worker that leads it, whom Metadata and FindCoordinator name.

| key | API | versions | what it does, and what is left out |
|---|---|---|---|
"""


def description(handler: AnyHandler) -> str:
    """The first paragraph of the head of the handler's file, and what follows "Left out". Raises ValueError where the
    head does not say the API, its key and the versions that are served."""
    module = inspect.getmodule(handler.handle)
    text = " ".join((inspect.getdoc(module) or "").replace("\n\n", "\0").split()).replace("\0", " ¶ ")
    head = HEAD.match(text)
    said = head and (head["name"], int(head["key"]), int(head["low"]), int(head["high"] or head["low"]))
    served = (APIS[handler.api].name, int(handler.api), handler.min_version, handler.max_version)
    if head is None or said != served:
        raise ValueError(f"the head of {module} says {said}, served is {served}")
    first, *rest = text[head.end() :].split(" ¶ ")
    parts = [first[0].upper() + first[1:]]
    for paragraph in rest:
        found = re.search(r"(?:^|(?<=\. ))(Left out: .*|Nothing is left out\.)", paragraph)
        if found is not None:
            parts.append(found[0])
    return " ".join(parts).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    rows = []
    for handler in sorted(handlers(), key=lambda each: each.api):
        low, high = handler.min_version, handler.max_version
        versions = f"{low}-{high}" if low < high else str(low)
        if handler.advertised_from != low:
            versions += f" (advertised from {handler.advertised_from})"
        rows.append(f"| {int(handler.api)} | {APIS[handler.api].name} | {versions} | {description(handler)} |\n")
    return INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(page())
