"""The access of one request while there is an audit: decides as the access that it stands before, and has denials, and
allowed requests where that was asked for, put on record with the request that they were made for.

Made for each request of a worker that audits, and for none of one that doesn't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafscale.protocol.acls import CLUSTER_NAME, ResourceType
from kafscale.protocol.headers import RequestHeader
from kafscale.security.access import Access
from kafscale.security.needs import IDEMPOTENT_WRITE, Need

if TYPE_CHECKING:
    from workers.audit import Recorder
    from workers.caller import Caller


class AuditedAccess:
    """`records_allowed`: what is allowed is put on record too."""

    __slots__ = ("_inner", "_recorder", "_records_allowed", "header", "listener", "told")

    def __init__(
        self, recorder: Recorder, inner: Access, header: RequestHeader, caller: Caller, *, records_allowed: bool
    ) -> None:
        self._recorder = recorder
        self._inner = inner
        self._records_allowed = records_allowed
        self.header = header
        self.listener = caller.listener.name
        # How much was put on record.
        self.told = 0

    @property
    def principal(self) -> str:
        return self._inner.principal

    @property
    def host(self) -> str:
        return self._inner.host

    @property
    def rules(self) -> object:
        return self._inner.rules

    @property
    def scope(self) -> object:
        return self._inner.scope

    @property
    def inner(self) -> Access:
        """The access that decides."""
        return self._inner

    def over(self, fresh: Access) -> AuditedAccess:
        self._inner = fresh
        return self

    def allows(self, need: Need, name: str) -> bool:
        is_allowed = self._inner.allows(need, name)
        if not is_allowed or self._records_allowed:
            self.told += 1
            self._recorder.decided(self, need, name, is_allowed)
        return is_allowed

    def shows(self, need: Need, name: str) -> bool:
        return self._inner.shows(need, name)

    def allows_cluster(self, need: Need) -> bool:
        return self.allows(need, CLUSTER_NAME)

    def writes_somewhere(self) -> bool:
        is_allowed = self._inner.writes_somewhere()
        if not is_allowed or self._records_allowed:
            self.told += 1
            self._recorder.decided(self, IDEMPOTENT_WRITE, CLUSTER_NAME, is_allowed)
        return is_allowed

    def operations(self, resource: ResourceType, name: str) -> int:
        return self._inner.operations(resource, name)
