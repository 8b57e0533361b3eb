"""What this worker owns: its slots, their partitions, and the objects these refer to.

Owns the table of partitions that are served here right now. What must always hold: a partition is in it only between
the load of its slot (from logs that are done with it, then a checkpoint of its own) and the moment when the cluster
gives the slot to another, or this incarnation ends; it agrees with the cluster state that was applied last; an object
of ours that no partition refers to any more is known, so that a checkpoint can give it up. It reads the store only
while loading.

A slot's way: *wanted* (the cluster assigns it to this log), *loading*, owned and *open* (served), owned and *closed*
(given to another: nothing is appended, what was appended becomes durable), *released* (a counting checkpoint says so).
What is given away before it is being loaded is released at once, and never loaded.

What can't be loaded, since an object that it needs is missing or damaged, has *failed*, alone: others are loaded and
served, for its partitions clients are told so, and it is tried again now and then. What must always hold: a failed slot
is never served, as empty least of all; no checkpoint of ours names it, so that its list keeps every earlier log and the
next to load it, we or another, begins where we began; given away it is released like one that was never loaded. While
an owner's checkpoint does not name a slot the sweep deletes nothing (`storage/sweep.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination.cluster import OFFSETS_TOPIC, ClusterState, Topic, slot_of
from kafscale.coordination.topic_configs import effective
from kafscale.errors import Corrupt, Invalid, ObjectMissing
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.earlier_logs import Earlier, EarlierLogs
from kafscale.storage.extents import Extent
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher
from kafscale.storage.keys import index_of, writer_of
from kafscale.storage.log_objects import ManifestPlace
from kafscale.storage.manifest import GroupSnapshot, SlotManifest, restore_partition
from kafscale.storage.partition import PartitionLog, check_dense
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.recovery import LoadedSlot, Replayed, apply_replay, load_slots
from kafscale.storage.store import ObjectStore
from workers.context import ClusterView
from workers.futures import settle

PartitionId = tuple[bytes, int]
# Waiters of a partition that is gone are woken with so many bytes as make any of them look again.
WAKE_ALL = 1 << 40

log = logging.getLogger(__name__)


class GroupState(Protocol):
    """The coordinator's side of loading and snapshotting (`workers/groups.py`)."""

    async def load(self, partition: PartitionLog, state: bytes | None, replay_from: int) -> None:
        """Take over a partition that may coordinate groups: `state` from a manifest, then its records from
        `replay_from` on."""
        ...

    def serve(self, partition: PartitionLog) -> None:
        """Begin to coordinate: the partition is served from now on."""
        ...

    def fail(self, topic: Topic, index: int) -> None:
        """The partition can't be served for damage, whether or not `load` took it over."""
        ...

    def snapshot(self, partition: PartitionLog) -> bytes | None:
        """The state to put into the slot's manifest; None if the partition coordinates nothing."""
        ...

    def close(self, partition: PartitionLog) -> None:
        """Coordinate no more, and keep what a snapshot needs."""
        ...

    def forget(self, partition: PartitionLog) -> None:
        """A closed partition was released."""
        ...

    def topic_deleted(self, topic: Topic) -> None: ...


class References:
    """How many extents refer to each object, and which of our own objects none refers to any more."""

    def __init__(self, log_id: str) -> None:
        self.unreferenced: list[str] = []
        self._log_id = log_id
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: str, count: int = 1) -> None:
        self._counts[key] = self._counts.get(key, 0) + count

    def drop(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            left = self._counts[extent.key] - 1
            if left:
                self._counts[extent.key] = left
                continue
            del self._counts[extent.key]
            # What another incarnation wrote is not ours to delete: the sweep does it.
            if writer_of(extent.key) == self._log_id:
                self.unreferenced.append(extent.key)
                if extent.key.endswith(".kfs"):
                    self.unreferenced.append(index_of(extent.key))


class OwnedSlot:
    """A slot this worker owns. `place` is where its newest manifest lies, `described` up to where that describes each
    partition, until a counting checkpoint names it; `is_dirty`: it has changed since; `is_open`: it was not given to
    another."""

    __slots__ = ("described", "epoch", "is_dirty", "is_open", "partitions", "place", "slot")

    def __init__(self, slot: int, epoch: int, place: ManifestPlace | None) -> None:
        self.slot = slot
        self.epoch = epoch
        self.place = place
        self.is_dirty = False
        self.is_open = True
        self.partitions: dict[PartitionId, PartitionLog] = {}
        self.described: list[tuple[PartitionLog, int]] = []

    def published(self) -> None:
        """A counting checkpoint names `place`."""
        for partition, offset in self.described:
            partition.published_offset = offset
        self.described = []


class ReleasedSlot(msgspec.Struct, frozen=True):
    """A slot that this log has released as assigned at `epoch` and before. `place` is where its last manifest of ours
    lies; None if it was never loaded."""

    epoch: int
    place: ManifestPlace | None


class Ownership:
    """The partitions served here."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        earlier: EarlierLogs,
        clock: Clock,
        random_source: random.Random,
        cluster: ClusterView,
        log_id: str,
        flusher: Flusher,
        groups: GroupState,
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self.slots: dict[int, OwnedSlot] = {}
        # What our checkpoints must go on naming: others' lists may lead to it.
        self.released: dict[int, ReleasedSlot] = {}
        # Slot → epoch of what could not be loaded; and what of it is not wanted before `try_again`.
        self.failed: dict[int, int] = {}
        self._resting: set[tuple[int, int]] = set()
        # Rises whenever a partition comes, goes or gets other settings: what was looked up before holds no more.
        self.generation = 0
        # Called whenever more may be served here, or be known not to be: for who waits for a slot that is being loaded.
        self.waiters: dict[Callable[[], None], None] = {}
        self.references = References(log_id)
        self._partitions: dict[PartitionId, PartitionLog] = {}
        # The same by topic name as well: one look-up on the hot path, whichever a request has.
        self._found: dict[tuple[bytes | str, int], PartitionLog] = {}
        self._loading: set[int] = set()
        # The topics as they were when the cluster state was last followed.
        self._followed: dict[str, Topic] = {}
        self._settings = settings
        self._store = store
        self._earlier = earlier
        self._clock = clock
        self._random = random_source
        self._cluster = cluster
        self._log_id = log_id
        self._flusher = flusher
        self._groups = groups
        self._bugs = bugs

    # Looking up

    def has_failed(self, topic_id: bytes, index: int) -> bool:
        """Whether the partition is ours, and can't be served for damage."""
        state = self._cluster.state
        slot = slot_of(topic_id, index, state.slot_count)
        return slot in self.failed and self._is_assigned(slot, self.failed[slot])

    def partition(self, topic: bytes | str, index: int) -> PartitionLog | None:
        """The partition of this topic (id or name), if it is served here right now."""
        return self._found.get((topic, index))

    def partitions(self) -> Iterable[PartitionLog]:
        """Those served here."""
        return (partition for partition in self._partitions.values() if partition.is_open)

    def __len__(self) -> int:
        """Partitions owned here."""
        return len(self._partitions)

    def may_expire(self, partition: PartitionLog) -> bool:
        """Whether retention may take records: of `__consumer_offsets` only what a manifest's group state contains."""
        return partition.topic != OFFSETS_TOPIC or not self.slots[partition.slot].is_dirty

    def serves(self, partition: PartitionLog) -> bool:
        """Whether it is this very partition that is served here, not one that was deleted or given away meanwhile."""
        return partition.is_open and self._owns(partition)

    def _owns(self, partition: PartitionLog) -> bool:
        """Whether the slot's next manifest of ours will describe it."""
        return self._partitions.get(partition.identity) is partition

    def changed(self, partition: PartitionLog) -> None:
        """The partition's extents are others now: its slot's manifest must be written anew."""
        self.slots[partition.slot].is_dirty = True

    # Loading

    def wanted(self) -> dict[int, list[Earlier]]:
        """The slots that the cluster assigns to this log and that are not loaded yet, and their earlier assignments;
        failed ones once after `try_again`."""
        first = -2 if self._bugs.last_log_alone else 0
        return {
            slot: [Earlier(entry.epoch, entry.log_id) for entry in assignments[first:-1]]
            for slot, assignments in enumerate(self._cluster.state.slots)
            if assignments
            and assignments[-1].log_id == self._log_id
            and slot not in self.slots
            and slot not in self._loading
            and (slot, assignments[-1].epoch) not in self._resting
        }

    def try_again(self) -> None:
        """Let what failed be wanted: objects may have been put back."""
        self._resting.clear()

    async def load(self, is_waiting: bool) -> list[OwnedSlot] | None:
        """Load wanted slots whose earlier owners are done with them; where there are none, wait for some. None where
        nothing is wanted any more, or, where not `is_waiting`, nothing can be loaded now.

        They are complete when this returns, but served only after `serve`, which waits for the first checkpoint. Those
        for which the store does not hold what it must have failed.
        """
        ready = await self._earlier.ready(self.wanted, is_waiting)
        if not ready.lists and not ready.damaged:
            return None
        state = self._cluster.state
        by_slot = self._topics_by_slot()
        for slot, error in ready.damaged.items():
            self._fail(slot, state.slots[slot][-1].epoch, by_slot.get(slot, []), error)
        if not ready.lists:
            return []
        epochs = {slot: state.slots[slot][-1].epoch for slot in ready.lists}
        self._loading.update(ready.lists)
        loaded = await load_slots(
            self._store,
            self._clock,
            self._random,
            ready.lists,
            ready.ends,
            lambda topic_id, index: slot_of(topic_id, index, state.slot_count),
            self._bugs,
        )
        owned = []
        for slot, found in loaded.items():
            entry = OwnedSlot(slot, epochs[slot], None)
            await self._clock.sleep(0)
            try:
                if isinstance(found, Corrupt):
                    raise found
                await self._restore(entry, found, by_slot.get(slot, []))
            except (Corrupt, ObjectMissing) as error:
                self._loading.discard(slot)
                self._fail(slot, entry.epoch, by_slot.get(slot, []), error)
            else:
                owned.append(entry)
        return owned

    def _fail(self, slot: int, epoch: int, members: list[tuple[Topic, int]], error: Exception) -> None:
        """The slot can't be loaded for now. Said once: it is tried again and again."""
        for topic, index in members:
            self._groups.fail(topic, index)
        self._resting.add((slot, epoch))
        if self.failed.get(slot) == epoch:
            return
        self.failed[slot] = epoch
        self._wake()
        log.error(
            "a slot can't be loaded and is not served: an object that it needs is missing or damaged. `kafscale verify`"
            " lists all such objects; once they are put back the slot is loaded",
            extra={
                "slot": slot,
                "cause": str(error),
                "partitions": [f"{topic.name}-{index}" for topic, index in members],
            },
        )

    def serve(self, owned: Iterable[OwnedSlot]) -> None:
        """From now on these slots are served, but for such as were given away meanwhile: a checkpoint of ours names
        them."""
        for entry in owned:
            self.slots[entry.slot] = entry
            self._loading.discard(entry.slot)
            self.failed.pop(entry.slot, None)
            entry.is_open = self._is_ours(entry)
            for partition in entry.partitions.values():
                self._add(partition)
        self._followed = {}
        self.apply_state(self._cluster.state)
        alive = {topic.topic_id for topic in self._cluster.state.topics.values()}
        for identity in [identity for identity in self._partitions if identity[0] not in alive]:
            self._forget(identity)

    def _topics_by_slot(self) -> dict[int, list[tuple[Topic, int]]]:
        by_slot: dict[int, list[tuple[Topic, int]]] = {}
        slot_count = self._cluster.state.slot_count
        for topic in self._cluster.state.topics.values():
            for index in range(topic.partitions):
                by_slot.setdefault(slot_of(topic.topic_id, index, slot_count), []).append((topic, index))
        return by_slot

    async def _restore(self, entry: OwnedSlot, found: LoadedSlot, members: list[tuple[Topic, int]]) -> None:
        manifest = found.manifest or SlotManifest(slot=entry.slot, epoch=0, objects=[], partitions=[])
        described = {(item.topic_id, item.index): item for item in manifest.partitions}
        snapshots = {(item.topic_id, item.index): item.state for item in manifest.groups}
        replays: dict[PartitionId, list[Replayed]] = {}
        for replayed in found.replay:
            replays.setdefault((replayed.group.topic_id, replayed.group.partition), []).append(replayed)
        for topic, index in members:
            identity = (topic.topic_id, index)
            partition = self._new_partition(topic, index, entry)
            if identity in described:
                restore_partition(partition, described[identity], manifest.objects)
            replay_from = partition.high_watermark
            apply_replay(partition, replays.get(identity, ()), self._bugs)
            check_dense(partition)
            partition.lead(entry.epoch)
            await self._groups.load(partition, snapshots.get(identity), replay_from)
            # Only a manifest names what was replayed, and names the topics that are gone no more.
            entry.is_dirty = entry.is_dirty or bool(partition.extents)
        entry.is_dirty = entry.is_dirty or bool(described)
        # Last: of a slot that fails nothing is referred to, and so nothing is ever given up for it.
        for partition in entry.partitions.values():
            for extent in partition.extents:
                self.references.add(extent.key)

    def _new_partition(self, topic: Topic, index: int, entry: OwnedSlot) -> PartitionLog:
        config = effective(topic.configs, self._settings)
        partition = PartitionLog(topic.name, topic.topic_id, index, entry.slot, entry.epoch, config)
        entry.partitions[topic.topic_id, index] = partition
        return partition

    # Following the cluster

    def apply_state(self, state: ClusterState) -> None:
        """Follow the cluster: slots that were given away are closed; new topics and partitions appear, deleted ones go,
        settings take effect."""
        for entry in self.slots.values():
            if entry.is_open and not self._is_ours(entry) and not self._bugs.released_stays_open:
                self._close(entry)
        for name, topic in self._followed.items():
            new = state.topics.get(name)
            if new is None or new.topic_id != topic.topic_id:
                for index in range(topic.partitions):
                    self._forget((topic.topic_id, index))
                self._groups.topic_deleted(topic)
        for name, topic in state.topics.items():
            if self._followed.get(name) is not topic:
                self._follow(topic, state.slot_count)
        self._followed = state.topics
        self._wake()

    def _wake(self) -> None:
        for waiter in list(self.waiters):
            waiter()

    def _follow(self, topic: Topic, slot_count: int) -> None:
        self.generation += 1
        config = effective(topic.configs, self._settings)
        for index in range(topic.partitions):
            partition = self._partitions.get((topic.topic_id, index))
            if partition is not None:
                partition.config = config
                continue
            entry = self.slots.get(slot_of(topic.topic_id, index, slot_count))
            if entry is not None and entry.is_open:
                self._add(self._create(topic, index, entry))

    def _add(self, partition: PartitionLog) -> None:
        self.generation += 1
        self._partitions[partition.topic_id, partition.index] = partition
        if not self.slots[partition.slot].is_open:
            partition.is_open = False
            self._groups.close(partition)
            return
        self._found[partition.topic_id, partition.index] = partition
        self._found[partition.topic, partition.index] = partition
        self._groups.serve(partition)

    def _create(self, topic: Topic, index: int, entry: OwnedSlot) -> PartitionLog:
        partition = self._new_partition(topic, index, entry)
        partition.lead(entry.epoch)
        return partition

    def _forget(self, identity: PartitionId) -> None:
        partition = self._partitions.pop(identity, None)
        if partition is None:
            return
        self._find_no_more(partition)
        entry = self.slots[partition.slot]
        del entry.partitions[identity]
        entry.is_dirty = True
        self.references.drop(partition.extents)

    def _find_no_more(self, partition: PartitionLog) -> None:
        self.generation += 1
        for key in (partition.topic_id, partition.topic):
            if self._found.get((key, partition.index)) is partition:
                del self._found[key, partition.index]
        for waiter in list(partition.waiters):
            waiter(WAKE_ALL)

    # Giving up

    def _is_ours(self, entry: OwnedSlot) -> bool:
        """Whether the cluster still assigns the slot as it is owned."""
        return self._is_assigned(entry.slot, entry.epoch)

    def _is_assigned(self, slot: int, epoch: int) -> bool:
        assignments = self._cluster.state.slots[slot]
        return bool(assignments) and (assignments[-1].epoch, assignments[-1].log_id) == (epoch, self._log_id)

    def _close(self, entry: OwnedSlot) -> None:
        """Serve the slot no more. What was appended becomes durable, and may be told to be."""
        entry.is_open = False
        for partition in entry.partitions.values():
            partition.is_open = False
            self._groups.close(partition)
            self._find_no_more(partition)

    def to_release(self) -> dict[int, int]:
        """Slot → epoch of what was assigned to this log, was given to others, and is not released yet. What is being
        loaded must first be named by a checkpoint."""
        found: dict[int, int] = {}
        for slot, assignments in enumerate(self._cluster.state.slots):
            for entry in assignments[:-1]:
                if entry.log_id == self._log_id and slot not in self._loading:
                    found[slot] = entry.epoch
        return {
            slot: epoch
            for slot, epoch in found.items()
            if slot not in self.released or self.released[slot].epoch < epoch
        }

    def released_at(self, epochs: Mapping[int, int]) -> None:
        """These slots (slot → epoch) are released: a counting checkpoint says so. Their objects stay referred to for as
        long as this incarnation lives, since the new owners' manifests name them."""
        for slot, epoch in epochs.items():
            entry = self.slots.get(slot)
            if self.failed.get(slot, epoch + 1) <= epoch:
                del self.failed[slot]
            if entry is None or entry.epoch > epoch:
                before = self.released.get(slot)
                self.released[slot] = ReleasedSlot(epoch, before.place if before is not None else None)
                continue
            del self.slots[slot]
            self.released[slot] = ReleasedSlot(epoch, entry.place)
            for identity, partition in entry.partitions.items():
                del self._partitions[identity]
                self._groups.forget(partition)
                if self._bugs.released_is_given_up:
                    self.references.drop(partition.extents)

    def forget_released(self) -> list[ManifestPlace]:
        """Forget the released slots whose lists lead to this log no more; returns where their manifests lie."""
        gone = [
            slot
            for slot, released in self.released.items()
            if self._bugs.released_is_forgotten
            or not any(
                entry.log_id == self._log_id and entry.epoch <= released.epoch
                for entry in self._cluster.state.slots[slot]
            )
        ]
        places = [self.released.pop(slot).place for slot in gone]
        return [place for place in places if place is not None]

    # Durability

    def flushed(self, flush: Flush) -> None:
        """A flush is durable: its slots have changed, and its object is referred to."""
        placed = flush.placed
        if placed:
            self.references.add(placed[0][1].key, len(placed))
        served = self._partitions
        slots = set()
        for partition, extent in placed:
            if served.get(partition.identity) is partition:
                slots.add(partition.slot)
            else:
                # The topic was deleted meanwhile. Only now: an object that one lets go of may be all that another has.
                self.references.drop((extent,))
        for slot in slots:
            self.slots[slot].is_dirty = True
        for partition in flush.log_starts:
            if self._owns(partition):
                self.changed(partition)
        # What a topic that was deleted meanwhile referred to has been dropped with it.
        self.references.drop(extent for partition, extent in flush.dropped if self._owns(partition))

    async def delete_records(self, partition: PartitionLog, before_offset: int) -> int:
        """Raise the log start offset to `before_offset` (-1: the high watermark), durably; returns the new one.

        Raises Invalid (OFFSET_OUT_OF_RANGE) above the high watermark or below -1.
        """
        target = partition.high_watermark if before_offset == -1 else before_offset
        if not 0 <= target <= partition.high_watermark:
            raise Invalid(
                ErrorCode.OFFSET_OUT_OF_RANGE,
                f"records before {before_offset} can't be deleted: the high watermark is {partition.high_watermark}",
            )
        if target > partition.log_start_offset:
            durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            flush = self._flusher.raise_log_start(partition, target)
            flush.answers.append(lambda _: settle(durable))
            await durable
        return partition.log_start_offset

    def group_snapshots(self, entry: OwnedSlot) -> list[GroupSnapshot]:
        snapshots = []
        for partition in entry.partitions.values():
            state = self._groups.snapshot(partition)
            if state is not None:
                snapshots.append(GroupSnapshot(partition.topic_id, partition.index, state))
        return snapshots
