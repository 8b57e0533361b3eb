"""When the bucket is swept of what ended logs left behind: now and then, in the background, by the leader alone.

Decides nothing of what may go (`kafscale/storage/sweep.py`); a sweep that fails is repeated at the next turn. A log
that has not ended, is nobody's and named by no list, is ended here, so that it can be swept: its supervisor died before
it had done so, and nobody else waits for it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination.assignment import named_logs
from kafscale.coordination.store import CoordinationStore
from kafscale.errors import Corrupt, StoreError, StoreUnavailable, StoreUnclear
from kafscale.storage.keys import Keys
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import ObjectStore
from kafscale.storage.sweep import LogsInUse, sweep
from supervisor.controller import Controller
from supervisor.post import Post
from supervisor.sealing import LogEnder

log = logging.getLogger(__name__)


async def sweep_ended_logs(
    settings: Settings,
    store: ObjectStore,
    keys: Keys,
    clock: Clock,
    random_source: random.Random,
    controller: Controller,
    coordination: CoordinationStore,
    posts: Sequence[Post],
    ender: LogEnder,
    bugs: PlantedBugs = NO_BUGS,
) -> None:
    """Never returns. Raises StoreFailed."""
    known_seals: set[str] = set()
    unended: set[str] = set()

    async def logs_in_use() -> LogsInUse:
        state = await controller.newest_state()
        owners = {slot: entries[-1] for slot, entries in enumerate(state.slots) if entries}
        return LogsInUse(
            live={post.log_id for post in posts}
            | {worker.log_id for member in coordination.members() for worker in member.incarnations},
            listed=named_logs(state),
            owners={slot: (owner.epoch, owner.log_id) for slot, owner in owners.items()},
        )

    while True:
        await clock.sleep(settings.sweep_interval_ms / 1000)
        if not coordination.is_leader or not coordination.is_available:
            continue
        grace_ms = settings.sweep_grace_ms
        try:
            result = await sweep(store, keys, clock, random_source, logs_in_use, grace_ms, known_seals, bugs)
        except (StoreError, Corrupt) as error:
            log.warning("sweeping was broken off", extra={"cause": str(error)})
            continue
        if result.refused is not None:
            log.warning("nothing was swept", extra={"cause": result.refused})
        elif result.deleted:
            log.info("swept", extra={"objects": result.deleted, "bytes": result.deleted_bytes})
        # At the second sweep that finds it so: a worker may be so new that its registration is not known here.
        for log_id in unended.intersection(result.unended):
            try:
                await ender.end_log(log_id, "nobody writes it or waits for it any more")
            except (Corrupt, StoreUnavailable, StoreUnclear) as error:
                log.warning("a log that is nobody's can't be ended", extra={"log_id": log_id, "cause": str(error)})
        unended = set(result.unended)
