"""Partitions that others lead, as far as the bucket describes them: what is served to clients of this worker's zone
(KIP-392), straight from the store.

Owns the manifests that were read for that, in bounded memory, and the partitions restored from them. They are never
written to, and never stand in for the leader: whatever is not described here is the leader's to tell. What must always
hold: nothing is served that a counting checkpoint does not describe; a partition's high watermark never goes back. A
manifest is read again when a client has come to its end, when an object that it names is gone, and now and then, so
that what was deleted from the front is not served for long.

Where the store is silent or damaged the client is sent to the leader, who knows more, and the log says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination.cluster import Topic, slot_of
from kafscale.coordination.topic_configs import effective
from kafscale.errors import Corrupt, KafscaleError
from kafscale.logs import RateLimited
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.manifest import restore_partition
from kafscale.storage.partition import PartitionLog, PartitionManifest, check_dense
from kafscale.storage.published import PublishedSlot, PublishedSlots
from workers.context import ClusterView

log = logging.getLogger(__name__)

# Of what a client may still read here, how old the knowledge is at most.
AGE_SECONDS_MAX: Final = 30.0
# At the end of what is known, it is asked for more this often at most.
LOOK_AGAIN_SECONDS: Final = 1.0
# How long a client waits for a manifest before it is sent to the leader.
PATIENCE_SECONDS: Final = 5.0
# What manifests and partitions take up in memory, all together, but for a slot that is larger by itself.
MEMORY_BYTES_MAX: Final = 64 << 20
_EXTENT_BYTES: Final = 200
_COMPLAINT_INTERVAL_SECONDS: Final = 30.0

PartitionId = tuple[bytes, int]


class _Slot:
    """A slot as it was read last; `published` is None while nothing describes it."""

    __slots__ = ("described", "looked_at", "partitions", "published", "size")

    def __init__(self) -> None:
        self.published: PublishedSlot | None = None
        self.looked_at = float("-inf")
        self.described: dict[PartitionId, PartitionManifest] = {}
        self.partitions: dict[PartitionId, PartitionLog] = {}
        self.size = 0

    def replace(self, published: PublishedSlot) -> None:
        """Raises Corrupt where a high watermark would go back."""
        described = {(item.topic_id, item.index): item for item in published.manifest.partitions}
        for identity, before in self.described.items():
            now = described.get(identity)
            if now is not None and now.high_watermark < before.high_watermark:
                raise Corrupt(
                    f"{published.place.key} at {published.place.position}: partition {identity[1]} of topic id "
                    f"{identity[0].hex()} ends at {now.high_watermark}, and went up to {before.high_watermark} before"
                )
        # Of no use here.
        published.manifest.groups.clear()
        for item in published.manifest.partitions:
            item.producers.clear()
        self.published = published
        self.described = described
        self.partitions.clear()
        self.size = published.place.length


class ReadReplicas:
    """The partitions of others that clients of this zone read here."""

    def __init__(self, published: PublishedSlots, clock: Clock, cluster: ClusterView, settings: Settings) -> None:
        self._published = published
        self._clock = clock
        self._cluster = cluster
        self._settings = settings
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._looking: dict[int, asyncio.Task[None]] = {}
        self._complaints = RateLimited(clock, _COMPLAINT_INTERVAL_SECONDS)

    async def partition(self, topic: Topic, index: int, offset: int, *, anew: bool = False) -> PartitionLog | None:
        """The partition as the bucket describes it, looked up again if it ends at or before `offset`; None where it is
        not described. `anew`: an object that it named is gone."""
        slot = slot_of(topic.topic_id, index, self._cluster.state.slot_count)
        found = self._slots.get(slot)
        if found is None or anew or self._is_due(found, (topic.topic_id, index), offset):
            await self._look(slot, anew=anew)
            found = self._slots.get(slot)
        if found is None:
            return None
        self._slots.move_to_end(slot)
        return self._restored(found, slot, topic, index)

    def stop(self) -> None:
        for task in list(self._looking.values()):
            task.cancel()

    def _is_due(self, known: _Slot, identity: PartitionId, offset: int) -> bool:
        age = self._clock.monotonic() - known.looked_at
        described = known.described.get(identity)
        is_at_end = described is None or offset >= described.high_watermark
        return age >= (LOOK_AGAIN_SECONDS if is_at_end else AGE_SECONDS_MAX)

    async def _look(self, slot: int, *, anew: bool) -> None:
        """Bring what is known of the slot up to date, for all who wait for it; after a while it is given up."""
        task = self._looking.get(slot)
        if task is None:
            task = self._looking[slot] = asyncio.get_running_loop().create_task(self._read(slot, anew=anew))
            task.add_done_callback(lambda _: self._looking.pop(slot, None))
        patience = self._clock.call_later(PATIENCE_SECONDS, task.cancel)
        try:
            await asyncio.wait({task})
        finally:
            patience.cancel()

    async def _read(self, slot: int, *, anew: bool) -> None:
        known = self._slots.get(slot) or _Slot()
        entries = [Earlier(entry.epoch, entry.log_id) for entry in self._cluster.state.slots[slot]]
        looked_at = self._clock.monotonic()
        try:
            published = await self._published.read(slot, entries, known.published, anew=anew)
            if published is not None and published is not known.published:
                known.replace(published)
        except KafscaleError as error:
            self._complain(slot, str(error))
        except asyncio.CancelledError:
            self._complain(slot, "the store gives no answers")
            raise
        finally:
            known.looked_at = looked_at
            self._slots[slot] = known
            self._make_room(slot)

    def _complain(self, slot: int, why: str) -> None:
        text = "a slot can't be read for clients of this zone, who are sent to its leader"
        self._complaints.log(log, logging.ERROR, text, key=slot, slot=slot, why=why)

    def _restored(self, known: _Slot, slot: int, topic: Topic, index: int) -> PartitionLog | None:
        identity = (topic.topic_id, index)
        partition = known.partitions.get(identity)
        described = known.described.get(identity)
        if partition is not None or described is None or known.published is None:
            return partition
        manifest = known.published.manifest
        config = effective(topic.configs, self._settings)
        partition = PartitionLog(topic.name, topic.topic_id, index, slot, manifest.epoch, config)
        try:
            restore_partition(partition, described, manifest.objects)
            check_dense(partition)
        except Corrupt as error:
            self._complain(slot, str(error))
            return None
        known.partitions[identity] = partition
        known.size += len(partition.extents) * _EXTENT_BYTES
        self._make_room(slot)
        return partition

    def _make_room(self, kept: int) -> None:
        """Forget what was asked for the longest ago, but for the slot that is being asked for."""
        total = sum(known.size for known in self._slots.values())
        for slot in list(self._slots):
            if total <= MEMORY_BYTES_MAX:
                return
            if slot != kept:
                total -= self._slots.pop(slot).size
