"""The rules that a broker goes by, before they are compiled: what both sources say, and what is so whatever they say.

The sources are a KafScale document and Kafka's ACL bindings, each of which may be off. How their answers become one
decision (in `access.py`):

1. A super user may do everything.
2. Where the document that was asked for can't be read, nobody else may do anything.
3. A deny rule of the document, or a DENY binding, that matches denies.
4. An allow rule, or an ALLOW binding, that matches allows.
5. Where no rule of either matches, both must be open by default: the document by `default_policy: allow`, the bindings
   by `allow_everyone_if_no_acl_found` for resources that no binding names at all.

With one source on, that is exactly what KafScale, or Kafka, decides by itself. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kafscale.protocol.acls import AclBinding
from kafscale.security.kafscale_document import Document

ANYONE: Final = "User:*"
ANY_HOST: Final = "*"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything that decides. `document` None: KafScale's rules are off; `bindings` None: Kafka's are."""

    document: Document | None = None
    # Where the document is from, as a person would look for it.
    document_source: str = ""
    bindings: Sequence[AclBinding] | None = None
    allow_everyone_if_no_acl_found: bool = False
    super_users: frozenset[str] = field(default_factory=frozenset)
    # Why the document can't be read, so that nothing is allowed; "" where it can.
    broken: str = ""

    @property
    def rule_count(self) -> int:
        document = 0 if self.document is None else self.document.rule_count
        return document + (0 if self.bindings is None else len(self.bindings))


def parse_super_users(text: str) -> frozenset[str]:
    """Kafka's `super.users`: principals with a semicolon between them. ValueError for one without a type."""
    users = frozenset(part.strip() for part in text.split(";") if part.strip())
    for user in sorted(users):
        kind, colon, name = user.partition(":")
        if not (kind and colon and name):
            raise ValueError(f"{user!r} is no principal; write its type too, as in User:{name or user}")
    return users
