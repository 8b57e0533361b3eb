"""The sweep: deletes what ended logs left behind and no slot's manifest names. Run rarely, by the controller.

A DELETE can't be fenced, so it must be right whatever others do meanwhile. First the objects are listed, then the
cluster state is read (version v), then the logs and manifests. A log is *swept* when at v it is neither live nor
named by any slot's list, and has ended. Of swept logs, every listed object is deleted that no slot's current manifest
names, but seals and young objects. Why nothing that is deleted can be named later:

- The current manifest of a slot is the one that a counting checkpoint of its owner's log names at the epoch of the
  assignment that is current at v. If one is missing or can't be read, nothing at all is deleted.
- A worker comes to name objects in two ways: it writes them, or it loads a slot. What it writes bears its own log's
  id. That log is live or listed at v and so not swept, compaction in progress included; or it has not ended; or it
  wrote for slots that were given to it after v, and then these objects are younger than the listing.
- Whoever loads a slot takes the newest manifest of the slot's list and replays the logs of that list. At v the
  owner's checkpoint names the slot, so loads begin from the manifest that was read here or from a later one of the
  slot, and these name of the swept logs' objects only what this one names: manifests lose such objects (retention,
  compaction) and gain none. No load still rests on an older list: a list is only shortened once a newer checkpoint
  counts.
- What a zombie writes into a swept log nobody will ever name: garbage for the next sweep.

A reader with an old manifest may still ask for what goes: on a 404 it reloads the manifest. The grace period spares
young objects, by the store's own clock: the newest object of the listing stands for now, so no clock of ours can
hurry it.

That a log has ended is shown by its objects, which the sweep deletes. So before it touches these it puts its mark into
the log: a seal of its own, which stays for ever and tells that whatever else is there or missing means nothing. It lies
above all numbers that anybody else ever tries: whoever seals a log, however long he was paused, began at a number that
was free, so not above its end, and tries eight. At a lower one, which the sweep has to free or which the owner freed
long ago, a seal of a paused sealer might come first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectExists, ObjectMissing, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys, index_of, writer_of
from kafscale.storage.log_objects import (
    HEADER_BYTES,
    Kind,
    ManifestPlace,
    Seal,
    decode_header,
    encode_header,
    encode_small,
)
from kafscale.storage.manifest import decode_manifest
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import DELETE_BATCH, ObjectInfo, ObjectStore, Purpose
from kafscale.storage.takeover import SEALS_AT_ONCE, SWEEPER, LogEnd, LogReader, find_end

READS_AT_ONCE = 16
# A manifest may be replaced and deleted while it is being read: then the checkpoint is read again, so many times.
MANIFEST_TRIES = 3
# How often a question to the store is repeated before the sweep is given up.
STORE_TRIES = 6


class SweepResult(msgspec.Struct, kw_only=True):
    """What a sweep found and did. `refused` says why nothing was deleted; None otherwise.

    `unended` are logs neither live nor listed that still lack a seal, all of them old: whoever should have ended them
    died first, and ended they can be swept.
    """

    refused: str | None = None
    examined: int = 0
    examined_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    named: int = 0
    young: int = 0
    swept_logs: int = 0
    unended: list[str] = []


class _Refused(Exception):
    """Something that must be known isn't: delete nothing."""


class LogsInUse(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest version of the cluster state says of logs, all of it at that version.

    `live`: of every registered worker. `listed`: named by any slot's list. `owners`: slot → (epoch, log id) of its last
    assignment; slots that were never assigned are left out.
    """

    live: Collection[str]
    listed: Collection[str]
    owners: Mapping[int, tuple[int, str]]


async def sweep(
    store: ObjectStore,
    keys: Keys,
    clock: Clock,
    random_source: random.Random,
    read_logs_in_use: Callable[[], Awaitable[LogsInUse]],
    grace_ms: int,
    known_seals: set[str] | None = None,
    bugs: PlantedBugs = NO_BUGS,
) -> SweepResult:
    """One sweep. `read_logs_in_use` must read the newest cluster version by its key, anew at each call (there are two);
    what it raises passes through. `known_seals` remembers seals, to spare reading them each time: pass the same set."""
    sweeper = _Sweeper(store, keys, clock, random_source, known_seals if known_seals is not None else set(), bugs)
    try:
        # What is in use before the listing is only left out early, to save memory: what counts comes after it.
        found, newest_ms = await sweeper.list_all(_kept(await read_logs_in_use()))
        in_use = await read_logs_in_use()
        for log_id in _kept(in_use):
            found.pop(log_id, None)
        if found:
            await sweeper.delete_unnamed(found, in_use.owners, newest_ms - grace_ms)
    except (_Refused, Corrupt, StoreUnavailable, StoreUnclear) as error:
        sweeper.result.refused = str(error)
    return sweeper.result


def _kept(in_use: LogsInUse) -> set[str]:
    return {*in_use.live, *in_use.listed, *(log_id for _, log_id in in_use.owners.values())}


class _Sweeper:
    """One sweep in progress."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        known_seals: set[str],
        bugs: PlantedBugs,
    ) -> None:
        self.result = SweepResult()
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._known_seals = known_seals
        self._bugs = bugs
        self._reader = LogReader(store, keys, clock, random_source)

    async def delete_unnamed(
        self, found: Mapping[str, list[ObjectInfo]], owners: Mapping[int, tuple[int, str]], older_than_ms: int
    ) -> None:
        named = await self._named(owners)
        for log_id, objects in sorted(found.items()):
            await self._sweep_log(log_id, objects, named, older_than_ms)

    async def list_all(self, left_out: Collection[str]) -> tuple[dict[str, list[ObjectInfo]], int]:
        """Everything that other logs than `left_out` wrote, by log; and the time of the newest object of all."""
        keys = self._keys
        found: dict[str, list[ObjectInfo]] = {}
        newest_ms = 0
        for prefix in (keys.log_prefix, keys.ended_prefix, keys.manifest_prefix, keys.pack_prefix, keys.topics_prefix):
            for number, info in enumerate(await self._list(prefix)):
                self.result.examined += 1
                self.result.examined_bytes += info.size
                newest_ms = max(newest_ms, info.created_ms)
                log_id = writer_of(info.key)
                if log_id is not None and log_id not in left_out and info.key not in self._known_seals:
                    found.setdefault(log_id, []).append(info)
                if number % 1000 == 999:
                    await self._clock.sleep(0)
        return found, newest_ms

    async def _list(self, prefix: str) -> list[ObjectInfo]:
        waits = backoff_seconds(self._random)
        for _ in range(STORE_TRIES):
            try:
                return await self._store.list(prefix, Purpose.SWEEP)
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(next(waits))
        raise _Refused(f"{prefix} could not be listed: the store gives no answer")

    # What is named

    async def _named(self, owners: Mapping[int, tuple[int, str]]) -> set[str]:
        """The keys that the current manifests name, their own included. Raises _Refused, Corrupt."""
        slots_of: dict[str, dict[int, int]] = {}
        for slot, (epoch, log_id) in owners.items():
            slots_of.setdefault(log_id, {})[slot] = epoch
        named: set[str] = set()
        for log_id, slots in sorted(slots_of.items()):
            named |= await self._named_by(log_id, slots)
        return named

    async def _named_by(self, log_id: str, slots: Mapping[int, int]) -> set[str]:
        for _ in range(MANIFEST_TRIES):
            end = await find_end(self._reader, log_id)
            places = [_place(end, slot, epoch) for slot, epoch in slots.items()]
            try:
                return await self._read_manifests([place for place in places if place.key])
            except ObjectMissing:
                continue
        raise _Refused(f"log {log_id}: a manifest that its checkpoint names is missing")

    async def _read_manifests(self, places: list[ManifestPlace]) -> set[str]:
        named: set[str] = set()
        for start in range(0, len(places), READS_AT_ONCE):
            pieces = await asyncio.gather(*(self._read(place) for place in places[start : start + READS_AT_ONCE]))
            for place, piece in zip(places[start : start + READS_AT_ONCE], pieces, strict=True):
                named.add(place.key)
                for key in decode_manifest(piece, f"{place.key} at {place.position}").objects:
                    named.add(key)
                    if key.endswith(".kfs"):
                        named.add(index_of(key))
                await self._clock.sleep(0)
        return named

    async def _read(self, place: ManifestPlace) -> bytes:
        return await self._get(place.key, place.position, place.length)

    async def _get(self, key: str, position: int, length: int) -> bytes:
        """Raises ObjectMissing, _Refused."""
        waits = backoff_seconds(self._random)
        for _ in range(STORE_TRIES):
            try:
                return await self._store.get_range(key, position, length, Purpose.SWEEP)
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(next(waits))
        raise _Refused(f"{key} could not be read: the store gives no answer")

    # What is deleted

    async def _sweep_log(self, log_id: str, objects: list[ObjectInfo], named: set[str], older_than_ms: int) -> None:
        """Delete what the log left, if it has ended."""
        ends_at = await self._end_of(log_id)
        if ends_at is None:
            if all(info.created_ms <= older_than_ms for info in objects):
                self.result.unended.append(log_id)
            return
        self.result.swept_logs += 1
        seals = await self._seals(info.key for info in objects if info.key.startswith(self._keys.log_prefix))
        # What was written down of it goes first, since it speaks of the rest.
        await self._delete([info for info in objects if info.key.startswith(self._keys.ended_prefix)])
        garbage: list[ObjectInfo] = []
        for info in objects:
            if info.key.startswith(self._keys.ended_prefix):
                continue
            if info.key in seals and not self._bugs.seal_deleted:
                continue
            if info.key in named:
                self.result.named += 1
            elif info.created_ms > older_than_ms:
                self.result.young += 1
            else:
                garbage.append(info)
        # Where it ends at 0 the seal there shows it for ever, or our mark does.
        if ends_at > 0 and any(info.key.startswith(self._keys.log_prefix) for info in garbage):
            await self._mark_swept(log_id, ends_at + SEALS_AT_ONCE)
        await self._delete(garbage)

    async def _end_of(self, log_id: str) -> int | None:
        """Where the log ends, 0 if it was swept; None if it has not ended, or it can't be shown."""
        try:
            end = await find_end(self._reader, log_id)
        except Corrupt:
            return None
        return end.end if end.sealed else None

    async def _seals(self, candidates: Iterable[str]) -> set[str]:
        """Which of a log's objects are seals."""
        found: set[str] = set()
        waiting = list(candidates)
        for start in range(0, len(waiting), READS_AT_ONCE):
            some = waiting[start : start + READS_AT_ONCE]
            answers = await asyncio.gather(*(self._is_seal(key) for key in some))
            found.update(key for key, is_seal in zip(some, answers, strict=True) if is_seal)
        return found

    async def _is_seal(self, key: str) -> bool:
        """Whether there is a seal. Raises Corrupt where something else than a log object lies."""
        if key in self._known_seals:
            return True
        try:
            is_seal = decode_header(await self._get(key, 0, HEADER_BYTES), key).kind == Kind.SEAL
        except ObjectMissing:
            return False
        if is_seal:
            self._known_seals.add(key)
        return is_seal

    async def _mark_swept(self, log_id: str, number: int) -> None:
        """Make sure that our mark is at that number. Raises _Refused, Corrupt."""
        key = self._keys.log(log_id, number)
        header = encode_header(Kind.SEAL, log_id, number, self._clock.wall_ms(), -1)
        parts = encode_small(header, Seal(SWEEPER, "the log had ended, and no slot's list named it"))
        waits = backoff_seconds(self._random)
        for _ in range(STORE_TRIES):
            try:
                await self._store.put_if_absent(key, parts, Purpose.SWEEP)
            except ObjectExists:
                break
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(next(waits))
            else:
                return
        found = await self._reader.read(log_id, number)
        if found is not None and (found.seal is None or found.seal.writer != SWEEPER):
            raise Corrupt(f"{key}: lies so far above the log's end that only the sweep may have written it")
        if found is None:
            raise _Refused(f"{key} could not be sealed: the store gives no answer")

    async def _delete(self, objects: list[ObjectInfo]) -> None:
        for start in range(0, len(objects), DELETE_BATCH):
            batch = objects[start : start + DELETE_BATCH]
            await self._store.delete([info.key for info in batch], Purpose.SWEEP)
            self.result.deleted += len(batch)
            self.result.deleted_bytes += sum(info.size for info in batch)


def _place(end: LogEnd, slot: int, epoch: int) -> ManifestPlace:
    """Where the slot's current manifest lies."""
    place = end.checkpoint.slots.get(slot) if end.checkpoint is not None else None
    if place is None or place.epoch != epoch:
        raise _Refused(f"slot {slot} has no manifest of epoch {epoch} in log {end.log_id} yet")
    return place
