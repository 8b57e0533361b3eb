"""KafScale's document as the settings name it: which text is read, and what follows where it can't be.

The table is KafScale's. Where the document was asked for and can't be read, or there is none, nothing is allowed; with
`acl_fail_open` its rules are off instead, which is the one way in which something broken opens, and is to be alarmed
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


class Loaded(NamedTuple):
    """`document` is None where its rules are off. `problem` is why it can't be read, "" if it can; nothing is allowed
    then, unless it `failed_open`. `source` is where a person would look for it."""

    document: Document | None
    source: str = ""
    problem: str = ""
    failed_open: bool = False


def load_document(wanted: DocumentSource) -> Loaded:
    """Read what is to be read."""
    if not wanted.is_enabled:
        return Loaded(None)
    if wanted.json is not None and wanted.json.strip():
        # As in KafScale, the file is not looked at then, even where the JSON is bad.
        return _parsed(wanted, "acl_json (KAFSCALE_ACL_JSON)", wanted.json)
    if wanted.file is None:
        if wanted.is_optional:
            return Loaded(None)
        return _failed(wanted, "the settings", "neither acl_json nor acl_file is set")
    try:
        data = _read(wanted.file)
    except OSError as error:
        return _failed(wanted, wanted.file, f"it can't be read: {error.strerror or error}")
    return _parsed(wanted, wanted.file, data)


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(DOCUMENT_BYTES_MAX + 1)
    if len(data) > DOCUMENT_BYTES_MAX:
        raise OSError(f"it has more than {DOCUMENT_BYTES_MAX} bytes")
    return data


def _parsed(wanted: DocumentSource, source: str, data: bytes | str) -> Loaded:
    try:
        return Loaded(parse_document(data), source)
    except DocumentError as error:
        return _failed(wanted, source, str(error))


def _failed(wanted: DocumentSource, source: str, problem: str) -> Loaded:
    return Loaded(None, source, problem, failed_open=wanted.fails_open)
