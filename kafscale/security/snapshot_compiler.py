"""Compiles a rule set into a snapshot: from rules as people write them to the tables that decisions are looked up in.

Written for speed, since a change of the rules must be in force within a second: rules are gathered into a dictionary
for each subject and kind of resource, and what can be done for all patterns at once is. Pure; `snapshot_format.py` says
what the tables are.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Final
from zlib import crc32

import msgspec

from kafscale.protocol.acls import WILDCARD, AclBinding, PatternType, Permission, ResourceType, normal_host
from kafscale.security.acl_rules import ANY_HOST, RuleSet
from kafscale.security.kafscale_document import ANYTHING, Document, Rule, folded, trimmed
from kafscale.security.needs import ACTIONS, ANY_ACTION, RESOURCES, WRITE_TOPIC, Action, bits
from kafscale.security.snapshot_format import (
    ALLOW_BY_DEFAULT,
    ALLOW_IF_NONE,
    ANY_NAME,
    ANYBODY,
    BROKEN,
    DOCUMENT_SUBJECT,
    HOSTS,
    KAFKA,
    KAFKA_SUBJECT,
    KAFSCALE,
    LITERAL,
    PREFIX,
    RESOURCE_KINDS,
    RULE_DENIES,
    RULE_POSITION_SHIFT,
    pack,
    subject_key,
    text_bytes,
)

# A pattern on its way: mask allowed, mask denied, and its rules.
_Pattern = list[int]
# Of one subject and kind of resource: what is said of any name, of single names, and of prefixes.
_Literals = dict[str, _Pattern]
_Group = tuple[_Literals, _Literals]

# Where one begins (at the prefix of this pattern, or behind all that begins with it), the masks over it, and the
# pattern of the longest prefix.
_Stretch = tuple[int, bool, int, int, int]

_ANY_NAME: Final = ""
"""The key, among literals, of what is said of any name: no other name is empty."""
_NO_PREFIX: Final = ("", 0, 0, 0, False)
_RULES: Final = operator.itemgetter(slice(2, None))


class Details(msgspec.Struct, frozen=True):
    """What a snapshot says beside its tables."""

    super_users: list[str] = []
    document_source: str = ""
    broken: str = ""


def compile_snapshot(rules: RuleSet, generation: int) -> bytearray:
    """The snapshot's bytes."""
    tables = _Tables()
    flags = 0
    if rules.bindings is not None:
        flags |= KAFKA
        if rules.allow_everyone_if_no_acl_found:
            flags |= ALLOW_IF_NONE
        if _add_bindings(tables, rules.bindings, rules.allow_everyone_if_no_acl_found):
            flags |= HOSTS
    if rules.document is not None:
        flags |= KAFSCALE
        if rules.document.allows_by_default:
            flags |= ALLOW_BY_DEFAULT
        _add_document(tables, rules.document)
    if rules.broken:
        flags |= BROKEN
    details = Details(sorted(rules.super_users), rules.document_source, rules.broken)
    return pack(generation, flags, rules.rule_count, tables.sections(details))


# Kafka's bindings


def _add_bindings(tables: _Tables, bindings: Sequence[AclBinding], keeps_anybody: bool) -> bool:
    """Returns whether some name a host."""
    groups: dict[tuple[str, str, int], _Group] = {}
    hosts: dict[str, str] = {ANY_HOST: ANY_HOST}
    literal, allow = int(PatternType.LITERAL), int(Permission.ALLOW)
    astuple = msgspec.structs.astuple
    for position, binding in enumerate(bindings):
        resource, pattern_type, name, principal, host, operation, permission = astuple(binding)
        known = hosts.get(host)
        if known is None:
            known = hosts[host] = normal_host(host)
        key = (principal, known, resource)
        group = groups.get(key)
        if group is None:
            group = groups[key] = ({}, {})
        if pattern_type == literal:
            if name == WILDCARD:
                name = _ANY_NAME
            patterns = group[0]
        else:
            patterns = group[1]
        rule = position << RULE_POSITION_SHIFT | operation
        pattern = patterns.get(name)
        if permission == allow:
            if pattern is None:
                patterns[name] = [1 << operation, 0, rule]
            else:
                pattern[0] |= 1 << operation
                pattern.append(rule)
        elif pattern is None:
            patterns[name] = [0, 1 << operation, rule | RULE_DENIES]
        else:
            pattern[1] |= 1 << operation
            pattern.append(rule | RULE_DENIES)
    if keeps_anybody:
        _add_anybody(tables, groups)
    for (principal, host, resource), group in groups.items():
        tables.add(subject_key(KAFKA_SUBJECT, principal, host), 0, resource, group, WRITE_TOPIC.grants)
    return len(hosts) > 1


def _add_anybody(tables: _Tables, groups: dict[tuple[str, str, int], _Group]) -> None:
    """Which resources have any binding at all."""
    merged: dict[int, _Group] = {}
    for (_, _, resource), (literals, prefixes) in groups.items():
        of_kind = merged.setdefault(resource, ({}, {}))
        of_kind[0].update((name, [1, 0]) for name in literals)
        of_kind[1].update((name, [1, 0]) for name in prefixes)
    for resource, group in merged.items():
        tables.add(subject_key(ANYBODY), 0, resource, group, 0)


# KafScale's document

_ANY_RESOURCE: Final = tuple(RESOURCES.values())


def _add_document(tables: _Tables, document: Document) -> None:
    # Whatever a document says more often than once, actions and resources above all, is understood once.
    actions: dict[str, int] = {}
    resources: dict[str, tuple[int, ...]] = {}
    for principal in document.principals:
        groups: dict[int, _Group] = {}
        for denies, rules in ((RULE_DENIES, principal.deny), (0, principal.allow)):
            for position, rule in enumerate(rules):
                mask = actions.get(rule.action)
                if mask is None:
                    mask = actions[rule.action] = _mask_of(rule.action)
                kinds = resources.get(rule.resource)
                if kinds is None:
                    kinds = resources[rule.resource] = _kinds_of(rule.resource)
                if mask:
                    _add_rule(groups, kinds, rule, mask, position << RULE_POSITION_SHIFT | denies)
        key = subject_key(DOCUMENT_SUBJECT, principal.name)
        if not groups:
            tables.subject(key, principal.position)
        for resource, group in groups.items():
            tables.add(key, principal.position, resource, group, 1 << Action.PRODUCE)


def _mask_of(action: str) -> int:
    if action in ("", ANYTHING):
        return ANY_ACTION
    known = ACTIONS.get(folded(action))
    if known is None:
        return 0
    return bits(known, Action.TOPIC_ADMIN) if known is Action.ADMIN else bits(known)


def _kinds_of(resource: str) -> tuple[int, ...]:
    if resource in ("", ANYTHING):
        return _ANY_RESOURCE
    known = RESOURCES.get(folded(resource))
    return () if known is None else (known,)


def _add_rule(groups: dict[int, _Group], kinds: tuple[int, ...], rule: Rule, mask: int, code: int) -> None:
    name = trimmed(rule.name)
    is_prefix = False
    if name == ANYTHING:
        name = _ANY_NAME
    elif name.endswith(ANYTHING):
        name = name[:-1]
        is_prefix = True
    allow, deny = (0, mask) if code & RULE_DENIES else (mask, 0)
    for kind in kinds:
        group = groups.get(kind)
        if group is None:
            group = groups[kind] = ({}, {})
        patterns = group[is_prefix]
        pattern = patterns.get(name)
        if pattern is None:
            patterns[name] = [allow, deny, code | mask]
        else:
            pattern[0] |= allow
            pattern[1] |= deny
            pattern.append(code | mask)


# Tables


class _Tables:
    """The sections on their way. Patterns of all groups stand one behind the other; entry 0 of a column is unused."""

    def __init__(self) -> None:
        self._subjects: dict[bytes, tuple[int, list[int]]] = {}
        self._names: list[str] = [""]
        self._kinds = bytearray(1)
        self._patterns: list[_Pattern] = [[0, 0]]
        self._parents: list[int] = [0]
        self._group_any: list[int] = [0]
        self._group_first: list[int] = [1]
        self._stretches: list[_Stretch] = []
        self._stretch_first: list[int] = [0]
        self._candidates: list[int] = []
        self._candidate_first: list[int] = [0]

    def subject(self, key: bytes, position: int) -> list[int]:
        """A subject's groups, by kind of resource."""
        found = self._subjects.get(key)
        if found is None:
            found = self._subjects[key] = (position, [0] * RESOURCE_KINDS)
        return found[1]

    def add(self, key: bytes, position: int, resource: int, group: _Group, writes: int) -> None:
        """A group. `writes`: the mask of what allows to write to a topic; 0 where nobody asks."""
        self.subject(key, position)[resource] = len(self._group_any)
        literals, prefixes = group
        anything = literals.pop(_ANY_NAME, None)
        self._group_first.append(len(self._names))
        if anything is not None:
            self._group_any.append(len(self._names))
            self._append(_ANY_NAME, ANY_NAME, anything)
        else:
            self._group_any.append(0)
        self._stretch_first.append(len(self._stretches))
        self._candidate_first.append(len(self._candidates))
        if prefixes:
            self._add_prefixes(literals, prefixes, writes if resource == ResourceType.TOPIC else 0)
            return
        names = sorted(literals)
        first = len(self._names)
        patterns = [literals[name] for name in names]
        self._names += names
        self._kinds += bytes(len(names))
        self._patterns += patterns
        self._parents += [0] * len(names)
        if writes and resource == ResourceType.TOPIC:
            self._candidates += [
                number
                for number, pattern in enumerate(patterns, first)
                if pattern[0] & writes and not pattern[1] & writes
            ]

    def _append(self, name: str, kind: int, pattern: _Pattern) -> None:
        self._names.append(name)
        self._kinds.append(kind)
        self._patterns.append(pattern)
        self._parents.append(0)

    def _add_prefixes(self, literals: _Literals, prefixes: _Literals, writes: int) -> None:
        """A group that has prefixes: a walk over its names in order, with the prefixes that each of them is under."""
        names, kinds, patterns, parents = self._names, self._kinds, self._patterns, self._parents
        candidates, stretch = self._candidates, self._stretches.append
        # The prefixes that the last name was under, outermost first: (prefix, its pattern, the masks of it and of those
        # above it, whether a candidate is among these).
        above: list[tuple[str, int, int, int, bool]] = []
        prefix, parent, allow, deny, is_covered = _NO_PREFIX
        # A prefix comes before the literal of the same name.
        for name, kind in sorted([*((name, -PREFIX) for name in prefixes), *((name, LITERAL) for name in literals)]):
            while above and not name.startswith(prefix):
                above.pop()
                ended = parent
                prefix, parent, allow, deny, is_covered = above[-1] if above else _NO_PREFIX
                stretch((ended, True, allow, deny, parent))
            pattern = prefixes[name] if kind else literals[name]
            if pattern[0] & writes and not is_covered and not (pattern[1] | deny) & writes:
                candidates.append(len(names))
                is_candidate = True
            else:
                is_candidate = False
            parents.append(parent)
            if kind:
                prefix, parent = name, len(names)
                allow |= pattern[0]
                deny |= pattern[1]
                is_covered = is_covered or is_candidate
                above.append((prefix, parent, allow, deny, is_covered))
                stretch((parent, False, allow, deny, parent))
            names.append(name)
            kinds.append(-kind)
            patterns.append(pattern)
        while above:
            ended = above.pop()[1]
            _, parent, allow, deny, _ = above[-1] if above else _NO_PREFIX
            stretch((ended, True, allow, deny, parent))

    def sections(self, details: Details) -> dict[str, array[int] | bytes]:
        """All sections. The tables can't be used any more."""
        groups_of = [groups for _, groups in self._subjects.values()]
        group_subject = [0] * len(self._group_any)
        for number, groups in enumerate(groups_of):
            for group in groups:
                group_subject[group] = number
        names = _all_bytes(self._names)
        keys = list(self._subjects)
        behind = [_behind(names[stretch[0]]) for stretch in self._stretches if stretch[1]]
        texts = b"".join(chain(names, keys, behind))
        places = list(accumulate(map(len, chain(names, keys, behind)), initial=0))
        key_places, behind_places = places[len(names) :], iter(places[len(names) + len(keys) :])
        begin_places = [next(behind_places) if stretch[1] else places[stretch[0]] for stretch in self._stretches]
        # The masks of each pattern are the first two of its numbers: the first pattern has no others.
        allow, deny = zip(*self._patterns, strict=False)
        numbers = accumulate(map(len, self._patterns), initial=0)
        starts, entries = _hash_table([crc32(key) for key in keys])
        return {
            "subject_starts": starts,
            "subject_entries": array("I", entries),
            "subject_key_at": array("I", key_places[: len(keys)]),
            "subject_key_bytes": array("I", map(len, keys)),
            "subject_position": array("I", (position for position, _ in self._subjects.values())),
            "subject_groups": array("I", chain.from_iterable(groups_of)),
            "groups": self._group_rows(group_subject),
            "patterns": _rows(places[: len(names)], list(map(len, names)), allow, deny),
            "pattern_kind": bytes(self._kinds),
            "pattern_parent": array("I", self._parents),
            "pattern_rule_first": array("I", [first - 2 * number for number, first in enumerate(numbers)]),
            **self._literal_sections(names),
            # What comes behind a prefix is as long as it is.
            "stretches": _rows(
                begin_places,
                [len(names[stretch[0]]) for stretch in self._stretches],
                [stretch[2] for stretch in self._stretches],
                [stretch[3] for stretch in self._stretches],
            ),
            "stretch_pattern": array("I", [stretch[4] for stretch in self._stretches]),
            "candidates": array("I", self._candidates),
            "rules": array("Q", chain.from_iterable(map(_RULES, self._patterns))),
            "texts": texts,
            "details": msgspec.msgpack.encode(details),
        }

    def _group_rows(self, subjects: list[int]) -> array[int]:
        return _rows(
            subjects,
            self._group_any,
            self._group_first,
            [*self._group_first[1:], len(self._names)],
            self._stretch_first,
            [*self._stretch_first[1:], len(self._stretches)],
            self._candidate_first,
            [*self._candidate_first[1:], len(self._candidates)],
        )

    def _literal_sections(self, names: Sequence[bytes]) -> dict[str, array[int]]:
        hashes: list[int] = []
        patterns: list[int] = []
        ends = [*self._group_first[1:], len(self._names)]
        for group, (first, end) in enumerate(zip(self._group_first, ends, strict=True)):
            if not group:
                continue
            kinds = self._kinds[first:end]
            if any(kinds):
                own = [number for number, kind in enumerate(kinds, first) if kind == LITERAL]
                hashes += [crc32(names[number], group) for number in own]
                patterns += own
            else:
                hashes += [crc32(name, group) for name in names[first:end]]
                patterns += range(first, end)
        starts, order = _hash_table(hashes)
        entries = array("I", bytes(8 * len(order)))
        entries[::2] = array("I", [hashes[place] for place in order])
        entries[1::2] = array("I", [patterns[place] for place in order])
        return {"literal_starts": starts, "literal_entries": entries}


def _rows(*columns: Sequence[int]) -> array[int]:
    """Columns of equal length, as rows."""
    rows = array("I", bytes(4 * len(columns) * len(columns[0])))
    for number, column in enumerate(columns):
        rows[number :: len(columns)] = array("I", column)
    return rows


def _hash_table(hashes: Sequence[int]) -> tuple[array[int], list[int]]:
    """(where the entries of each bucket start, the places of the hashes in the order of their buckets). The number of
    buckets is a power of two; the starts are one more."""
    mask = (1 << max(len(hashes) - 1, 1).bit_length()) - 1
    buckets = [value & mask for value in hashes]
    counts = [0] * (mask + 1)
    for bucket in buckets:
        counts[bucket] += 1
    order = sorted(range(len(buckets)), key=buckets.__getitem__)
    return array("I", accumulate(counts, initial=0)), order


def _behind(prefix: bytes) -> bytes:
    """The first bytes that come after everything that begins with `prefix`: no byte of UTF-8 is 255."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def _all_bytes(names: Sequence[str]) -> list[bytes]:
    try:
        return [name.encode() for name in names]
    except UnicodeEncodeError:
        return [text_bytes(name) for name in names]
