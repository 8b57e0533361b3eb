"""Reads what a cluster holds from its bucket, as the brokers would on a start: for `kafscale recover` and `verify`.

It goes from the cluster state to the logs that slots name, from their newest checkpoints to the slots' manifests, and
shows each partition to a visitor as an owner would load it, with the same code (`manifest`, `recovery`, `partition`).
Where an owner would stop, it notes a finding, with the offsets that can't be served, and goes on. It writes nothing,
ends no log and waits for nobody, so it may read a running cluster; what it then finds missing may have been replaced
meanwhile, and whoever calls looks again (`verify.py`).

Memory: one log's rows since its checkpoint at a time (of logs that slots are moving from, all of them), and one slot's
manifest for each that is read at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from kafscale.config import Settings
from kafscale.coordination.assignment import FIRST_EPOCH
from kafscale.coordination.cluster import Assignment, ClusterState, Topic, slot_of
from kafscale.coordination.groups.events import GroupConfig
from kafscale.coordination.groups.shard import GroupShard
from kafscale.coordination.topic_configs import effective
from kafscale.errors import Corrupt, ObjectMissing
from kafscale.storage.keys import Keys, index_of, sequence_of
from kafscale.storage.log_objects import BatchGroup, LogStart, ManifestPlace
from kafscale.storage.manifest import SlotManifest, decode_manifest, restore_partition
from kafscale.storage.partition import PartitionLog
from kafscale.storage.recovery import Replayed, apply_replay
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.takeover import LogReader
from kafscale.storage.verification import OffsetRange, Wrong, joined
from supervisor.log_walk import LogWalker, LostObject, WalkedLog

MANIFESTS_AT_ONCE = 8

_Identity = tuple[bytes, int]
_Replays = dict[_Identity, list[Replayed]]


class Finding(msgspec.Struct, frozen=True):
    """Something wrong in the bucket: what, with which object, and which offsets it takes along."""

    wrong: Wrong
    key: str
    problem: str
    affected: list[OffsetRange] = []


class LoadedPartition(msgspec.Struct, frozen=True):
    """A partition as an owner would load it. Of one that coordinates groups, `group_state` is what its manifest holds,
    and its records from `replay_from` on come on top."""

    log: PartitionLog
    group_state: bytes | None
    replay_from: int


class Contents(msgspec.Struct):
    """What was read. `named` are the keys of all objects that something current refers to."""

    logs: dict[str, WalkedLog] = {}
    owners: set[str] = set()
    named: set[str] = set()
    findings: list[Finding] = []
    to_replay: int = 0


class _Gap(msgspec.Struct, frozen=True):
    """Offsets that a partition lacks between two objects of a log (`after` and `before` are their numbers)."""

    after: int
    before: int
    affected: OffsetRange


class BucketReader:
    """Reads one cluster state's slots. `read` once."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        keys: Keys,
        reader: LogReader,
        state: ClusterState,
        visit: Callable[[LoadedPartition], Awaitable[None]],
        progress: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._walker = LogWalker(reader, keys)
        self._state = state
        self._visit = visit
        self._progress = progress
        self._contents = Contents()
        self._replays: dict[str, _Replays] = {}
        self._gaps: dict[str, list[_Gap]] = defaultdict(list)
        self._topics = {topic.topic_id: topic for topic in state.topics.values()}
        self._by_slot: dict[int, list[tuple[Topic, int]]] = defaultdict(list)
        for topic in state.topics.values():
            for index in range(topic.partitions):
                self._by_slot[slot_of(topic.topic_id, index, state.slot_count)].append((topic, index))

    async def read(self, listed: Mapping[str, Sequence[int]]) -> Contents:
        """`listed`: log id → the numbers that a listing showed, in order."""
        contents = self._contents
        contents.owners = {entries[-1].log_id for entries in self._state.slots if entries}
        settled: dict[str, list[int]] = defaultdict(list)
        moving: list[int] = []
        for slot, entries in enumerate(self._state.slots):
            if len(entries) == 1:
                settled[entries[0].log_id].append(slot)
            elif entries:
                moving.append(slot)
        together = sorted({entry.log_id for slot in moving for entry in self._state.slots[slot]})
        alone = sorted(settled.keys() - set(together))
        # Logs that several must be known of to choose between them; then one after the other.
        rounds = [(together, moving + [slot for log_id in together for slot in settled.get(log_id, ())])]
        rounds += [([log_id], settled[log_id]) for log_id in alone]
        slots_read = 0
        for log_ids, slots in rounds:
            for log_id in log_ids:
                await self._read_log(log_id, listed.get(log_id, ()))
                self._progress(f"read {len(contents.logs)} of {len(together) + len(alone)} logs")
            for start in range(0, len(slots), MANIFESTS_AT_ONCE):
                await asyncio.gather(*map(self._read_slot, slots[start : start + MANIFESTS_AT_ONCE]))
                slots_read += len(slots[start : start + MANIFESTS_AT_ONCE])
                self._progress(f"read {slots_read} of {len(self._state.slots)} slots")
            for log_id in log_ids:
                self._finish_log(contents.logs[log_id])
        return contents

    # Logs

    async def _read_log(self, log_id: str, listed: Sequence[int]) -> None:
        log = self._contents.logs[log_id] = await self._walker.walk(log_id, listed)
        self._contents.to_replay += len(log.objects)
        # Everything from the covered sequence to the end stays, whoever reads it.
        numbers = {entry.header.sequence for entry in log.objects} | {lost.number for lost in log.lost}
        if log.checkpoint is not None:
            numbers.add(log.checkpoint_sequence)
        if log.sealed:
            numbers.add(log.end)
        self._contents.named.update(self._keys.log(log_id, number) for number in numbers)
        replays: _Replays = defaultdict(list)
        for entry in log.objects:
            for group in entry.groups or ():
                if isinstance(group, BatchGroup | LogStart):
                    replayed = Replayed(entry.key, entry.header.created_ms, group)
                    replays[group.topic_id, group.partition].append(replayed)
        self._replays[log_id] = replays

    def _finish_log(self, log: WalkedLog) -> None:
        """Report what is wrong with the log itself, and forget its rows."""
        if log.problem:
            slots = sum(any(entry.log_id == log.log_id for entry in entries) for entries in self._state.slots)
            problem = f"the log's newest checkpoint can't be reached, and {slots} slots not be loaded: {log.problem}"
            if log.culprit is not None:
                self._report(log.culprit.wrong, self._keys.log(log.log_id, log.culprit.number), problem)
            else:
                self._report(Wrong.CORRUPT, self._keys.log_objects(log.log_id), problem)
        for lost in log.damaged:
            self._report(lost.wrong, self._keys.log(log.log_id, lost.number), lost.problem)
        for lost in log.lost:
            self._report_lost(log, lost)
        log.objects = []
        self._replays.pop(log.log_id, None)
        self._gaps.pop(log.log_id, None)

    def _report_lost(self, log: WalkedLog, lost: LostObject) -> None:
        gaps = self._gaps.get(log.log_id, ())
        affected = [gap.affected for gap in gaps if gap.after < lost.number < gap.before]
        problem = lost.problem or "the log goes on above this number"
        problem += "; what it held of partitions that don't go on behind it is not known"
        self._report(lost.wrong, self._keys.log(log.log_id, lost.number), problem, joined(sorted(affected)))

    # Slots

    async def _read_slot(self, slot: int) -> None:
        choice = self._choose(slot, self._state.slots[slot])
        if choice is None:
            return
        log, place = choice
        manifest: SlotManifest | None = SlotManifest(slot=slot, epoch=place.epoch, objects=[], partitions=[])
        if place.key:
            self._contents.named.add(place.key)
            manifest = await self._read_manifest(slot, place)
        if manifest is None:
            return
        self._contents.named.update(manifest.objects)
        self._contents.named.update(index_of(key) for key in manifest.objects if key.endswith(".kfs"))
        await self._load(slot, place, manifest, log)

    def _choose(self, slot: int, assignments: Sequence[Assignment]) -> tuple[WalkedLog, ManifestPlace] | None:
        """As a new owner chooses (`recovery.py`)."""
        for assignment in reversed(assignments):
            log = self._contents.logs[assignment.log_id]
            place = log.checkpoint.slots.get(slot) if log.checkpoint is not None else None
            if place is not None and place.epoch == assignment.epoch:
                return log, place
        if assignments[0].epoch != FIRST_EPOCH:
            problem = f"no checkpoint names slot {slot}, which was first assigned before epoch {assignments[0].epoch}"
            key = self._keys.log_objects(assignments[-1].log_id)
            self._report(Wrong.MISSING, key, problem, self._whole_partitions(slot))
        return None

    async def _read_manifest(self, slot: int, place: ManifestPlace) -> SlotManifest | None:
        whole = self._whole_partitions(slot)
        try:
            data = await self._store.get_range(place.key, place.position, place.length, Purpose.RECOVERY)
            manifest = decode_manifest(data, f"the manifest of slot {slot} at {place.position}")
            for group in manifest.groups:
                GroupShard.restore(group.state, GroupConfig(), new_id=str)
        except ObjectMissing:
            self._report(Wrong.MISSING, place.key, f"the manifest of slot {slot} lies there", whole)
            return None
        except Corrupt as error:
            self._report(Wrong.CORRUPT, place.key, str(error), whole)
            return None
        if manifest.slot != slot:
            problem = f"at {place.position} lies the manifest of slot {manifest.slot}, where that of {slot} should"
            self._report(Wrong.MISPLACED, place.key, problem, whole)
            return None
        return manifest

    def _whole_partitions(self, slot: int) -> list[OffsetRange]:
        """All of the slot's partitions, to an end that nobody knows."""
        return [OffsetRange(topic.topic_id, index, 0, -1) for topic, index in self._by_slot[slot]]

    async def _load(self, slot: int, place: ManifestPlace, manifest: SlotManifest, log: WalkedLog) -> None:
        described = {(item.topic_id, item.index): item for item in manifest.partitions}
        states = {(item.topic_id, item.index): item.state for item in manifest.groups}
        for topic, index in self._by_slot[slot]:
            identity = (topic.topic_id, index)
            config = effective(topic.configs, self._settings)
            partition = PartitionLog(topic.name, topic.topic_id, index, slot, place.epoch, config)
            if identity in described:
                restore_partition(partition, described[identity], manifest.objects)
            self._check_dense(partition, place.key)
            self._check_segment_places(partition)
            replay_from = partition.high_watermark
            replayed = self._replays[log.log_id].get(identity, ())
            self._replay(partition, [r for r in replayed if r.group.leader_epoch == place.epoch], log)
            await self._visit(LoadedPartition(partition, states.get(identity), replay_from))
        for topic_id, index in described:
            if topic_id in self._topics and slot_of(topic_id, index, self._state.slot_count) != slot:
                name = self._topics[topic_id].name
                problem = f"the manifest of slot {slot} describes {name}-{index}, which is not in that slot"
                self._report(Wrong.MISPLACED, place.key, problem)

    def _check_dense(self, partition: PartitionLog, key: str) -> None:
        """Report what the manifest's extents leave out between the log's start and the high watermark."""
        due = partition.log_start_offset
        for extent in partition.extents:
            if extent.base_offset > due:
                self._report_hole(partition, key, due, extent.base_offset - 1)
            due = max(due, extent.last_offset + 1)
        if due < partition.high_watermark:
            self._report_hole(partition, key, due, partition.high_watermark - 1)

    def _report_hole(self, partition: PartitionLog, key: str, first: int, last: int) -> None:
        affected = OffsetRange(partition.topic_id, partition.index, first, last)
        self._report(Wrong.CORRUPT, key, "the manifest names no object for some offsets", [affected])

    def _check_segment_places(self, partition: PartitionLog) -> None:
        """A segment lies in its partition's folder."""
        topics_prefix = self._keys.topics_prefix
        folder = f"{topics_prefix}{partition.topic}/{partition.topic_id.hex()}/{partition.index}/"
        for key in {extent.key for extent in partition.extents}:
            if key.startswith(topics_prefix) and not key.startswith(folder):
                problem = f"{partition.topic}-{partition.index} refers to it, whose segments lie below {folder}"
                self._report(Wrong.MISPLACED, key, problem)

    def _replay(self, partition: PartitionLog, replayed: Iterable[Replayed], log: WalkedLog) -> None:
        after = log.covered - 1
        for entry in replayed:
            number = sequence_of(entry.key)
            if isinstance(entry.group, BatchGroup) and entry.group.rows:
                first = entry.group.rows[0][0]
                if first > partition.high_watermark:
                    affected = OffsetRange(partition.topic_id, partition.index, partition.high_watermark, first - 1)
                    self._note_gap(_Gap(after, number, affected), entry.key, log)
                    partition.high_watermark = partition.next_offset = first
            try:
                apply_replay(partition, [entry])
            except Corrupt as error:
                self._report(Wrong.CORRUPT, entry.key, str(error))
            after = number

    def _note_gap(self, gap: _Gap, key: str, log: WalkedLog) -> None:
        self._gaps[log.log_id].append(gap)
        if not any(gap.after < lost.number < gap.before for lost in log.lost):
            self._report(Wrong.CORRUPT, key, "offsets are left out before this object", [gap.affected])

    def _report(self, wrong: Wrong, key: str, problem: str, affected: Sequence[OffsetRange] = ()) -> None:
        self._contents.findings.append(Finding(wrong, key, problem, list(affected)))
