"""KafScale's document as the settings name it: which text is read, and what follows where it can't be.

The table is KafScale's. Where the document was asked for and can't be read, or there is none, nothing is allowed; with
`acl_fail_open` everything is instead, which is the one way in which something broken opens, and is to be alarmed
about. Reads the file, and nothing else; blocks while it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from kafscale.security.kafscale_document import Document, DocumentError, parse_document

# A document larger than this is not read: a hundred thousand rules take seven million bytes.
DOCUMENT_BYTES_MAX: Final = 256 << 20


class DocumentSource(NamedTuple):
    """What the settings say of the document."""

    is_enabled: bool = False
    json: str | None = None
    file: str | None = None
    fails_open: bool = False
    # Whether other rules are on, so that having no document at all is not a mistake.
    is_optional: bool = False


class LoadedDocument(NamedTuple):
    """`document` is None where none was asked for, or it can't be read: `problem` says why, "" if it can. Nothing is
    allowed then, unless it `failed_open`, and the document is one that allows everything. `source` is where a person
    would look for it."""

    document: Document | None
    source: str = ""
    problem: str = ""
    failed_open: bool = False


class Text(NamedTuple):
    """The document's bytes, not understood yet, or why they can't be had."""

    source: str
    data: bytes = b""
    problem: str = ""


def read_document(wanted: DocumentSource) -> Text | None:
    """Read what is to be read; None where no document is asked for."""
    if not wanted.is_enabled:
        return None
    if wanted.json is not None and wanted.json.strip():
        # As in KafScale, the file is not looked at then, even where the JSON is bad.
        return Text("acl_json (KAFSCALE_ACL_JSON)", wanted.json.encode("utf-8", "surrogateescape"))
    if wanted.file is None:
        return None if wanted.is_optional else Text("the settings", problem="neither acl_json nor acl_file is set")
    try:
        with Path(wanted.file).open("rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        return Text(wanted.file, problem=f"it can't be read: {error.strerror or error}")
    if len(data) > DOCUMENT_BYTES_MAX:
        return Text(wanted.file, problem=f"it has more than {DOCUMENT_BYTES_MAX} bytes")
    return Text(wanted.file, data)


def understand_document(wanted: DocumentSource, text: Text | None) -> LoadedDocument:
    """What the text says."""
    if text is None:
        return LoadedDocument(None)
    problem = text.problem
    if not problem:
        try:
            return LoadedDocument(parse_document(text.data), text.source)
        except DocumentError as error:
            problem = str(error)
    if wanted.fails_open:
        # As if it said nothing but that everything is allowed: what else is on still has its say.
        return LoadedDocument(Document(allows_by_default=True), text.source, problem, failed_open=True)
    return LoadedDocument(None, text.source, problem)


def load_document(wanted: DocumentSource) -> LoadedDocument:
    """Both at once."""
    return understand_document(wanted, read_document(wanted))
