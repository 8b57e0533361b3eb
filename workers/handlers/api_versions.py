"""ApiVersions (key 18), v0-4: which APIs are served, in which versions. Answered before anything is known of a client.

The list of APIs is that of the handlers. Finalized features: none, since nothing here is switched by a feature level
(KIP-584); so no client may rely on, say, `transaction.version` or `group.version`. A version that is not known is
answered as v0, with error 35 and the list (KIP-511). Left out: the check of the client's name and version, which are
not used.
"""

from __future__ import annotations

from collections.abc import Sequence

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse
from workers.context import Context, Request


class ApiVersionsHandler:
    """Knows the ranges to tell: (key, lowest version, highest version) of each API."""

    def __init__(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        self._api_keys = [
            ApiVersion(api_key=key, min_version=low, max_version=high) for key, low, high in sorted(ranges)
        ]

    def handle(self, context: Context, request: Request, message: ApiVersionsRequest) -> ApiVersionsResponse:
        return self._response(ErrorCode.NONE)

    def failed(self, message: ApiVersionsRequest | None, code: int, text: str) -> ApiVersionsResponse:
        return self._response(code)

    def _response(self, code: int) -> ApiVersionsResponse:
        return ApiVersionsResponse(error_code=code, api_keys=self._api_keys)
