"""Ends a worker's log and says of it what the cluster log's writer needs to know."""

from __future__ import annotations

import logging
import random

from kafscale.clock import Clock
from kafscale.coordination.assignment import EndedLog
from kafscale.errors import Corrupt
from kafscale.storage.ended_logs import write_ended
from kafscale.storage.keys import Keys
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import ObjectStore
from kafscale.storage.takeover import seal_log

log = logging.getLogger(__name__)


class LogEnder:
    """Seals logs in the name of one supervisor."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        writer_id: str,
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._writer_id = writer_id
        self._bugs = bugs

    async def end_log(self, log_id: str, reason: str) -> EndedLog:
        """End the log, however busy its owner is, and write down for its slots' new owners what it says. Waits while
        the store gives no answers. Raises Corrupt, StoreFailed."""
        end = await seal_log(
            self._store, self._keys, log_id, self._clock, self._random, self._writer_id, reason, self._bugs
        )
        # Of a swept log nothing is left to be said.
        if end.sealed and end.objects:
            await write_ended(self._store, self._keys, end)
        slots = end.checkpoint.slots if end.checkpoint is not None else {}
        return EndedLog(log_id, end.end == 0, {slot: place.epoch for slot, place in slots.items()})

    async def end_or_leave(self, log_id: str, reason: str) -> EndedLog:
        """As `end_log`, but of a log that can't be read nothing is known: it may not have ended, and all lists go on
        naming it.

        Its slots may be given to others all the same. No owner loads one before it has itself seen that the log has
        ended, so until the log is mended nobody serves them; and a worker can be replaced, and serve what else it owns.
        For one whose process is gone, or will be. Raises StoreFailed.
        """
        try:
            return await self.end_log(log_id, reason)
        except Corrupt as error:
            log.error(
                "a worker's log can't be read: its slots are not served before that is mended (`kafscale verify`)",
                extra={"log_id": log_id, "cause": str(error)},
            )
            return EndedLog(log_id, False, {})
