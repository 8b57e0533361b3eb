"""Whether an object store keeps the promise that everything rests on: of many who create a key, one wins.

Asked once, when a broker starts, with creates that run beside each other: a store that ignores the condition lets all
of them win, one that checks it without care more than one, and one that does not know it may refuse them all. Also that
what was written is read back and listed at once. Leaves nothing behind but, where the store fails in between or does
not delete, which is warned of, an object below `{namespace}/probe/`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from kafscale.clock import Clock
from kafscale.errors import ObjectExists, StartError, StoreError, StoreIncapable, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys
from kafscale.storage.store import ObjectStore, Purpose

log = logging.getLogger(__name__)

RACERS = 12
ROUNDS = 2
PATIENCE_SECONDS = 15.0
_USE_ANOTHER = (
    "it does not honour If-None-Match, and two brokers could write one log. Use a store that does (S3, R2, MinIO, Ceph,"
    " Tigris); with one broker and never a second, s3_unsafe_unconditional_puts does without"
)


async def prove_conditional_puts(store: ObjectStore, keys: Keys, clock: Clock, random_source: random.Random) -> None:
    """Raises StartError, with what the store answered, where it breaks the promise or does not know the condition, and
    where it refuses or gives no answer for `PATIENCE_SECONDS`."""
    deadline = clock.monotonic() + PATIENCE_SECONDS
    for wait in backoff_seconds(random_source):
        try:
            for _ in range(ROUNDS):
                await _race(store, keys)
            return
        except StoreIncapable as error:
            raise StartError(f"the object store does not do what a broker needs: {error}; {_USE_ANOTHER}") from error
        except (StoreUnavailable, StoreUnclear) as error:
            if clock.monotonic() >= deadline:
                raise StartError(
                    f"the object store gives no clear answer: {error}; check its address, the bucket and the"
                    " credentials"
                ) from error
        await clock.sleep(wait)


async def _race(store: ObjectStore, keys: Keys) -> None:
    """Raises StartError where the store breaks the promise, StoreUnavailable and StoreUnclear."""
    key = keys.probe(secrets.token_hex(16))
    bodies = [secrets.token_bytes(32) for _ in range(RACERS)]
    puts = (store.put_if_absent(key, [body], Purpose.CLUSTER) for body in bodies)
    answers = await asyncio.gather(*puts, return_exceptions=True)
    try:
        won = [body for body, answer in zip(bodies, answers, strict=True) if answer is None]
        for answer in answers:
            # Creates that met each other may be told to come again (409), if only one of them won.
            if isinstance(answer, BaseException) and not isinstance(answer, ObjectExists | StoreUnclear):
                raise answer
            if isinstance(answer, StoreUnclear) and not won:
                raise answer
        if len(won) != 1:
            raise StartError(
                f"{len(won)} of {RACERS} concurrent creates of one key ({key}) were answered with success by the object"
                f" store, where one must be and all others refused with 412: {_USE_ANOTHER}"
            )
        if await store.get(key, Purpose.CLUSTER) != won[0]:
            raise StartError(f"the object store acknowledged the create of {key} and holds other bytes")
        if [info.key for info in await store.list(key, Purpose.CLUSTER)] != [key]:
            raise StartError(f"the object store's listing lacks {key}, which was just written: it is not consistent")
    finally:
        await _clean_up(store, key)


async def _clean_up(store: ObjectStore, key: str) -> None:
    try:
        await store.delete([key], Purpose.CLUSTER)
    except StoreError as error:
        log.warning(
            "the object store did not delete what a test of it had written: if it never deletes, what is no longer"
            " needed stays in the bucket; allow this broker to delete (s3:DeleteObject)",
            extra={"key": key, "cause": str(error)},
        )
