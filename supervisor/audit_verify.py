"""`kafscale audit verify`: reads an audit log and names the first record that was changed, removed, moved, doubled or
cut off.

What is read: the file that the settings name, with what rotation made of it; or the files given; or, for `-`, standard
input. Anchors come from the bucket that the settings name: without them nobody can tell that records are missing at
the end, or that all of them were made anew. It only reads, also while the broker writes. Exit code 0: all is well; 1:
something is wrong, or could not be read.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import orjson

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.errors import StartError, UsageError
from kafscale.security.audit_chain import LINE_BYTES_MAX, ChainLink, read_record
from kafscale.security.audit_verification import ChainReport, Line, verify_lines
from kafscale.storage.keys import Keys
from supervisor.audit_anchors import anchors_of_all
from supervisor.audit_file import rotated_files
from supervisor.audit_sinks import FILE_NAME
from supervisor.progress import Progress
from supervisor.read_store import open_for_reading

STDIN: Final = "-"
_RECORD_START: Final = b'{"seq":'


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`files`: paths, or "-"; none for those of the settings. `any_order`: what was read from a topic. `strict`: notes
    count as findings."""

    files: tuple[str, ...] = ()
    any_order: bool = False
    without_anchors: bool = False
    strict: bool = False
    as_json: bool = False


def run(settings: Settings, options: Options) -> int:
    """Print what was found. Raises KafscaleError."""
    is_whole = not options.files
    if options.any_order and is_whole:
        raise UsageError("--any-order is for lines from a topic: name a file of them, or - for standard input")
    paths = _paths(settings) if is_whole else list(options.files)
    anchors: dict[str, list[ChainLink]] = {}
    if not options.without_anchors:
        if settings.s3_bucket is None and not Path(settings.data_dir).is_dir():
            where = f"there is no data directory {settings.data_dir} to read the anchors from"
            raise StartError(f"{where}; --no-anchors does without them")
        anchors = asyncio.run(_anchors(settings))
    if options.files and STDIN not in options.files:
        # A file of one broker says nothing of the others'.
        chains = {record_chain for path in paths if (record_chain := _first_chain(path))}
        anchors = {chain: links for chain, links in anchors.items() if chain in chains}
    elif is_whole:
        own = f"/{settings.broker_id}"
        anchors = {chain: links for chain, links in anchors.items() if chain.endswith(own)}
    reports = verify_lines(_lines(paths), anchors, is_whole=is_whole, is_ordered=not options.any_order)
    if not reports:
        raise StartError(f"there is no record in {', '.join(paths)}, and no anchor of one")
    show = _as_json if options.as_json else _as_text
    for report in sorted(reports, key=lambda report: report.chain):
        for line in show(report):
            print(line)
    is_bad = any(report.findings or (options.strict and report.notes) for report in reports)
    return 1 if is_bad else 0


def _paths(settings: Settings) -> list[str]:
    if settings.audit_file is None:
        path = Path(settings.data_dir).absolute() / FILE_NAME
    else:
        path = Path(settings.audit_file).absolute()
    found = [*rotated_files(path), *([path] if path.exists() else [])]
    if not found:
        raise StartError(f"there is no audit log {path}; name the files, or - for standard input")
    return [str(one) for one in found]


async def _anchors(settings: Settings) -> dict[str, list[ChainLink]]:
    clock, source = SystemClock(), random.Random()  # nosec B311
    store = open_for_reading(settings, clock, source, Progress(clock))
    try:
        found: dict[str, list[ChainLink]] = {}
        for anchor in await anchors_of_all(store, Keys(settings.cluster_namespace)):
            found.setdefault(anchor.chain, []).append(anchor.link)
        return found
    finally:
        await store.close()


def _first_chain(path: str) -> str | None:
    for line in _lines([path]):
        record = read_record(line.content)
        if record is not None and record.is_intact:
            return record.chain
    return None


def _lines(paths: Sequence[str]) -> Iterator[Line]:
    for path in paths:
        if path == STDIN:
            # Other lines may have been printed there.
            yield from (line for line in _lines_of("-", sys.stdin.buffer) if line.content.startswith(_RECORD_START))
            continue
        try:
            with open(path, "rb") as file:
                yield from _lines_of(path, file)
        except OSError as error:
            raise StartError(f"{path} can't be read: {error.strerror or error}") from None


def _lines_of(name: str, file: Iterable[bytes]) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        content = line.removesuffix(b"\n")
        yield Line(f"{name}:{number}", content[: LINE_BYTES_MAX + 1], is_torn=len(content) == len(line))


def _as_text(report: ChainReport) -> Iterator[str]:
    yield (
        f"Chain       {report.chain or 'unknown'}: records {report.first} to {report.last}, {report.records:,} lines, "
        f"{report.anchors:,} anchors met"
    )
    for finding in report.findings:
        yield f"{finding.wrong:11} record {finding.sequence}  {finding.place}  {finding.text}"
    if report.findings_omitted:
        yield f"            and {report.findings_omitted:,} more"
    for note in report.notes:
        yield f"Note        {note}"
    if report.findings:
        first = report.findings[0]
        yield f"Verdict     NOT whole: record {first.sequence} is the first that was {first.wrong}"
    else:
        yield "Verdict     whole"


def _as_json(report: ChainReport) -> Iterator[str]:
    yield orjson.dumps(msgspec.to_builtins(report)).decode()
