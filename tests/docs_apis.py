"""The page docs/apis.md, from the list of handlers, the heads of their files and the table of what each API takes:
`python -m tests.docs_apis`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from kafscale.protocol.acls import Operation, ResourceType
from kafscale.protocol.table import APIS
from kafscale.security.needs import ACTIONS, Grant, Need
from workers.apis import handlers
from workers.authorization import REQUIREMENTS, OnCluster, Open
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


RIGHTS = """
## What each takes

From `workers/authorization.py`; it counts where `acl_enabled` is set ([security.md](security.md#authorization)). Each
topic, group or transactional id that a request names is asked for by itself. Kafka's operation and kind of resource
come first, with the operation on the cluster that will do as well; then, in brackets, KafScale's actions, any of which
will do, `admin` being that on the cluster or on the topic by name. Who may not is told code 29 for a topic, 30 for a
group, 31 for the cluster and 53 for a transactional id; what nobody asked for by name is left out of lists. A producer
id without a transactional one is also for who may write to any topic at all (Write or `produce`; KIP-679).

| key | API | rights |
|---|---|---|
"""


def right_of(need: Need) -> str:
    """The need in Kafka's words and in KafScale's."""
    kind = {ResourceType.TRANSACTIONAL_ID: "TransactionalId"}.get(need.resource, need.resource.name.capitalize())
    other = "" if need.or_cluster is None else f" or {_words(need.or_cluster)} Cluster"
    actions = [f"`{text}`" for text, action in ACTIONS.items() if need.actions >> action & 1]
    if need.grant is Grant.ADMIN or need.or_admin:
        actions.append("`admin`")
    return f"{_words(need.operation)} {kind}{other} ({' or '.join(actions) or 'none'})"


def _words(operation: Operation) -> str:
    return operation.name.title().replace("_", "")


def rights() -> Iterator[str]:
    """The rows of the second table."""
    for handler in sorted(handlers(), key=lambda each: each.api):
        row, name = REQUIREMENTS[handler.api], APIS[handler.api].name
        needs = () if isinstance(row, Open) else (row.need,) if isinstance(row, OnCluster) else row.needs
        yield f"| {int(handler.api)} | {name} | {', '.join(map(right_of, needs)) or 'none'} |\n"


def page() -> str:
    """The whole page."""
    rows = []
    for handler in sorted(handlers(), key=lambda each: each.api):
        low, high = handler.min_version, handler.max_version
        versions = f"{low}-{high}" if low < high else str(low)
        if handler.advertised_from != low:
            versions += f" (advertised from {handler.advertised_from})"
        rows.append(f"| {int(handler.api)} | {APIS[handler.api].name} | {versions} | {description(handler)} |\n")
    return INTRODUCTION + "".join(rows) + RIGHTS + "".join(rights())


if __name__ == "__main__":
    sys.stdout.write(page())
