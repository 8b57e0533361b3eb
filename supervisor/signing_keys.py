"""The keys that tokens are signed with, fetched from the identity provider.

Only the supervisor fetches, and only the URL that the operator has set: nothing that a client sends leads anywhere
(CVE-2025-27817). One request at a time, bounded in time and size, no redirects. A failed fetch leaves the keys that
there are.
"""

from __future__ import annotations

import ssl
from typing import Final

from kafscale.config import Settings
from kafscale.errors import StartError, UsageError
from supervisor.security_files import check_signing_keys

FETCH_SECONDS: Final = 10.0
KEYS_BYTES_MAX: Final = 1 << 20


async def fetch_signing_keys(settings: Settings) -> bytes:
    """The JWKS at the URL that is set, once it is found to hold keys that can be used. Raises StartError."""
    # Imported where tokens are taken: it is as large as everything else together.
    import aiohttp

    url = settings.sasl_oauthbearer_jwks_url
    assert url is not None
    context: ssl.SSLContext | bool = True
    if settings.sasl_oauthbearer_jwks_ca_file is not None:
        try:
            context = ssl.create_default_context(cafile=settings.sasl_oauthbearer_jwks_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"sasl_oauthbearer_jwks_ca_file: cannot use {settings.sasl_oauthbearer_jwks_ca_file!r}: {error}"
            ) from None
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, ssl=context, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise StartError(f"sasl_oauthbearer_jwks_url: {url} answers with status {answer.status}")
            content = await answer.content.read(KEYS_BYTES_MAX + 1)
            while not answer.content.at_eof() and len(content) <= KEYS_BYTES_MAX:
                content += await answer.content.read(KEYS_BYTES_MAX + 1 - len(content))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise StartError(f"sasl_oauthbearer_jwks_url: cannot read {url}: {reason}") from None
    try:
        check_signing_keys(content, url)
    except UsageError as error:
        raise StartError(f"sasl_oauthbearer_jwks_url: {error}") from None
    return content
