"""Logs of this broker's earlier incarnations that lists name after these are over: ended, and the slots that they own
brought to the incarnations that live.

It happens when the leader moves slots to a worker that dies at that moment: its supervisor gave away what the worker
owned before the move was written. Nobody else looks after such slots: their broker is alive. Where they were given on
to another already, that one waits for the log to end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from kafscale.clock import Clock
from kafscale.coordination.cluster import ClusterState
from kafscale.errors import Corrupt, Retry, StoreUnavailable, StoreUnclear
from supervisor.controller import Controller
from supervisor.post import Post
from supervisor.sealing import LogEnder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


async def bring_home(clock: Clock, controller: Controller, ender: LogEnder, posts: Sequence[Post]) -> None:
    """Look now and then. Never returns. Raises StoreFailed."""
    by_node = {post.node_id: post for post in posts}
    # Of those that are named still: they need be ended once.
    ended: set[str] = set()
    while True:
        await clock.sleep(LOOK_SECONDS)
        named = _named_logs(controller.state, by_node)
        ended &= named.keys()
        for log_id, (post, owns) in sorted(named.items()):
            # Without a child it is being replaced, and its next log may be in the cluster log already.
            if post.child is None or post.log_id == log_id:
                continue
            # A leader that has not heard may give slots to a log long after it was ended.
            if log_id in ended and not owns:
                continue
            try:
                reason = "its incarnation was replaced before these slots were given to it"
                read = await ender.end_or_leave(log_id, reason)
                ended.add(log_id)
                if owns:
                    await controller.replace(read, post.incarnation)
            except (Corrupt, Retry, StoreUnavailable, StoreUnclear) as error:
                log.warning("an ended worker's log is still waited for", extra={"cause": str(error)})
            else:
                log.info("a log of an ended worker was ended", extra={"node": post.node_id, "owned_slots": owns})


def _named_logs(state: ClusterState, by_node: Mapping[int, Post]) -> dict[str, tuple[Post, bool]]:
    """The logs of these posts' nodes that lists name, and whether they own a slot."""
    found: dict[str, tuple[Post, bool]] = {}
    for entries in state.slots:
        for position, entry in enumerate(entries, 1):
            post = by_node.get(entry.node_id)
            if post is not None:
                owned = found.get(entry.log_id, (post, False))[1]
                found[entry.log_id] = (post, owned or position == len(entries))
    return found
