"""Kafka's ACLs on their way from one version of the catalogue to the next: creating them, and deleting what a filter
means.

Pure. What must always hold: each binding is there once, and there are no more of them, nor more bytes, than a broker
can compile and hand to its workers within a second or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kafscale.errors import Invalid
from kafscale.protocol.acls import AclBinding, AclFilter, Operation, PatternType, Permission, ResourceType
from kafscale.protocol.error_codes import ErrorCode

MAX_ACLS: Final = 200_000
# Names, principals and hosts of all together.
MAX_ACL_BYTES: Final = 24 << 20
# Kafka's bound for what one request may change.
MAX_ACLS_PER_COMMAND: Final = 10_000
# How many bindings the filters of one request may be held against: half a second of the controller's time.
MAX_COMPARISONS: Final = 1_000_000


class AclDraft:
    """Made for a state, and only asked for what is said of ACLs: the index is built when it is first needed."""

    def __init__(self, bindings: Sequence[AclBinding]) -> None:
        self._given = bindings
        self._index: dict[AclBinding, None] | None = None
        self._bytes = 0
        self._comparisons = 0

    @property
    def _bindings(self) -> dict[AclBinding, None]:
        if self._index is None:
            self._index = dict.fromkeys(self._given)
            self._bytes = sum(map(_bytes_of, self._index))
        return self._index

    def create(self, bindings: Sequence[AclBinding]) -> list[AclBinding]:
        """Add what is not there yet, and return it. Raises Invalid where there would be too many, and adds none."""
        known = self._bindings
        new = [binding for binding in dict.fromkeys(bindings) if binding not in known]
        if len(new) > MAX_ACLS_PER_COMMAND:
            text = f"a request may create {MAX_ACLS_PER_COMMAND} ACLs at most, not {len(new)}"
            raise Invalid(ErrorCode.POLICY_VIOLATION, text)
        if len(known) + len(new) > MAX_ACLS:
            text = f"the cluster may have {MAX_ACLS} ACLs at most, and has {len(known)}"
            raise Invalid(ErrorCode.POLICY_VIOLATION, text)
        size = sum(map(_bytes_of, new))
        if self._bytes + size > MAX_ACL_BYTES:
            text = f"names in ACLs may take {MAX_ACL_BYTES} bytes, and take {self._bytes}"
            raise Invalid(ErrorCode.POLICY_VIOLATION, text)
        known.update(dict.fromkeys(new))
        self._bytes += size
        return new

    def delete(self, wanted: AclFilter) -> list[AclBinding]:
        """Remove what the filter matches, and return it. Raises Invalid where that would take too long."""
        known = self._bindings
        exact = _only_binding(wanted)
        if exact is not None:
            found = [exact] if exact in known else []
        else:
            self._comparisons += len(known)
            if self._comparisons > max(MAX_COMPARISONS, len(known)):
                raise Invalid(
                    ErrorCode.POLICY_VIOLATION, "too many filters in one request for so many ACLs; send fewer"
                )
            matches = wanted.matches
            found = [binding for binding in known if matches(binding)]
        for binding in found:
            del known[binding]
        self._bytes -= sum(map(_bytes_of, found))
        return found

    def begin_request(self) -> None:
        """What was done so far counts no more against what one request may do."""
        self._comparisons = 0


def _only_binding(wanted: AclFilter) -> AclBinding | None:
    """The one binding that the filter can mean; None if there may be more."""
    if (
        wanted.name is None
        or wanted.principal is None
        or wanted.host is None
        or wanted.pattern_type not in (PatternType.LITERAL, PatternType.PREFIXED)
        or wanted.resource_type == ResourceType.ANY
        or wanted.operation == Operation.ANY
        or wanted.permission == Permission.ANY
    ):
        return None
    return AclBinding(
        wanted.resource_type,
        wanted.pattern_type,
        wanted.name,
        wanted.principal,
        wanted.host,
        wanted.operation,
        wanted.permission,
    )


def _bytes_of(binding: AclBinding) -> int:
    # Four bytes are the most a character takes.
    return 4 * (len(binding.name) + len(binding.principal) + len(binding.host))
