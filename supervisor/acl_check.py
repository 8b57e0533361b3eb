"""`kafscale acl check`: may this principal do that? Says which rule decides and where it stands; changes nothing.

It reads the same settings as the broker, by the same code: a document that can't be read denies, and is named. The
ACLs of the catalogue are asked of a running broker, where one is given. Exit code 0: allowed, 1: denied, 2: the
question makes no sense, or the broker could not be asked.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import orjson

from kafscale.config import Settings
from kafscale.errors import UsageError
from kafscale.protocol.acls import AclBinding
from kafscale.security.acl_rules import RuleSet, parse_super_users
from kafscale.security.acl_sources import DocumentSource, LoadedDocument, load_document
from kafscale.security.explanations import Explanation
from kafscale.security.questions import USER, ask, is_action
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from kafscale.terminal import escaped

# A question without --host is asked for a client from nowhere in particular: rules for any host apply, others don't.
NO_HOST = "unknown"


@dataclass(frozen=True)
class Question:
    """The words of the command line. Those that are None were not given."""

    principal: str | None = None
    action: str | None = None
    resource: str | None = None
    name: str | None = None
    host: str | None = None
    bootstrap: str | None = None
    client_id: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    user: str | None = None
    mechanism: str | None = None
    as_json: bool = False


def run(settings: Settings, question: Question) -> int:
    """Answer the question; returns the exit code. Raises UsageError."""
    principal, action, resource = question.principal, question.action, question.resource
    if principal is None or action is None or resource is None:
        missing = "principal" if principal is None else "action" if action is None else "resource"
        raise UsageError(f"--{missing} is missing; acl check asks: may --principal do --action on --resource --name?")
    bindings = _bindings_of_broker(question)
    document = load_document(
        DocumentSource(
            is_enabled=settings.acl_enabled,
            json=settings.acl_json,
            file=settings.acl_file,
            fails_open=settings.acl_fail_open,
            is_optional=settings.are_kafka_acls_on or bindings is not None,
        )
    )
    snapshot = _snapshot(settings, document, bindings)
    # Asked even where the answer is clear, so that nonsense is told.
    found = ask(
        snapshot,
        principal,
        question.host or NO_HOST,
        action,
        resource,
        question.name,
    )
    for note in (*_notes(settings, document, bindings), *_likely_mistakes(principal, action, document)):
        print(f"kafscale: {note}", file=sys.stderr)
    if not settings.acl_enabled and bindings is None:
        found = Explanation(True, "ACLs are off, so everything is allowed", "", "the setting acl_enabled")
    elif document.failed_open and found.is_allowed and not snapshot.has_kafka:
        found = Explanation(True, "no rules are in force, as acl_fail_open asks for", "", document.source)
    _print(question, found)
    return 0 if found.is_allowed else 1


def _bindings_of_broker(question: Question) -> Sequence[AclBinding] | None:
    from supervisor.acl_client import MECHANISMS, PLAIN, Approach, describe_acls

    ways = (
        question.client_id,
        question.ca_file,
        question.cert_file,
        question.key_file,
        question.user,
        question.mechanism,
    )
    if question.bootstrap is None:
        if any(way is not None for way in ways):
            raise UsageError("--bootstrap is missing: which broker is to be asked?")
        return None
    if (question.cert_file is None) != (question.key_file is None):
        raise UsageError("--cert-file and --key-file belong together")
    if question.cert_file is not None and question.ca_file is None:
        raise UsageError("--ca-file is missing: a certificate is shown by TLS only")
    if question.mechanism is not None and question.mechanism not in MECHANISMS:
        raise UsageError(f"--mechanism {question.mechanism!r}: it is one of {', '.join(MECHANISMS)}")
    if question.mechanism == PLAIN and question.ca_file is None:
        raise UsageError("--mechanism PLAIN would send the password in clear: give --ca-file too, or a SCRAM mechanism")
    approach = Approach(
        bootstrap=question.bootstrap,
        client_id=question.client_id,
        ca_file=question.ca_file,
        cert_file=question.cert_file,
        key_file=question.key_file,
        user=question.user,
        password="" if question.user is None else _password(sys.stdin),
        mechanism=question.mechanism,
    )
    return describe_acls(approach)


def _password(source: TextIO) -> str:
    """Typed and not shown, or the first line of standard input: arguments can be read by every user of the machine."""
    try:
        return getpass.getpass("Password: ") if source.isatty() else source.readline().rstrip("\r\n")
    except UnicodeError:
        raise UsageError("the password is not UTF-8") from None


def _snapshot(settings: Settings, document: LoadedDocument, bindings: Sequence[AclBinding] | None) -> Snapshot:
    has_kafka = settings.are_kafka_acls_on or bindings is not None
    rules = RuleSet(
        document=document.document,
        document_source=document.source,
        bindings=(bindings or ()) if has_kafka else None,
        allow_everyone_if_no_acl_found=settings.allow_everyone_if_no_acl_found,
        super_users=parse_super_users(settings.super_users or ""),
        broken="" if document.failed_open else document.problem,
    )
    return Snapshot(compile_snapshot(rules, 1))


def _notes(settings: Settings, document: LoadedDocument, bindings: Sequence[AclBinding] | None) -> list[str]:
    notes = []
    if document.problem:
        effect = "it has no say, as acl_fail_open asks for" if document.failed_open else "nothing is allowed"
        notes.append(f"the ACL document can't be read: {effect}: {document.source}: {document.problem}")
    if settings.are_kafka_acls_on and bindings is None:
        notes.append("the catalogue's ACLs were not asked for, and may decide otherwise: give --bootstrap HOST:PORT")
    if bindings is not None and not settings.acl_enabled:
        notes.append("acl_enabled is not set here, so the broker's document and super users are not known")
    return notes


def _likely_mistakes(principal: str, action: str, document: LoadedDocument) -> Iterator[str]:
    """KafScale's words are taken literally, and there a client's name has no type before it."""
    name = principal.removeprefix(USER)
    if document.document is None or name == principal or not is_action(action):
        return
    named = {entry.name for entry in document.document.principals}
    if principal not in named and name in named:
        yield f"the document has no principal {principal!r}: ask for {name!r}, or in Kafka's words (Read, Write, ...)"


def _print(question: Question, found: Explanation) -> None:
    if question.as_json:
        answer = {
            "allowed": found.is_allowed,
            "reason": found.reason,
            "rule": found.rule or None,
            "source": found.source or None,
        }
        sys.stdout.write(orjson.dumps(answer).decode() + "\n")
    else:
        on = f" {question.name!r}" if question.name is not None else ""
        verdict = "allowed" if found.is_allowed else "denied"
        lines = [f"{verdict}: {question.principal!r}, {question.action} on {question.resource}{on}"]
        lines.append(f"  because  {found.reason}")
        if found.rule:
            lines.append(f"  rule     {found.rule}")
        if found.source:
            lines.append(f"  from     {found.source}")
        sys.stdout.write("\n".join(map(escaped, lines)) + "\n")
    sys.stdout.flush()
