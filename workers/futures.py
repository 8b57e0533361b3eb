"""What asyncio's futures lack."""

from __future__ import annotations

import asyncio


def settle(future: asyncio.Future[None]) -> None:
    """Resolve a future that its waiter may have given up."""
    if not future.done():
        future.set_result(None)
