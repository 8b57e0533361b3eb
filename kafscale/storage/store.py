"""The one interface to an object store, and what every implementation promises.

A store is a flat map from key to immutable bytes. Keys are `/`-separated ASCII. What must hold of every implementation:

- `put_if_absent` creates an object in one step or not at all, is durable when it returns, and has one winner among any
  number of callers (S3: `If-None-Match: *`; a directory: write, fsync, link, fsync of the folder).
- An object never changes once it exists; it may be deleted.
- `list` is consistent: it names every object whose `put_if_absent` returned before the call. Its order is by key.

Retry, metrics and caches are wrappers of this same interface. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

Buffer = bytes | bytearray | memoryview

# How many keys one request of S3's DeleteObjects names at most: who deletes more does it in steps of so many.
DELETE_BATCH = 1000


class Purpose(StrEnum):
    """Why a request is made: a label for metrics and money, not for behaviour, but for two: to a local directory
    FLUSH says that the object, if small, is one of many that compaction soon rewrites, so that it keeps them together;
    and a replica of the bucket, if there is one, is asked for a COLD_READ. Everything holds of them all the same."""

    FLUSH = "flush"
    CHECKPOINT = "checkpoint"
    COMPACTION = "compaction"
    COLD_READ = "cold_read"
    SECOND_READ = "second_read"  # Of what came damaged by a COLD_READ.
    RECOVERY = "recovery"
    MANIFEST = "manifest"
    CLUSTER = "cluster"
    SWEEP = "sweep"


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """What a listing says of an object: its key, size in bytes, and time of creation in the store's own clock."""

    key: str
    size: int
    created_ms: int


class ObjectStore(Protocol):
    """Durable objects by key. Every method may raise `StoreUnavailable` (nothing was applied, try again later) and
    `StoreFailed` (the store can no longer be trusted: stop)."""

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        """Create `key` holding the concatenation of `parts`; durable on return.

        The buffers must stay unchanged until the call ends. Raises `ObjectExists` if the key is taken (perhaps by an
        earlier try of our own) and `StoreUnclear` if it can't be told whether the object was created.
        """
        ...

    async def get(self, key: str, purpose: Purpose) -> bytes:
        """The whole object. Raises `ObjectMissing`."""
        ...

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        """`length` bytes from `position` (fewer where the object ends). Raises `ObjectMissing`."""
        ...

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        """The last `length` bytes (fewer in a smaller object) and the object's size. Raises `ObjectMissing`."""
        ...

    async def exists(self, key: str, purpose: Purpose) -> bool:
        """Whether the key is taken."""
        ...

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        """Every object whose key starts with `prefix` and sorts after `start_after`, in key order."""
        ...

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        """Remove the objects; a key that is not there is no error."""
        ...

    async def close(self) -> None:
        """Release threads and connections. No call may follow."""
        ...
