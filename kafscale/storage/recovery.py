"""Taking slots over: the newest manifest of each, and what its log says after it. Reads only.

The rule (docs/adr/0002-slots-and-the-cluster-log.md): a slot is loaded only when every earlier log in its list has
ended or has released it (`earlier_logs.py`); the manifest of the highest epoch counts; none found is an error, unless
the list reaches back to the slot's first epoch. Replay is harmless where the manifest already knows: what lies below
the high watermark is skipped. A slot whose manifest is missing or damaged can't be loaded; the others can. There may be
much to decode: others run in between.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectMissing
from kafscale.storage.earlier_logs import Earlier, Lists
from kafscale.storage.extents import Extent
from kafscale.storage.log_objects import BatchGroup, LogStart, ManifestPlace
from kafscale.storage.manifest import SlotManifest, decode_manifest
from kafscale.storage.partition import EpochStart, PartitionLog
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.retrying import insist
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.takeover import LogEnd

FIRST_EPOCH = 1


class Replayed(msgspec.Struct, frozen=True):
    """A group of rows to be applied after a manifest."""

    key: str
    created_ms: int
    group: BatchGroup | LogStart


class LoadedSlot(msgspec.Struct):
    """What the store knows of a slot. `place` is where the manifest lies (None: the slot never held anything)."""

    slot: int
    place: ManifestPlace | None
    manifest: SlotManifest | None
    replay: list[Replayed]


async def load_slots(
    store: ObjectStore,
    clock: Clock,
    random_source: random.Random,
    earlier: Lists,
    ends: Mapping[str, LogEnd],
    slot_of: Callable[[bytes, int], int],
    bugs: PlantedBugs = NO_BUGS,
) -> dict[int, LoadedSlot | Corrupt]:
    """Read every slot of `earlier` (slot → its earlier assignments, oldest first), which are ready: `ends` says how far
    each log that they name goes (`earlier_logs.py`). A store that gives no answer is asked for as long as it takes.
    Corrupt stands where it lacks what it must hold."""
    loaded: dict[int, LoadedSlot | Corrupt] = {}
    chosen: dict[int, tuple[Earlier, ManifestPlace] | None] = {}
    for slot, assignments in earlier.items():
        try:
            chosen[slot] = _choose(slot, assignments, ends, bugs)
        except Corrupt as error:
            loaded[slot] = error
    manifests = await _read_manifests(store, clock, random_source, chosen)
    replays = await _replay(clock, chosen, ends, slot_of)
    for slot, choice in chosen.items():
        place = choice[1] if choice is not None and choice[1].key else None
        manifest = manifests.get(slot)
        loaded[slot] = manifest if isinstance(manifest, Corrupt) else LoadedSlot(slot, place, manifest, replays[slot])
    return loaded


def _choose(
    slot: int, assignments: Sequence[Earlier], ends: Mapping[str, LogEnd], bugs: PlantedBugs
) -> tuple[Earlier, ManifestPlace] | None:
    """The assignment of the highest epoch whose log's checkpoint names the slot. Raises Corrupt."""
    for assignment in reversed(assignments):
        checkpoint = ends[assignment.log_id].checkpoint
        place = checkpoint.slots.get(slot) if checkpoint is not None else None
        if place is not None and place.epoch == assignment.epoch:
            return assignment, place
    if assignments and assignments[0].epoch != FIRST_EPOCH and not bugs.last_log_alone:
        raise Corrupt(
            f"slot {slot}: none of the logs {[a.log_id for a in assignments]} has a checkpoint that names it, though it"
            f" was first assigned before epoch {assignments[0].epoch}; refusing to serve it as empty"
        )
    return None


async def _read_manifests(
    store: ObjectStore,
    clock: Clock,
    random_source: random.Random,
    chosen: Mapping[int, tuple[Earlier, ManifestPlace] | None],
) -> dict[int, SlotManifest | Corrupt]:
    """The chosen manifests; those that lie in one object come with one GET.

    Nobody deletes one of these while the loader's log lives: it is named by a log that is done with the slot, and the
    loader's own has not named another. So a missing one is damage."""
    by_key: dict[str, list[tuple[int, ManifestPlace]]] = defaultdict(list)
    for slot, choice in chosen.items():
        if choice is not None and choice[1].key:
            by_key[choice[1].key].append((slot, choice[1]))
    manifests: dict[int, SlotManifest | Corrupt] = {}
    for key, wanted in by_key.items():
        start = min(place.position for _, place in wanted)
        length = max(place.position + place.length for _, place in wanted) - start
        read = partial(store.get_range, key, start, length, Purpose.RECOVERY)
        try:
            data = memoryview(await insist(read, clock, random_source))
        except ObjectMissing:
            manifests |= {slot: Corrupt(f"{key}: the manifest is missing") for slot, _ in wanted}
            continue
        for slot, place in wanted:
            await clock.sleep(0)
            piece = data[place.position - start : place.position - start + place.length]
            try:
                manifests[slot] = _decode(piece, slot, f"{key} at {place.position}")
            except Corrupt as error:
                manifests[slot] = error
    return manifests


def _decode(piece: memoryview, slot: int, where: str) -> SlotManifest:
    manifest = decode_manifest(piece, where)
    if manifest.slot != slot:
        raise Corrupt(f"{where}: the manifest is slot {manifest.slot}'s, not {slot}'s")
    return manifest


async def _replay(
    clock: Clock,
    chosen: Mapping[int, tuple[Earlier, ManifestPlace] | None],
    ends: Mapping[str, LogEnd],
    slot_of: Callable[[bytes, int], int],
) -> dict[int, list[Replayed]]:
    """What the chosen logs say after their checkpoints, per slot, in order."""
    replays: dict[int, list[Replayed]] = {slot: [] for slot in chosen}
    wanted: dict[str, dict[int, int]] = defaultdict(dict)
    for slot, choice in chosen.items():
        if choice is not None:
            wanted[choice[0].log_id][slot] = choice[0].epoch
    for log_id, epochs in wanted.items():
        for entry in ends[log_id].objects:
            await clock.sleep(0)
            for group in entry.groups or ():
                slot = slot_of(group.topic_id, group.partition)
                if epochs.get(slot) == group.leader_epoch:
                    replays[slot].append(Replayed(entry.key, entry.header.created_ms, group))
    return replays


def apply_replay(partition: PartitionLog, replayed: Iterable[Replayed], bugs: PlantedBugs = NO_BUGS) -> None:
    """Put a partition's groups of rows on top of its manifest. Raises Corrupt on a gap."""
    for entry in replayed:
        group = entry.group
        if isinstance(group, LogStart):
            partition.start_at(group.offset)
        else:
            _apply_batches(partition, entry.key, entry.created_ms, group, bugs)


def _apply_batches(partition: PartitionLog, key: str, created_ms: int, group: BatchGroup, bugs: PlantedBugs) -> None:
    position = group.position
    extent: Extent | None = None
    for base_offset, delta, length, max_timestamp, producer_id, producer_epoch, base_sequence, _ in group.rows:
        if base_offset < partition.high_watermark:
            position += length
            continue
        if base_offset != partition.high_watermark:
            raise Corrupt(
                f"{key}: partition {partition.topic}-{partition.index} goes on at offset {base_offset}, "
                f"{partition.high_watermark} comes next"
            )
        newest = max_timestamp if max_timestamp >= 0 else created_ms
        if extent is None:
            extent = Extent(base_offset, base_offset + delta, newest, key, position, length)
            if not partition.epochs or partition.epochs[-1].epoch < group.leader_epoch:
                partition.epochs.append(EpochStart(group.leader_epoch, base_offset))
        else:
            extent.last_offset = base_offset + delta
            extent.max_timestamp = max(extent.max_timestamp, newest)
            extent.length += length
        position += length
        partition.high_watermark = partition.next_offset = base_offset + delta + 1
        if producer_id >= 0 and not bugs.producer_state_lost:
            partition.producers.add(
                producer_id,
                producer_epoch,
                base_sequence,
                delta + 1,
                base_offset,
                max_timestamp,
                created_ms,
                partition.high_watermark,
            )
    if extent is not None:
        partition.extents.append(extent)
        partition.size_bytes += extent.length
