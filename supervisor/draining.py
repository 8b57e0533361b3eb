"""Has a broker's workers finish what they have received, and ends those that do not in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from kafscale.clock import Clock
from kafscale.control import Drain
from supervisor.child import Child, exit_text
from supervisor.post import Post

log = logging.getLogger(__name__)

# Once it was asked to hurry.
HURRIED_DRAIN_SECONDS = 1.0


async def drain_workers(posts: Sequence[Post], clock: Clock, until: float, hurry: asyncio.Event) -> bool:
    """Drain the workers until the monotonic time `until`, or a second after `hurry`. True if all of them did in time.
    The posts run no more."""
    draining: list[Child] = []
    for post in posts:
        if post.child is None:
            continue
        post.child.stop_pings()
        if post.serving:
            draining.append(post.child)
            post.child.send(Drain())
        else:
            post.child.kill()  # It has accepted nothing yet; the next start seals its log.
    all_gone = asyncio.gather(*(child.gone for child in draining))
    hurried = asyncio.create_task(hurry.wait())
    seconds = max(0.0, until - clock.monotonic())
    waited: set[asyncio.Future[Any]] = {all_gone, hurried}
    await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if hurried.done() and not all_gone.done():
        await asyncio.wait({all_gone}, timeout=min(seconds, HURRIED_DRAIN_SECONDS))
    hurried.cancel()
    late = [child for child in draining if not child.gone.done()]
    for child in late:
        log.error("worker did not finish in time and is killed", extra={"pid": child.pid})
        child.kill()
    statuses = await all_gone
    for child, status in zip(draining, statuses, strict=True):
        if child not in late and (status != 0 or not child.drained):
            log.error("worker ended badly while draining", extra={"pid": child.pid, "ending": exit_text(status)})
    return all(status == 0 and child.drained for child, status in zip(draining, statuses, strict=True))
