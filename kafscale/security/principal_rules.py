"""From a certificate's distinguished name to a principal's name, by rules in Kafka's notation (KIP-371).

`RULE:pattern/replacement/[LU]`, several with commas, and `DEFAULT`, the name as it is. The first rule whose pattern
matches the whole name decides; `$1` stands for what the first group matched, L and U for lower and upper case. If no
rule matches, the client is nobody, and refused.

Two things are stricter than in Kafka. Patterns are RE2's, whose time grows with the length of the name and no faster,
since names come from whoever holds a certificate. And a group that a replacement uses must not end inside a value that
goes on behind an escape: `CN=admin\\,OU=x` is one value, "admin,OU=x", and no rule may make `admin` of it.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

NAME_CHARACTERS_MAX: Final = 4096
RULES_MAX: Final = 64
RULE_CHARACTERS_MAX: Final = 1024
# Of RE2's compiled pattern, in bytes.
_PATTERN_MEMORY_MAX: Final = 1 << 20

_PART: Final = r"((?:\\.|[^\\/])*)"
_RULE: Final = re.compile(rf"\s*(?:(DEFAULT)|RULE:{_PART}/{_PART}/([LU]?))\s*(,|\n|$)")
_REFERENCE: Final = re.compile(r"\$([0-9])")


class _Rule(NamedTuple):
    pattern: Any  # re2's; None for DEFAULT.
    replacement: str
    case: str


class PrincipalRules:
    """The rules of a listener."""

    def __init__(self, text: str = "DEFAULT") -> None:
        """Raises ValueError, which says what can't be read."""
        self._rules = _parse(text)

    def name_of(self, distinguished_name: str) -> str | None:
        """The principal's name, without a type; None if no rule makes one."""
        if not distinguished_name or len(distinguished_name) > NAME_CHARACTERS_MAX:
            return None
        for rule in self._rules:
            name = _apply(rule, distinguished_name)
            if name:
                return name
        return None


def _apply(rule: _Rule, name: str) -> str | None:
    if rule.pattern is None:
        return name
    match = rule.pattern.fullmatch(name)
    if match is None:
        return None
    pieces: list[str] = []
    position = 0
    for reference in _REFERENCE.finditer(rule.replacement):
        pieces.append(rule.replacement[position : reference.start()])
        position = reference.end()
        group = int(reference.group(1))
        if group > rule.pattern.groups:
            pieces.append(reference.group())  # Kafka takes a reference to no group literally.
            continue
        if match.group(group) is not None:
            if group and _is_cut(name, match.end(group)):
                return None
            pieces.append(match.group(group))
    pieces.append(rule.replacement[position:])
    made = "".join(pieces)
    return {"L": made.lower(), "U": made.upper()}.get(rule.case, made)


def _is_cut(name: str, end: int) -> bool:
    """Whether `end` is just before, or within, an escape of the name."""
    if name[end : end + 1] == "\\":
        return True
    backslashes = end - len(name[:end].rstrip("\\"))
    return backslashes % 2 == 1


def _parse(text: str) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    position = 0
    while position < len(text):
        found = _RULE.match(text, position)
        if found is None:
            raise ValueError(
                f"{_shown(text[position:])} is no rule; write RULE:pattern/replacement/ (L or U may follow), or DEFAULT"
            )
        if len(rules) >= RULES_MAX or found.end() - position > RULE_CHARACTERS_MAX:
            raise ValueError(f"there may be {RULES_MAX} rules of {RULE_CHARACTERS_MAX} characters each")
        position = found.end()
        default, pattern, replacement, case, _ = found.groups()
        rules.append(_Rule(None, "", "") if default else _Rule(_compiled(pattern), replacement, case))
    if not rules:
        raise ValueError("there is no rule; DEFAULT is the distinguished name as it is")
    return tuple(rules)


def _compiled(pattern: str) -> Any:
    # Imported where there is a rule: few brokers need it.
    import re2

    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY_MAX
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        detail = error.args[0] if error.args else ""
        reason = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise ValueError(f"the pattern {_shown(pattern)} can't be used: {reason} (the syntax is RE2's)") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
