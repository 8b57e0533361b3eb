"""What the storage tests build on: virtual time, a store that fails by script, a writer made of the real parts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from kafscale.clock import Clock, SystemClock, Timer
from kafscale.errors import Corrupt
from kafscale.protocol.batches import build_batch, read_header
from kafscale.storage.earlier_logs import EarlierLogs, Lists
from kafscale.storage.extents import Extent
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher, FlushPolicy
from kafscale.storage.keys import Keys, writer_of
from kafscale.storage.log_objects import Checkpoint, ManifestPlace, encode_small
from kafscale.storage.manifest import encode_manifest
from kafscale.storage.memory import MemoryStore
from kafscale.storage.partition import PartitionLog
from kafscale.storage.recovery import LoadedSlot, load_slots
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose
from kafscale.storage.tail_cache import TailCache
from kafscale.storage.worker_log import WorkerLog
from tests.sim import loop as sim

EPOCH_MS = 1_800_000_000_000
KEYS = Keys("ns")

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` in virtual time; what nobody caught fails the test."""
    loop = sim.SimLoop()
    result = sim.run(main, loop)
    assert not loop.uncaught, loop.uncaught
    return result


def log_id(number: int) -> str:
    return f"{number:032x}"


class QuickClock(SystemClock):
    """Sleeping takes no time, and is seen by `monotonic`."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.slept

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        await asyncio.sleep(0)


class LoopClock:
    """A `Clock` on the running loop's time."""

    def wall_ms(self) -> int:
        return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


class Put(msgspec.Struct):
    """How the next put of a key goes: `before` and `after` are raised before or after it takes effect."""

    before: Exception | None = None
    after: Exception | None = None
    seconds: float = 0.0


class ScriptedStore:
    """A store in memory whose requests take time and fail as the test says. Notes what was asked of it."""

    def __init__(self, clock: LoopClock, inner: MemoryStore | None = None) -> None:
        self.inner = inner or MemoryStore(clock)
        self.puts: dict[str, list[Put]] = {}
        self.put_seconds: Callable[[str], float] = lambda key: 0.001
        self.read_seconds = 0.001
        self.read_errors: dict[str, list[Exception]] = {}
        self.asked: list[tuple[str, str]] = []
        self.ranges: list[tuple[int, int]] = []
        self.deleted: list[str] = []
        self.delete_errors: list[Exception] = []
        self._waiting: list[tuple[str, str, asyncio.Event]] = []
        self._clock = clock

    def _note(self, how: str, key: str) -> None:
        self.asked.append((how, key))
        for waiting in [entry for entry in self._waiting if entry[0] == how and entry[1] in key]:
            self._waiting.remove(waiting)
            waiting[2].set()

    async def wait_for(self, how: str, part: str) -> None:
        """Wait until a request is made whose key has `part` in it."""
        asked = asyncio.Event()
        self._waiting.append((how, part, asked))
        await asked.wait()

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        self._note("put", key)
        script = self.puts.get(key)
        put = script.pop(0) if script else Put(seconds=self.put_seconds(key))
        await self._clock.sleep(put.seconds)
        if put.before is not None:
            raise put.before
        await self.inner.put_if_absent(key, parts, purpose)
        if put.after is not None:
            raise put.after

    async def _read(self, how: str, key: str) -> None:
        self._note(how, key)
        await self._clock.sleep(self.read_seconds)
        if self.read_errors.get(key):
            raise self.read_errors[key].pop(0)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        await self._read("get", key)
        return await self.inner.get(key, purpose)

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        await self._read("get_range", key)
        self.ranges.append((position, length))
        return await self.inner.get_range(key, position, length, purpose)

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        await self._read("get_tail", key)
        return await self.inner.get_tail(key, length, purpose)

    async def exists(self, key: str, purpose: Purpose) -> bool:
        await self._read("exists", key)
        return await self.inner.exists(key, purpose)

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        await self._read("list", prefix)
        return await self.inner.list(prefix, purpose, start_after)

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        if self.delete_errors:
            raise self.delete_errors.pop(0)
        self.deleted += keys
        await self.inner.delete(keys, purpose)

    async def close(self) -> None:
        return None

    async def damage(self, key: str, position: int) -> None:
        """Flip a bit of an object."""
        body = bytearray(await self.inner.get(key, Purpose.RECOVERY))
        body[position] ^= 0x10
        await self.inner.delete([key], Purpose.SWEEP)
        await self.inner.put_if_absent(key, [body], Purpose.FLUSH)

    async def keys(self, prefix: str = "ns/") -> list[str]:
        return [info.key for info in await self.inner.list(prefix, Purpose.RECOVERY)]


class Config(msgspec.Struct, kw_only=True):
    """The settings of a topic."""

    retention_ms: int = -1
    retention_bytes: int = -1
    segment_bytes: int = 1 << 30
    max_message_bytes: int = 1 << 20


def topic_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def make_partition(number: int = 0, epoch: int = 1, config: Config | None = None, slot: int = 0) -> PartitionLog:
    partition = PartitionLog(f"topic{number}", topic_id(number), number % 3, slot, epoch, config or Config())
    partition.lead(epoch)
    return partition


def batch_of(size: int, records: int = 1, chance: random.Random | None = None, **fields: Any) -> bytearray:
    """A batch of `records` whose values have about `size` bytes together."""
    each = max(0, size // records)
    value = chance.randbytes(each) if chance is not None else b"v" * each
    fields.setdefault("timestamp_ms", EPOCH_MS)
    return build_batch([(None, value)] * records, **fields)


class References:
    """A plain count of who refers to what, which fails where one is dropped that was never added."""

    def __init__(self, own_log_id: str) -> None:
        self.counts: dict[str, int] = {}
        self.unreferenced: list[str] = []
        self._log_id = own_log_id

    def add(self, key: str, count: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + count

    def drop(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            self.counts[extent.key] -= 1
            assert self.counts[extent.key] >= 0
            if self.counts[extent.key] == 0:
                del self.counts[extent.key]
                if writer_of(extent.key) == self._log_id:
                    self.unreferenced.append(extent.key)


class Writer:
    """A worker incarnation's writing half: log, flusher and tail cache."""

    def __init__(
        self,
        store: ScriptedStore | MemoryStore,
        number: int = 1,
        policy: FlushPolicy | None = None,
        tail_bytes: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        self.store = store
        self.clock = LoopClock()
        self.log_id = log_id(number)
        self.fenced: list[str] = []
        self.flushed: list[Flush] = []
        self.references = References(self.log_id)
        self.tail = TailCache(tail_bytes)
        self.random = random.Random(seed)
        self.log = WorkerLog(store, KEYS, self.log_id, self.clock, self.random, self.fenced.append)
        self.flusher = Flusher(
            self.log,
            KEYS,
            self.clock,
            policy or FlushPolicy(flush_bytes=4 << 20, interval_s=None),
            self.tail,
            self._on_flushed,
        )

    def _on_flushed(self, flush: Flush, seconds: float) -> None:
        self.flushed.append(flush)
        for _, extent in flush.placed:
            self.references.add(extent.key)
        self.references.drop(extent for _, extent in flush.dropped)

    def append(self, partition: PartitionLog, batch: bytearray) -> tuple[int, Flush]:
        return self.flusher.append(partition, batch, read_header(batch), self.clock.wall_ms())

    async def settle(self) -> None:
        """Wait until everything appended is durable."""
        flush = self.flusher.barrier()
        if flush is not None and not flush.durable:
            done = asyncio.get_running_loop().create_future()
            flush.answers.append(lambda *_: done.done() or done.set_result(None))
            await done
        while self.log.in_flight:
            await self.clock.sleep(0.001)

    async def flush(self, partition: PartitionLog, *batches: bytearray) -> None:
        """Append and make durable, as one object."""
        for batch in batches:
            self.append(partition, batch)
        await self.settle()


async def content(store: ScriptedStore | MemoryStore, partition: PartitionLog) -> bytes:
    """Everything that the partition's extents hold, from the store alone."""
    pieces = []
    for extent in partition.extents:
        pieces.append(await store.get_range(extent.key, extent.position, extent.length, Purpose.COLD_READ))
        assert len(pieces[-1]) == extent.length
    return b"".join(pieces)


def earlier_logs(store: ObjectStore, clock: Clock, patience_seconds: float = 10.0) -> EarlierLogs:
    return EarlierLogs(store, KEYS, clock, random.Random(5), "test", patience_seconds)


async def load_ready(store: ObjectStore, clock: Clock, lists: Lists, slot_of: Any) -> dict[int, LoadedSlot]:
    """Load all these slots, whose earlier logs are done with them. Raises Corrupt where one can't be loaded."""
    ready = await earlier_logs(store, clock).ready(lambda: lists, is_waiting=True)
    for damage in ready.damaged.values():
        raise damage
    assert ready.lists == lists
    loaded = await load_slots(store, clock, random.Random(6), lists, ready.ends, slot_of)
    for found in loaded.values():
        if isinstance(found, Corrupt):
            raise found
    return loaded  # type: ignore[return-value]


async def write_checkpoint(
    writer: Writer,
    slots: dict[int, tuple[int, list[PartitionLog]]],
    given_up: Sequence[str] = (),
    covered: int = -1,
    released: dict[int, int] | None = None,
) -> ManifestPlace | None:
    """Write the slots' (slot → epoch, partitions) manifests as one object, and a checkpoint that names them."""
    covered = covered if covered >= 0 else writer.log.counted
    key = KEYS.manifest(writer.log_id, writer.log.next_sequence)
    pieces, places, position = [], {}, 0
    for slot, (epoch, partitions) in slots.items():
        pieces.append(encode_manifest(slot, epoch, partitions, []))
        places[slot] = ManifestPlace(epoch, key, position, len(pieces[-1]))
        position += len(pieces[-1])
    await writer.store.put_if_absent(key, pieces, Purpose.CHECKPOINT)
    checkpoint = Checkpoint(covered=covered, slots=places, given_up=list(given_up), released=released or {})
    durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(sequence: int) -> None:
        writer.log.checkpoint_sequence = sequence
        durable.set_result(None)

    writer.flusher.checkpoint(lambda header: encode_small(header, checkpoint), settle)
    await durable
    return next(iter(places.values()), None)
