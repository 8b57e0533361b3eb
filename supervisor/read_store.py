"""The store as commands open it that only read: they tell a person what is waited for and why, and end when it is in
vain. Shared by `recover`, `verify` and `audit verify`; decides nothing of what is read."""

from __future__ import annotations

import random

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.errors import StoreError
from kafscale.logs import RateLimited
from kafscale.storage.opening import open_store
from kafscale.storage.retrying import INSISTED_SECONDS, InsistingStore
from supervisor.progress import Progress

WAITING_INTERVAL_SECONDS = 15.0


def open_for_reading(
    settings: Settings, clock: Clock, random_source: random.Random, progress: Progress
) -> InsistingStore:
    """The store, of which `progress` tells when it gives no answer. Raises OSError where the data directory can't be
    made."""
    told = RateLimited(clock, WAITING_INTERVAL_SECONDS)

    def waiting(error: StoreError) -> None:
        if told.permit() is not None:
            progress.say(f"waiting for the object store, {INSISTED_SECONDS:g} s at most: {error}")

    store = open_store(settings, clock, random_source)
    if settings.s3_bucket is not None:
        # Before the first answer, which may take long to stay out.
        progress.say(f"reading {store}")
    return InsistingStore(store, clock, random_source, waiting)
