"""What the bucket says of slots whose owners live: the newest manifest of each. Reads only, and seals nothing.

For those who serve older data of slots that others own. A manifest that a counting checkpoint names describes records
that are durable and final, whoever owns the slot by now, so all of it may be served. It may be behind what the owner
knows, and is never ahead of it. A slot is looked for in the logs of its list, the newest first, as by a new owner; what
none of them describes is not known here, which says nothing of whether it is there.

Owns what was read of the newest checkpoint of each log. While an owner lives it writes on and deletes what it has given
up: what is missing is looked for anew, beginning with the newest checkpoint. While the store gives no answers this
waits.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectMissing
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import Checkpoint, Kind, ManifestPlace
from kafscale.storage.manifest import SlotManifest, decode_manifest
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.takeover import LogReader, read_release
from kafscale.storage.worker_log import MAX_IN_FLIGHT

# A log is asked for newer checkpoints this often at most, but for objects that are gone.
LOOK_SECONDS: Final = 1.0
LOGS_KNOWN_MAX: Final = 1000
# What was listed may be gone when it is read: so often it is looked for anew.
TRIES: Final = 5
# A checkpoint that counts and that no later object names yet has no more than these behind it.
_NAMELESS_WINDOW: Final = 2 * MAX_IN_FLIGHT
_HEADERS_AT_ONCE: Final = 2 * _NAMELESS_WINDOW


class PublishedSlot(msgspec.Struct, frozen=True):
    """A slot's manifest, and where it lies."""

    place: ManifestPlace
    manifest: SlotManifest


class _Known:
    """What was read of a log's newest checkpoint."""

    __slots__ = ("checkpoint", "lock", "looked_at", "sequence")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.sequence = -1
        self.checkpoint: Checkpoint | None = None
        self.looked_at = float("-inf")


class PublishedSlots:
    """Reads manifests of slots by their lists of assignments."""

    def __init__(self, store: ObjectStore, keys: Keys, clock: Clock, random_source: random.Random) -> None:
        self._store = store
        self._clock = clock
        self._reader = LogReader(store, keys, clock, random_source, Purpose.MANIFEST)
        self._logs: OrderedDict[str, _Known] = OrderedDict()

    async def read(
        self, slot: int, assignments: Sequence[Earlier], known: PublishedSlot | None, *, anew: bool
    ) -> PublishedSlot | None:
        """The slot as it is described last (`known`, if that is still so); None if no log describes it. `anew`: an
        object that `known` names is gone, so ask even if that was done just now.

        Raises Corrupt, ObjectMissing, StoreUnavailable.
        """
        for number in range(TRIES):
            place = await self._place(slot, assignments, anew=anew or number > 0)
            if place is None or not place.key:
                return None
            if known is not None and place == known.place:
                return known
            try:
                data = await self._store.get_range(place.key, place.position, place.length, Purpose.MANIFEST)
            except ObjectMissing:
                continue
            manifest = decode_manifest(data, f"{place.key} at {place.position}")
            if manifest.slot != slot:
                raise Corrupt(f"{place.key} at {place.position}: the manifest is slot {manifest.slot}'s, not {slot}'s")
            return PublishedSlot(place, manifest)
        raise ObjectMissing(f"the manifest of slot {slot} is named by a checkpoint and missing from the store")

    async def _place(self, slot: int, assignments: Sequence[Earlier], *, anew: bool) -> ManifestPlace | None:
        for assignment in reversed(assignments):
            checkpoint = await self._newest_checkpoint(assignment.log_id, anew=anew)
            place = checkpoint.slots.get(slot) if checkpoint is not None else None
            if place is not None and place.epoch == assignment.epoch:
                return place
        return None

    async def _newest_checkpoint(self, log_id: str, *, anew: bool) -> Checkpoint | None:
        known = self._logs.get(log_id)
        if known is None:
            known = self._logs[log_id] = _Known()
            if len(self._logs) > LOGS_KNOWN_MAX:
                self._logs.popitem(last=False)
        self._logs.move_to_end(log_id)
        asked_at = self._clock.monotonic()
        async with known.lock:
            # Another may have looked while this waited.
            oldest = asked_at if anew else asked_at - LOOK_SECONDS
            if known.looked_at < oldest:
                looked_at = self._clock.monotonic()
                found = await newest_counting_checkpoint(self._reader, log_id, known.sequence)
                known.looked_at = looked_at
                if found is not None:
                    known.sequence, known.checkpoint = found
        return known.checkpoint


async def newest_counting_checkpoint(reader: LogReader, log_id: str, after: int) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint of the log that counts, and its number; None if there is none above `after`.

    Later objects name it, but for the last one of all, behind which there may be nothing yet: that one is believed once
    everything from what it covers up to it was found to be taken. Raises Corrupt, ObjectMissing.
    """
    for _ in range(TRIES):
        named, nameless = await _newest_by_header(reader, log_id, after)
        for sequence in nameless:
            end = await read_release(reader, log_id, sequence)
            if end is not None and end.checkpoint is not None:
                return sequence, end.checkpoint
        if named <= after:
            return None
        found = await reader.read(log_id, named)
        if found is not None and found.checkpoint is not None:
            return named, found.checkpoint
        if found is not None:
            raise Corrupt(f"log {log_id}: object {named} is named as a checkpoint and is none")
    raise ObjectMissing(f"log {log_id}: the checkpoint that its newest objects name is missing from the store")


async def _newest_by_header(reader: LogReader, log_id: str, after: int) -> tuple[int, list[int]]:
    """The newest checkpoint above `after` that objects name (or `after`), and those above it that none names yet, the
    newest first."""
    sequences = await reader.sequences(log_id, after)
    named = after
    checkpoints = []
    seen = 0
    while sequences and seen < _NAMELESS_WINDOW:
        latest = sequences[-_HEADERS_AT_ONCE:]
        del sequences[-_HEADERS_AT_ONCE:]
        headers = await asyncio.gather(*(reader.header(log_id, sequence) for sequence in latest))
        for sequence, header in zip(reversed(latest), reversed(headers), strict=True):
            # Seals name nothing, and there may be many.
            if header is None or header.kind is Kind.SEAL:
                continue
            seen += 1
            named = max(named, header.checkpoint_sequence)
            if header.kind is Kind.CHECKPOINT:
                checkpoints.append(sequence)
    return named, [sequence for sequence in checkpoints if sequence > named]
