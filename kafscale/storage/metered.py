"""What is asked of an object store, counted where it is asked, as it is billed: every request, whatever comes of it.

`Meter` knows the cells of a metrics block that are for this. `S3Store` counts each of its requests by one: every page
of a listing and every batch of a deletion, and again whatever is tried again by those above it. A store that makes no
requests is wrapped in a `MeteredStore`, for which a call is one; it changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from kafscale.clock import Clock, SystemClock
from kafscale.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreIncapable,
    StoreRefused,
    StoreUnavailable,
    StoreUnclear,
)
from kafscale.metrics import (
    REPLICA_PASSED_OVER,
    STORE_BYTES,
    STORE_DELETED,
    STORE_ERRORS,
    STORE_OPERATIONS,
    STORE_PUT_LATENCY,
    STORE_VERBS,
    MetricsBlock,
)
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose

_ERROR_NAMES = {
    StoreUnavailable: "unavailable",
    StoreRefused: "unavailable",
    StoreIncapable: "unavailable",
    StoreUnclear: "unclear",
    ObjectExists: "exists",
    ObjectMissing: "missing",
}


class Meter:
    """Counts in the cells of a metrics block: requests, bytes, errors, and how long PUTs took."""

    def __init__(self, cells: memoryview[int], clock: Clock) -> None:
        self._cells = cells
        self._clock = clock
        self._operations = {(verb, p): STORE_OPERATIONS.at(verb, p) for verb in STORE_VERBS for p in Purpose}
        self._bytes = {(verb, p): STORE_BYTES.at(verb, p) for verb in STORE_VERBS for p in Purpose}

    @classmethod
    def unread(cls) -> Self:
        """One whose figures nobody looks at."""
        return cls(MetricsBlock.in_memory().cells, SystemClock())

    @contextmanager
    def request(self, verb: str, purpose: Purpose, byte_count: int = 0) -> Iterator[None]:
        """A request is made inside, which sends that many bytes of objects. What it raises is a StoreError."""
        began = self._clock.monotonic()
        self._cells[self._operations[verb, purpose]] += 1
        self._cells[self._bytes[verb, purpose]] += byte_count
        try:
            yield
        except StoreError as error:
            self._cells[STORE_ERRORS.at(verb, _ERROR_NAMES.get(type(error), "failed"))] += 1
            raise
        if verb == "put":
            STORE_PUT_LATENCY.observe(self._cells, int((self._clock.monotonic() - began) * 1e6))

    def received(self, purpose: Purpose, byte_count: int) -> None:
        """A GET brought that many bytes."""
        self._cells[self._bytes["get", purpose]] += byte_count

    def deleted(self, count: int) -> None:
        """A deletion took that many objects."""
        self._cells[STORE_DELETED] += count

    def replica_passed_over(self, reason: str) -> None:
        """A read that a replica of the bucket is there for was not served by it."""
        self._cells[REPLICA_PASSED_OVER.at(reason)] += 1


class MeteredStore:
    """`store`, of which every call counts as one request."""

    def __init__(self, store: ObjectStore, meter: Meter) -> None:
        self._store = store
        self._meter = meter

    def __str__(self) -> str:
        return str(self._store)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        with self._meter.request("put", purpose, sum(map(len, parts))):
            await self._store.put_if_absent(key, parts, purpose)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        with self._meter.request("get", purpose):
            data = await self._store.get(key, purpose)
        self._meter.received(purpose, len(data))
        return data

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        with self._meter.request("get", purpose):
            data = await self._store.get_range(key, position, length, purpose)
        self._meter.received(purpose, len(data))
        return data

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        with self._meter.request("get", purpose):
            data, size = await self._store.get_tail(key, length, purpose)
        self._meter.received(purpose, len(data))
        return data, size

    async def exists(self, key: str, purpose: Purpose) -> bool:
        with self._meter.request("get", purpose):
            return await self._store.exists(key, purpose)

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        with self._meter.request("list", purpose):
            return await self._store.list(prefix, purpose, start_after)

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        with self._meter.request("delete", purpose):
            await self._store.delete(keys, purpose)
        self._meter.deleted(len(keys))

    async def close(self) -> None:
        await self._store.close()
