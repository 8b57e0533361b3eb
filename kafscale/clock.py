"""The only place that reads time or sleeps.

Everything below the composition roots takes a `Clock` (or `now` as an argument), so that a simulation can supply
another. Wall time is for what the world sees (timestamps, retention); monotonic time for durations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A call that was scheduled and can be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time as the program sees it."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Run `callback(*args)` on the running loop after `seconds`."""
        ...


async def let_others() -> None:
    """Give the loop a turn, in the middle of long work."""
    await asyncio.sleep(0)


class SystemClock:
    """The machine's clocks and the running asyncio loop's timers."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback, *args)
