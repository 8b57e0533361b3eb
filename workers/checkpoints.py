"""Checkpoints: when one is due, what goes into it, and what may be deleted after it.

Owns the counters since the last checkpoint and the list of objects to give up. A checkpoint is due by bytes, objects
and time, never when nothing changed. First one object with the manifests of the slots that changed, then the checkpoint
in the log, which names the manifests of all, and what was released. What must always hold: a manifest describes at
least everything below the covered sequence and nothing that is not durable; objects are deleted only when a counting
checkpoint listed them as given up and a later checkpoint counts too (see `storage/takeover.py` on why); a slot is
released only when everything that was appended for it is durable and in its manifest.

What the store refuses to delete is given up again and so tried again, up to `REFUSED_KEPT_MAX` objects: a policy that
forbids deletion must not make every checkpoint longer. What is beyond stays until this log has ended, which it does
with the worker's life or the broker's: of a live log nobody else deletes anything, of an ended one the sweep takes all
that no manifest names. Until then `kafscale verify` calls it unreferenced.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.errors import ObjectExists, StoreUnavailable, StoreUnclear
from kafscale.logs import RateLimited
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher
from kafscale.storage.keys import Keys, sequence_of
from kafscale.storage.log_objects import Checkpoint, ManifestPlace, encode_small
from kafscale.storage.manifest import encode_manifest
from kafscale.storage.partition import PartitionLog
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import DELETE_BATCH, Buffer, ObjectStore, Purpose
from kafscale.storage.worker_log import WorkerLog
from workers.ownership import OwnedSlot, Ownership

log = logging.getLogger(__name__)

# Of objects that could not be deleted: some 400 KB of a checkpoint.
REFUSED_KEPT_MAX = 4 * DELETE_BATCH
COMPLAINT_INTERVAL_SECONDS = 60.0


class Checkpointer:
    """Writes this worker's checkpoints, one at a time."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        log: WorkerLog,
        flusher: Flusher,
        ownership: Ownership,
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._log = log
        self._flusher = flusher
        self._ownership = ownership
        self._bugs = bugs
        self._writing = asyncio.Lock()
        self._manifest_number = 0
        # Manifest objects of ours and how many slots' newest manifest lies in each.
        self._manifest_objects: dict[str, int] = {}
        self._covered = 0
        self._written_at = clock.monotonic()
        self._bytes_since = 0
        # Given up in the last checkpoint: doomed once the next one counts.
        self._given_up: list[str] = []
        self._doomed: list[str] = []
        # Objects of our log that no extent refers to; and such as lay above the covered sequence the last time.
        self._stateless: list[str] = []
        self._held_back: list[str] = []
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)

    def flushed(self, flush: Flush) -> None:
        """Count a durable flush towards the next checkpoint."""
        self._bytes_since += flush.bytes
        if not flush.placed:
            self._note_stateless(flush.sequence)

    def _note_stateless(self, sequence: int) -> None:
        """Object `sequence` of our log holds no batches: nothing will ever refer to it."""
        self._stateless.append(self._keys.log(self._log.log_id, sequence))

    def is_due(self) -> bool:
        """Whether enough has changed, or has waited long enough."""
        if not any(entry.is_dirty for entry in self._ownership.slots.values()):
            return False
        return (
            self._bytes_since >= self._settings.checkpoint_interval_bytes
            or self._log.counted - self._covered >= self._settings.checkpoint_interval_objects
            or self._clock.monotonic() - self._written_at >= self._settings.checkpoint_interval_ms / 1000
        )

    async def write(self, loaded: Iterable[OwnedSlot] = (), releasing: Mapping[int, int] | None = None) -> int:
        """Write a checkpoint of all owned slots and of `loaded` ones; durable and counting on return. It says that the
        slots of `releasing` (slot → epoch) are released. Returns its sequence number."""
        async with self._writing:
            entries = [*self._ownership.slots.values(), *loaded]
            covered = self._log.counted
            self._bytes_since = 0
            unreferenced, self._ownership.references.unreferenced = self._ownership.references.unreferenced, []
            changed = [entry for entry in entries if entry.is_dirty or entry.place is None]
            try:
                replaced = await self._write_manifests(changed)
            except BaseException:
                self._ownership.references.unreferenced += unreferenced
                raise
            replaced += self._replaced(place.key for place in self._ownership.forget_released())
            given_up = self._give_up(unreferenced, replaced, covered)
            released = self._ownership.released
            places = {slot: entry.place for slot, entry in released.items() if entry.place is not None}
            checkpoint = Checkpoint(
                covered=covered,
                slots=places | {entry.slot: _place(entry) for entry in entries},
                given_up=given_up,
                released={slot: entry.epoch for slot, entry in released.items()} | dict(releasing or {}),
            )
            if self._bugs.deleted_before_counting:
                await self._delete(given_up)
            try:
                sequence = await self._append(checkpoint)
            except BaseException:
                # Broken off: it may count all the same, and giving up twice does no harm.
                self._held_back += given_up
                raise
            self._log.checkpoint_sequence = sequence
            for entry in entries:
                entry.published()
            self._covered = covered
            self._written_at = self._clock.monotonic()
            self._note_stateless(sequence)
            self._doomed += self._given_up
            self._given_up = given_up
            return sequence

    async def _append(self, checkpoint: Checkpoint) -> int:
        durable: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def settle(sequence: int) -> None:
            # At once, not when this task runs next: every object submitted from now on points here.
            self._log.checkpoint_sequence = sequence
            if not durable.done():
                durable.set_result(sequence)

        self._flusher.checkpoint(lambda header: encode_small(header, checkpoint), settle)
        try:
            return await durable
        except asyncio.CancelledError:
            # It may wait behind objects that a silent store doesn't take: the next one must not find it there.
            self._flusher.withdraw_checkpoint()
            raise

    async def _write_manifests(self, changed: list[OwnedSlot]) -> list[str]:
        """Write what changed as one object; returns the manifest objects that no slot needs any more."""
        pieces: list[Buffer] = []
        placed: list[tuple[OwnedSlot, int, int, list[tuple[PartitionLog, int]]]] = []
        position = 0
        before = [entry.place.key for entry in changed if entry.place is not None]
        for entry in changed:
            entry.is_dirty = False
            if not any(partition.next_offset for partition in entry.partitions.values()):
                entry.place = ManifestPlace(entry.epoch, "", 0, 0)
                continue
            piece = encode_manifest(
                entry.slot,
                entry.epoch,
                entry.partitions.values(),
                self._ownership.group_snapshots(entry),
                self._bugs,
            )
            described = [(partition, partition.high_watermark) for partition in entry.partitions.values()]
            placed.append((entry, position, len(piece), described))
            pieces.append(piece)
            position += len(piece)
        if pieces:
            try:
                key = await self._put(pieces)
            except BaseException:
                # Broken off, as when a drain begins: the next checkpoint must not take the old manifests for current.
                for entry, *_ in placed:
                    entry.is_dirty = True
                raise
            for entry, start, length, described in placed:
                entry.place = ManifestPlace(entry.epoch, key, start, length)
                entry.described = described
            self._manifest_objects[key] = len(placed)
        return self._replaced(before)

    def _replaced(self, keys: Iterable[str]) -> list[str]:
        """A slot's manifest in each of these is needed no more; returns the objects that no slot needs any more."""
        replaced = []
        for key in keys:
            if key in self._manifest_objects:
                self._manifest_objects[key] -= 1
                if self._manifest_objects[key] == 0:
                    del self._manifest_objects[key]
                    replaced.append(key)
        return replaced

    async def _put(self, pieces: list[Buffer]) -> str:
        """Write the manifests under a number of their own. An unclear number is abandoned: nothing ever names it."""
        for wait in backoff_seconds(self._random):
            key = self._keys.manifest(self._log.log_id, self._manifest_number)
            self._manifest_number += 1
            try:
                await self._store.put_if_absent(key, pieces, Purpose.CHECKPOINT)
            except (StoreUnavailable, StoreUnclear, ObjectExists):
                await self._clock.sleep(wait)
            else:
                return key
        raise AssertionError("backoff never ends")

    def _give_up(self, unreferenced: list[str], replaced: list[str], covered: int) -> list[str]:
        """What this checkpoint gives up: of our log only what lies below the covered sequence."""
        candidates = [*self._held_back, *unreferenced, *self._stateless]
        self._stateless = []
        self._held_back = []
        given_up = list(replaced)
        for key in candidates:
            if key.startswith(self._keys.log_prefix) and sequence_of(key) >= covered:
                self._held_back.append(key)
            else:
                given_up.append(key)
        return given_up

    def has_doomed(self) -> bool:
        """Whether there is something that may go by now."""
        return bool(self._doomed)

    async def delete_doomed(self) -> None:
        """Delete what may go by now."""
        doomed, self._doomed = self._doomed, []
        await self._delete(doomed)

    async def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), DELETE_BATCH):
            try:
                await self._store.delete(keys[start : start + DELETE_BATCH], Purpose.SWEEP)
            except (StoreUnavailable, StoreUnclear) as error:
                refused = keys[start:]
                kept = refused[: max(0, REFUSED_KEPT_MAX - len(self._held_back))]
                self._held_back += kept
                self._complaints.log(
                    log,
                    logging.WARNING,
                    "the store does not delete what is no longer needed, and is asked again: if it refuses for long,"
                    " allow this broker to delete (s3:DeleteObject), or the bucket only grows",
                    cause=str(error),
                    objects=len(refused),
                    left_to_the_sweep=len(refused) - len(kept),
                )
                return


def _place(entry: OwnedSlot) -> ManifestPlace:
    assert entry.place is not None
    return entry.place
