"""Slots that were given to an incarnation which had ended before it heard of it, brought to the one that lives.

It happens when the leader moves slots to a worker that dies at that moment: its supervisor gave away what the worker
owned before the move was written. Nobody else looks after such slots: their broker is alive.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kafscale.clock import Clock
from kafscale.errors import Corrupt, Retry, StoreUnavailable, StoreUnclear
from supervisor.controller import Controller
from supervisor.post import Post
from supervisor.sealing import LogEnder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


async def bring_home(clock: Clock, controller: Controller, ender: LogEnder, posts: Sequence[Post]) -> None:
    """Look now and then. Never returns. Raises StoreFailed."""
    by_node = {post.node_id: post for post in posts}
    while True:
        await clock.sleep(LOOK_SECONDS)
        owners = {entries[-1].log_id: entries[-1].node_id for entries in controller.state.slots if entries}
        for log_id, node_id in sorted(owners.items()):
            post = by_node.get(node_id)
            # Without a child it is being replaced, and its next log may be in the cluster log already.
            if post is None or post.child is None or post.log_id == log_id:
                continue
            try:
                ended = await ender.end_log(log_id, "its incarnation was replaced before these slots were given to it")
                await controller.replace(ended, post.incarnation)
            except (Corrupt, Retry, StoreUnavailable, StoreUnclear) as error:
                log.warning("slots of an ended worker could not be given anew", extra={"cause": str(error)})
            else:
                log.info("slots of an ended worker were given to its next life", extra={"node": node_id})
