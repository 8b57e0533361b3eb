"""A compiled rule set, asked where it lies: in memory that all processes of a broker share.

Nothing is copied out of it but what one question needs, so a million rules cost a worker no more than ten. It answers
what rules match; `access.py` makes decisions of that. A question takes a few look-ups in hash tables and, where a
subject has prefixes, one binary search among them, however many rules there are. Owns nothing but views of the memory;
bytes that are no sound snapshot are refused when it is opened, never halfway through a question.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from kafscale.errors import Corrupt
from kafscale.protocol.acls import WILDCARD, AclBinding, PatternType, Permission
from kafscale.security.snapshot_compiler import Details
from kafscale.security.snapshot_format import (
    ALLOW_BY_DEFAULT,
    ALLOW_IF_NONE,
    ANY_NAME,
    GROUP_ROW,
    GROUP_SHIFT,
    HOSTS,
    KAFKA,
    KAFKA_SUBJECT,
    KAFSCALE,
    NAME_ROW,
    NAME_SHIFT,
    PREFIX,
    RESOURCE_KINDS,
    RULE_DENIES,
    RULE_POSITION_SHIFT,
    Contents,
    subject_key,
)

# To find out whether a principal may write anywhere, so many topics that he might write to are looked at. Beyond, the
# answer is no: it takes that many grants, each taken back by a deny of another principal's or host's.
CANDIDATES_MAX: Final = 10_000
# Of groups with so many stretches, one in so many is kept at hand.
SAMPLED_FROM: Final = 256
SAMPLE_INTERVAL: Final = 64

_GROUP_SIZE: Final = len(GROUP_ROW)
_, _ANY, _FIRST, _END, _STRETCH_FIRST, _STRETCH_END, _CANDIDATE_FIRST, _CANDIDATE_END = range(_GROUP_SIZE)
_, _BYTES, _ALLOW, _DENY = range(len(NAME_ROW))


class MatchedRule(NamedTuple):
    """A rule that applies to a name."""

    kind: bytes
    principal: str
    host: str
    resource: int
    pattern_kind: int
    name: str
    subject: int
    """The number of a binding's operation, or the mask of a document's actions."""
    denies: bool
    position: int
    """In its document's list of allow or deny rules, or among all bindings."""
    principal_position: int
    """Of a document's principal: in its list."""


class Snapshot:
    """One generation of the rules. Questions never raise on account of a name or principal, whatever it is. The memory
    is let go of with the last reference to this."""

    def __init__(self, buffer: memoryview | bytes | bytearray) -> None:
        """Raises Corrupt where the bytes are no sound snapshot."""
        view = memoryview(buffer)
        if view.nbytes != memoryview(view.obj).nbytes:
            view = memoryview(bytes(view))
        self._contents = contents = Contents(view)
        self.generation = contents.generation
        self.rule_count = contents.rule_count
        self.size_bytes = len(view)
        self.has_kafka = bool(contents.flags & KAFKA)
        self.has_document = bool(contents.flags & KAFSCALE)
        self.has_hosts = bool(contents.flags & HOSTS)
        self.allows_if_none = bool(contents.flags & ALLOW_IF_NONE)
        self.allows_by_default = bool(contents.flags & ALLOW_BY_DEFAULT)
        try:
            details = msgspec.msgpack.decode(contents["details"], type=Details)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"an ACL snapshot's details can't be read: {error}") from error
        self.super_users = frozenset(details.super_users)
        self.document_source = details.document_source
        self.broken = details.broken
        # Slices of what lies below the view are bytes, at half the cost of a slice of the view.
        self._memory: mmap.mmap | bytes | bytearray = view.obj  # type: ignore[assignment]
        self._texts_at = contents.offset("texts")
        self._literal_starts = contents["literal_starts"]
        self._literal_entries = contents["literal_entries"]
        self._literal_mask = len(self._literal_starts) - 2
        self._subject_mask = len(contents["subject_starts"]) - 2
        self._groups = contents["groups"]
        self._patterns = contents["patterns"]
        self._stretches = contents["stretches"]
        self._samples = self._sampled()

    # Subjects

    def groups(self, kind: bytes, principal: str = "", host: str = "") -> Sequence[int] | None:
        """The groups of a subject, by kind of resource; None where no rule is about it."""
        number = self._subject(subject_key(kind, principal, host))
        if number < 0:
            return None
        return self._contents["subject_groups"][number * RESOURCE_KINDS : (number + 1) * RESOURCE_KINDS]

    def _subject(self, key: bytes) -> int:
        contents = self._contents
        bucket = crc32(key) & self._subject_mask
        starts = contents["subject_starts"]
        for place in range(starts[bucket], starts[bucket + 1]):
            number = contents["subject_entries"][place]
            if contents["subject_key_bytes"][number] == len(key):
                at = self._texts_at + contents["subject_key_at"][number]
                if self._memory[at : at + len(key)] == key:
                    return number
        return -1

    # What applies to a name

    def masks(self, group: int, name: bytes) -> tuple[int, int]:
        """What all the rules of a group that apply to `name` allow and deny."""
        allow = deny = 0
        groups, patterns = self._groups, self._patterns
        row = group << GROUP_SHIFT
        anything = groups[row + _ANY]
        if anything:
            at = anything << NAME_SHIFT
            allow, deny = patterns[at + _ALLOW], patterns[at + _DENY]
        value = crc32(name, group)
        bucket = value & self._literal_mask
        starts = self._literal_starts
        start, end = starts[bucket], starts[bucket + 1]
        if start != end:
            pattern = self._literal(group, name, value, start, end)
            if pattern:
                at = pattern << NAME_SHIFT
                allow |= patterns[at + _ALLOW]
                deny |= patterns[at + _DENY]
        first, end = groups[row + _STRETCH_FIRST], groups[row + _STRETCH_END]
        if first != end:
            stretch = self._stretch(group, first, end, name)
            if stretch >= 0:
                at = stretch << NAME_SHIFT
                allow |= self._stretches[at + _ALLOW]
                deny |= self._stretches[at + _DENY]
        return allow, deny

    def _literal(self, group: int, name: bytes, value: int, start: int, end: int) -> int:
        """The pattern of the literal `name` among the entries of a bucket; 0 if none."""
        entries, groups, patterns = self._literal_entries, self._groups, self._patterns
        for place in range(start, end):
            if entries[2 * place] == value:
                pattern = entries[2 * place + 1]
                row, at = group << GROUP_SHIFT, pattern << NAME_SHIFT
                if groups[row + _FIRST] <= pattern < groups[row + _END] and patterns[at + _BYTES] == len(name):
                    begin = self._texts_at + patterns[at]
                    if self._memory[begin : begin + len(name)] == name:
                        return pattern
        return 0

    def _sampled(self) -> dict[int, list[bytes]]:
        """Where every so many stretches begin, of the groups that have many: with these at hand a search takes a few
        steps in shared memory, and no more of them for a million prefixes than for a thousand."""
        samples = {}
        spans = zip(self._groups[_STRETCH_FIRST::_GROUP_SIZE], self._groups[_STRETCH_END::_GROUP_SIZE], strict=True)
        for group, (first, end) in enumerate(spans):
            if end - first >= SAMPLED_FROM:
                samples[group] = [self._begin(stretch) for stretch in range(first, end, SAMPLE_INTERVAL)]
        return samples

    def _begin(self, stretch: int) -> bytes:
        at = stretch << NAME_SHIFT
        begin = self._texts_at + self._stretches[at]
        return bytes(self._memory[begin : begin + self._stretches[at + _BYTES]])

    def _stretch(self, group: int, first: int, high: int, name: bytes) -> int:
        """The stretch that `name` lies in, of a group's from `first` up to `high`; -1 where it comes before all."""
        low = first
        samples = self._samples.get(group)
        if samples is not None:
            low += max(0, bisect_right(samples, name) - 1) * SAMPLE_INTERVAL
            high = min(low + SAMPLE_INTERVAL, high)
        memory, texts, stretches = self._memory, self._texts_at, self._stretches
        while low < high:
            middle = (low + high) >> 1
            at = middle << NAME_SHIFT
            begin = texts + stretches[at]
            if name < memory[begin : begin + stretches[at + _BYTES]]:
                high = middle
            else:
                low = middle + 1
        return low - 1 if low > first else -1

    def _longest_prefix(self, group: int, name: bytes) -> int:
        row = group << GROUP_SHIFT
        stretch = self._stretch(group, self._groups[row + _STRETCH_FIRST], self._groups[row + _STRETCH_END], name)
        return self._contents["stretch_pattern"][stretch] if stretch >= 0 else 0

    def patterns(self, group: int, name: bytes) -> Iterator[int]:
        """The patterns of a group that apply to `name`, the most particular first."""
        value = crc32(name, group)
        bucket = value & self._literal_mask
        starts = self._literal_starts
        literal = self._literal(group, name, value, starts[bucket], starts[bucket + 1])
        if literal:
            yield literal
        prefix = self._longest_prefix(group, name)
        while prefix:
            yield prefix
            prefix = self._contents["pattern_parent"][prefix]
        anything = self._any(group)
        if anything:
            yield anything

    # What may be done anywhere

    def denies_everywhere(self, groups: Sequence[int], mask: int) -> bool:
        """Whether one of these groups denies any name."""
        return any(self._mask(self._any(group), _DENY) & mask for group in groups)

    def allows_somewhere(self, groups: Sequence[int], mask: int) -> bool:
        """Whether some name is allowed to the subjects of these groups (those of one kind of resource) that none of
        them denies: Kafka's authorizeByResourceType, for the operation whose candidates were compiled."""
        if self.denies_everywhere(groups, mask):
            return False
        if any(self._mask(self._any(group), _ALLOW) & mask for group in groups):
            return True
        contents = self._contents
        left = CANDIDATES_MAX
        for group in groups:
            row = group << GROUP_SHIFT
            place, end = self._groups[row + _CANDIDATE_FIRST], self._groups[row + _CANDIDATE_END]
            while place < end and left:
                left -= 1
                pattern = contents["candidates"][place]
                behind = self._denied_up_to(groups, pattern, mask)
                if behind is None:
                    return True
                place += 1
                if behind:
                    place = self._first_candidate(place, end, behind)
        return False

    def _denied_up_to(self, groups: Sequence[int], pattern: int, mask: int) -> bytes | None:
        """None if no deny dominates the pattern; else the name before which all others are denied as well, or b"" where
        it is denied alone."""
        name = self._name(pattern)
        is_literal = self._contents["pattern_kind"][pattern] != PREFIX
        for group in groups:
            prefix = self._longest_prefix(group, name)
            outermost = 0
            while prefix:
                if self._mask(prefix, _DENY) & mask:
                    outermost = prefix
                prefix = self._contents["pattern_parent"][prefix]
            if outermost:
                denied = self._name(outermost)
                return denied[:-1] + bytes((denied[-1] + 1,))
            if is_literal:
                value = crc32(name, group)
                bucket = value & self._literal_mask
                literal = self._literal(group, name, value, *self._literal_starts[bucket : bucket + 2])
                if self._mask(literal, _DENY) & mask:
                    return b""
        return None

    def _first_candidate(self, low: int, high: int, name: bytes) -> int:
        candidates = self._contents["candidates"]
        while low < high:
            middle = (low + high) >> 1
            if self._name(candidates[middle]) < name:
                low = middle + 1
            else:
                high = middle
        return low

    # Rows

    def _any(self, group: int) -> int:
        """The pattern of any name; 0 if none."""
        return self._groups[(group << GROUP_SHIFT) + _ANY]

    def _mask(self, pattern: int, which: int) -> int:
        """What a pattern allows or denies; nothing, if it is none."""
        return self._patterns[(pattern << NAME_SHIFT) + which] if pattern else 0

    def _name(self, pattern: int) -> bytes:
        at = pattern << NAME_SHIFT
        begin = self._texts_at + self._patterns[at]
        return bytes(self._memory[begin : begin + self._patterns[at + _BYTES]])

    # The rules themselves

    def rules(self, group: int, name: bytes) -> Iterator[MatchedRule]:
        """The rules of a group that apply to `name`, the most particular first."""
        for pattern in self.patterns(group, name):
            yield from self._rules_of(group, pattern)

    def _rules_of(self, group: int, pattern: int) -> Iterator[MatchedRule]:
        contents = self._contents
        subject = self._groups[group << GROUP_SHIFT]
        at, size = self._texts_at + contents["subject_key_at"][subject], contents["subject_key_bytes"][subject]
        key = bytes(self._memory[at : at + size])
        name_end = 5 + int.from_bytes(key[1:5], "little")
        row = contents["subject_groups"][subject * RESOURCE_KINDS : (subject + 1) * RESOURCE_KINDS].tolist()
        first, end = contents["pattern_rule_first"][pattern : pattern + 2]
        for rule in contents["rules"][first:end]:
            yield MatchedRule(
                kind=key[:1],
                principal=_text(key[5:name_end]),
                host=_text(key[name_end:]),
                resource=row.index(group),
                pattern_kind=contents["pattern_kind"][pattern],
                name=_text(self._name(pattern)),
                subject=rule & (RULE_DENIES - 1),
                denies=bool(rule & RULE_DENIES),
                position=rule >> RULE_POSITION_SHIFT,
                principal_position=contents["subject_position"][subject],
            )

    def bindings(self) -> Iterator[AclBinding]:
        """All of Kafka's bindings, those of one pattern one after the other."""
        for row in range(_GROUP_SIZE, len(self._groups), _GROUP_SIZE):
            group = row >> GROUP_SHIFT
            for pattern in range(self._groups[row + _FIRST], self._groups[row + _END]):
                for rule in self._rules_of(group, pattern):
                    if rule.kind == KAFKA_SUBJECT:
                        yield binding_of(rule)


def binding_of(rule: MatchedRule) -> AclBinding:
    """A rule of Kafka's as it was stored, but for the spelling of its host."""
    return AclBinding(
        resource_type=rule.resource,
        pattern_type=PatternType.PREFIXED if rule.pattern_kind == PREFIX else PatternType.LITERAL,
        name=WILDCARD if rule.pattern_kind == ANY_NAME else rule.name,
        principal=rule.principal,
        host=rule.host,
        operation=rule.subject,
        permission=Permission.DENY if rule.denies else Permission.ALLOW,
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
