"""The APIs that are served: one line each. What clients are told of versions follows from this list.

To serve another API: a row in `kafscale/protocol/table.py`, one in `workers/authorization.py`, a file in
`workers/handlers/`, and a line here.
"""

from __future__ import annotations

from kafscale.protocol.api import ApiKey
from workers.dispatch import AnyHandler, Handler
from workers.handlers.api_versions import ApiVersionsHandler


def handlers() -> list[AnyHandler]:
    """The handlers of one worker."""
    served = _served()
    ranges = [(int(h.api), h.advertised_from, h.max_version) for h in served]
    api_versions = ApiVersionsHandler([*ranges, (int(ApiKey.API_VERSIONS), 0, 4)])
    return [*served, Handler(ApiKey.API_VERSIONS, 0, 4, api_versions.handle, api_versions.failed)]


def _served() -> list[AnyHandler]:
    return []
