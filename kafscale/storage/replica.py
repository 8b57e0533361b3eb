"""An object store whose older data is read from a replica of its bucket, with the primary as fallback.

A replica lags: it serves only what a manifest names, which is bytes that never change. Log ends, checkpoints,
read-backs and listings always come from the primary, and everything is written there.
"""

from __future__ import annotations

from collections.abc import Sequence

from kafscale.errors import ObjectMissing, StoreUnavailable
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose


class ReplicaReads:
    """`primary`, spared the reads for consumers as far as `replica` can answer them."""

    def __init__(self, primary: ObjectStore, replica: ObjectStore) -> None:
        self._primary = primary
        self._replica = replica

    def __str__(self) -> str:
        return f"{self._primary}, read from {self._replica}"

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        await self._primary.put_if_absent(key, parts, purpose)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        if purpose is Purpose.COLD_READ:
            try:
                return await self._replica.get(key, purpose)
            except (ObjectMissing, StoreUnavailable):
                pass
        return await self._primary.get(key, purpose)

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        if purpose is Purpose.COLD_READ:
            try:
                return await self._replica.get_range(key, position, length, purpose)
            except (ObjectMissing, StoreUnavailable):
                pass
        return await self._primary.get_range(key, position, length, purpose)

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        if purpose is Purpose.COLD_READ:
            try:
                return await self._replica.get_tail(key, length, purpose)
            except (ObjectMissing, StoreUnavailable):
                pass
        return await self._primary.get_tail(key, length, purpose)

    async def exists(self, key: str, purpose: Purpose) -> bool:
        return await self._primary.exists(key, purpose)

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        return await self._primary.list(prefix, purpose, start_after)

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        await self._primary.delete(keys, purpose)

    async def close(self) -> None:
        await self._replica.close()
        await self._primary.close()
