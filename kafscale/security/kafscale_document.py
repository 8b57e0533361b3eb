"""KafScale's ACL document: from JSON to rules, exactly as KafScale v1.5 reads it.

It is read by Go's encoding/json there, whose habits decide who may do what, so they are kept: names of fields match in
any case, exact ones first; unknown fields are ignored; null changes nothing; of a field that is there twice the last
counts, and of a list that is there twice the second is laid over the first, entry by entry; a wrong type anywhere, a
byte order mark, comments and text behind the document make all of it unreadable. Pure. What a document that can't be
read means is for `acl_sources.py`; who may do what, for the snapshot.

    {"default_policy": "deny",
     "principals": [{"name": "app", "allow": [{"action": "fetch", "resource": "topic", "name": "orders-*"}]}]}
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple, NoReturn

ANYTHING: Final = "*"
ANONYMOUS_NAME: Final = "anonymous"
CLUSTER_NAME: Final = "cluster"
"""How a rule about the cluster names it."""

# What Go's unicode.IsSpace says: Python's strip() takes four more.
_SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
# The two letters beyond ASCII that fold to ASCII ones (strings.EqualFold): long s and the Kelvin sign.
_FOLDED: Final = str.maketrans({"\u017f": "s", "\u212a": "k"})
_REPLACEMENT: Final = "\ufffd"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class DocumentError(Exception):
    """The document can't be read; the text says what is wrong with it."""


class Rule(NamedTuple):
    """As written. An action or resource that is empty or `*` is any; so is a name, which may end in `*`."""

    action: str = ""
    resource: str = ""
    name: str = ""


class Principal(NamedTuple):
    """The rules of one principal; `position` is its place in the document's list."""

    name: str
    allow: list[Rule]
    deny: list[Rule]
    position: int


class Document(NamedTuple):
    """What counts of a document: of several entries for a principal the last, and none without a name."""

    allows_by_default: bool = False
    principals: tuple[Principal, ...] = ()

    @property
    def rule_count(self) -> int:
        return sum(len(principal.allow) + len(principal.deny) for principal in self.principals)


def parse_document(data: bytes | str) -> Document:
    """Read a document. Raises DocumentError, a line that says why not."""
    text = _text_of(data)
    try:
        # Objects become tuples of pairs, so that an array (a list) is told from an object, and a key that is there
        # twice is seen twice. Numbers have no place in a document but in fields that nobody reads.
        value = json.loads(
            text, object_pairs_hook=tuple, parse_int=_number, parse_float=_number, parse_constant=_refuse
        )
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"it is no JSON: {error}") from None
    if _SURROGATE_ESCAPE.search(text):
        value = _without_surrogates(value)
    reader = _Reader()
    reader.read(value)
    found: dict[str, Principal] = {}
    for position, entry in enumerate(reader.principals):
        name = trimmed(entry.name)
        if name:
            found.pop(name, None)
            found[name] = Principal(name, entry.allow, entry.deny, position)
    return Document(folded(trimmed(reader.default_policy)) == "allow", tuple(found.values()))


def trimmed(text: str) -> str:
    """Go's strings.TrimSpace."""
    return text.strip(_SPACE)


def folded(text: str) -> str:
    """A text that equals an ASCII constant in lower case exactly where Go's strings.EqualFold says they are equal."""
    return text.translate(_FOLDED).lower()


def principal_name(principal: str) -> str:
    """The name by which the document's rules look a client up."""
    return trimmed(principal) or ANONYMOUS_NAME


class _Entry:
    """A principal on its way: fields are set by whatever the document says last of them."""

    __slots__ = ("allow", "deny", "name")

    def __init__(self) -> None:
        self.name = ""
        self.allow: list[Rule] = []
        self.deny: list[Rule] = []


class _Reader:
    """The document on its way."""

    def __init__(self) -> None:
        self.default_policy = ""
        self.principals: list[_Entry] = []

    def read(self, value: Any) -> None:
        for key, item in _fields(value, "the document"):
            match _DOCUMENT_FIELDS.get(key) or _DOCUMENT_FIELDS.get(folded(key)):
                case "enabled":
                    if item is not None and not isinstance(item, bool):
                        _mismatch("enabled", "true or false", item)
                case "default_policy":
                    self.default_policy = _string(item, self.default_policy, "default_policy")
                case "principals":
                    entries = _items(item, "principals")
                    del self.principals[len(entries) :]
                    self.principals += [_Entry() for _ in range(len(entries) - len(self.principals))]
                    for position, (entry, fields) in enumerate(zip(self.principals, entries, strict=True)):
                        _read_entry(entry, fields, f"principals[{position}]")


def _read_entry(entry: _Entry, value: Any, place: str) -> None:
    for key, item in _fields(value, place):
        match _PRINCIPAL_FIELDS.get(key) or _PRINCIPAL_FIELDS.get(folded(key)):
            case "name":
                entry.name = _string(item, entry.name, f"{place}.name")
            case "allow":
                _read_rules(entry.allow, item, f"{place}.allow")
            case "deny":
                _read_rules(entry.deny, item, f"{place}.deny")


def _read_rules(rules: list[Rule], value: Any, place: str) -> None:
    before = rules.copy()
    rules.clear()
    for position, item in enumerate(_items(value, place)):
        if not before and type(item) is tuple and len(item) == 3:
            # As nearly everybody writes a rule; a document may have a hundred thousand.
            (one, action), (two, resource), (three, name) = item
            is_plain = one == "action" and two == "resource" and three == "name"
            if is_plain and type(action) is type(resource) is type(name) is str:
                rules.append(Rule(action, resource, name))
                continue
        rules.append(_read_rule(before[position] if position < len(before) else Rule(), item, f"{place}[{position}]"))


def _read_rule(before: Rule, value: Any, place: str) -> Rule:
    rule = list(before)
    for key, text in _fields(value, place):
        field = _RULE_FIELDS.get(key)
        if field is None and (field := _RULE_FIELDS.get(folded(key))) is None:
            continue
        rule[field] = _string(text, rule[field], f"{place}.{key}")
    return Rule(*rule)


_DOCUMENT_FIELDS: Final = {name: name for name in ("enabled", "default_policy", "principals")}
_PRINCIPAL_FIELDS: Final = {name: name for name in ("name", "allow", "deny")}
_RULE_FIELDS: Final = {"action": 0, "resource": 1, "name": 2}


def _fields(value: Any, place: str) -> tuple[tuple[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, tuple):
        _mismatch(place, "an object", value)
    return value


def _items(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        _mismatch(place, "an array", value)
    return value


def _string(value: Any, before: str, place: str) -> str:
    if value is None:
        return before
    if not isinstance(value, str):
        _mismatch(place, "a string", value)
    return value


def _mismatch(place: str, wanted: str, value: Any) -> NoReturn:
    kinds = {bool: "a boolean", str: "a string", list: "an array", tuple: "an object", _Number: "a number"}
    raise DocumentError(f"{place} must be {wanted}, not {kinds.get(type(value), 'null')}")


class _Number:
    """What stands for a number, whichever it is."""


_NUMBER: Final = _Number()


def _number(text: str) -> _Number:
    return _NUMBER


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed")


def _text_of(data: bytes | str) -> str:
    """The document's characters. Go takes each byte that is no UTF-8 for U+FFFD."""
    # A text comes from the environment, where such bytes are single surrogates; so they become here.
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    return _SURROGATE.sub(_REPLACEMENT, text)


def _without_surrogates(value: Any) -> Any:
    """The value with U+FFFD for every half of a surrogate pair that stands alone: Go has no such characters."""
    if isinstance(value, str):
        return _SURROGATE.sub(_REPLACEMENT, value)
    if isinstance(value, list | tuple):
        return type(value)(_without_surrogates(item) for item in value)
    return value
