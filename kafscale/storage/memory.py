"""An object store in memory, for tests and the simulation.

It owns a dictionary. It keeps the promises of `store.py` within one process, and must not know what the bytes mean.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from kafscale.clock import Clock
from kafscale.errors import ObjectExists, ObjectMissing
from kafscale.storage.keys import check_key
from kafscale.storage.store import Buffer, ObjectInfo, Purpose


class MemoryStore:
    """Objects held by a dictionary; see `ObjectStore` for what each method promises."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._sorted_keys: list[str] = []

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        check_key(key)
        if key in self._objects:
            raise ObjectExists(f"object {key} exists")
        self._objects[key] = (b"".join(parts), self._clock.wall_ms())
        insort(self._sorted_keys, key)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return self._body(key)

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        if position < 0 or length < 0:
            raise ValueError(f"no range of {length} bytes at {position} can be read from {key}")
        return self._body(key)[position : position + length]

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        if length < 0:
            raise ValueError(f"no tail of {length} bytes can be read from {key}")
        body = self._body(key)
        return body[max(0, len(body) - length) :], len(body)

    async def exists(self, key: str, purpose: Purpose) -> bool:
        check_key(key)
        return key in self._objects

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        if prefix:
            check_key(prefix + "x")  # Some key begins so.
        keys = self._sorted_keys
        first = bisect_right(keys, start_after) if start_after >= prefix else bisect_left(keys, prefix)
        found = []
        for index in range(first, len(keys)):
            key = keys[index]
            if not key.startswith(prefix):
                break
            body, created_ms = self._objects[key]
            found.append(ObjectInfo(key, len(body), created_ms))
        return found

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        for key in keys:
            check_key(key)
            if self._objects.pop(key, None) is not None:
                del self._sorted_keys[bisect_left(self._sorted_keys, key)]

    async def close(self) -> None:
        return None

    def _body(self, key: str) -> bytes:
        check_key(key)
        held = self._objects.get(key)
        if held is None:
            raise ObjectMissing(f"there is no object {key}")
        return held[0]
