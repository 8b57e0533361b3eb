"""A wrapper of any object store that counts its requests, bytes, errors and PUT times. It changes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from kafscale.clock import Clock
from kafscale.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreIncapable,
    StoreRefused,
    StoreUnavailable,
    StoreUnclear,
)
from kafscale.metrics import STORE_BYTES, STORE_DELETED, STORE_ERRORS, STORE_OPERATIONS, STORE_PUT_LATENCY
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose

_ERROR_NAMES = {
    StoreUnavailable: "unavailable",
    StoreRefused: "unavailable",
    StoreIncapable: "unavailable",
    StoreUnclear: "unclear",
    ObjectExists: "exists",
    ObjectMissing: "missing",
}


class MeteredStore:
    """`store`, counted in the cells of a metrics block."""

    def __init__(self, store: ObjectStore, cells: memoryview[int], clock: Clock) -> None:
        self._store = store
        self._cells = cells
        self._clock = clock
        self._operations = {(verb, p): STORE_OPERATIONS.at(verb, p) for verb in _VERBS for p in Purpose}
        self._bytes = {(verb, p): STORE_BYTES.at(verb, p) for verb in _VERBS for p in Purpose}

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        began = self._clock.monotonic()
        self._count("put", purpose, sum(map(len, parts)))
        try:
            await self._store.put_if_absent(key, parts, purpose)
        except StoreError as error:
            self._fail("put", error)
            raise
        STORE_PUT_LATENCY.observe(self._cells, int((self._clock.monotonic() - began) * 1e6))

    async def get(self, key: str, purpose: Purpose) -> bytes:
        try:
            data = await self._store.get(key, purpose)
        except StoreError as error:
            self._fail("get", error)
            raise
        self._count("get", purpose, len(data))
        return data

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        try:
            data = await self._store.get_range(key, position, length, purpose)
        except StoreError as error:
            self._fail("get", error)
            raise
        self._count("get", purpose, len(data))
        return data

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        try:
            data, size = await self._store.get_tail(key, length, purpose)
        except StoreError as error:
            self._fail("get", error)
            raise
        self._count("get", purpose, len(data))
        return data, size

    async def exists(self, key: str, purpose: Purpose) -> bool:
        self._count("get", purpose, 0)
        return await self._store.exists(key, purpose)

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        self._count("list", purpose, 0)
        try:
            return await self._store.list(prefix, purpose, start_after)
        except StoreError as error:
            self._fail("list", error)
            raise

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        self._count("delete", purpose, 0)
        try:
            await self._store.delete(keys, purpose)
        except StoreError as error:
            self._fail("delete", error)
            raise
        self._cells[STORE_DELETED] += len(keys)

    async def close(self) -> None:
        await self._store.close()

    def _count(self, verb: str, purpose: Purpose, byte_count: int) -> None:
        self._cells[self._operations[verb, purpose]] += 1
        self._cells[self._bytes[verb, purpose]] += byte_count

    def _fail(self, verb: str, error: StoreError) -> None:
        self._cells[STORE_ERRORS.at(verb, _ERROR_NAMES.get(type(error), "failed"))] += 1


_VERBS = ("put", "get", "list", "delete")
