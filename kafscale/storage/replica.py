"""An object store whose older data is read from a replica of its bucket, with the primary as fallback.

A replica lags: it serves only ranges that a manifest names, which are bytes that never change. Log ends, checkpoints,
read-backs and listings always come from the primary, and everything is written there. What the replica lacks, or has
less of than was asked for, the primary is asked for at once; and so is a consumer's reader whose bytes from the replica
had a wrong checksum (`SECOND_READ`). A replica that gives no answer, or refuses, is let alone for a while, after which
one read tries it: nobody else waits for it. Each read that the primary had to serve is counted, by why, and logged now
and then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from kafscale.clock import Clock
from kafscale.errors import ObjectMissing, StoreError
from kafscale.logs import RateLimited
from kafscale.storage.metered import Meter
from kafscale.storage.store import Buffer, ObjectInfo, ObjectStore, Purpose

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 30.0
_WARNING_INTERVAL_SECONDS: Final = 60.0


class ReplicaReads:
    """`primary`, spared the reads for consumers as far as `replica` can answer them."""

    def __init__(self, primary: ObjectStore, replica: ObjectStore, clock: Clock, meter: Meter) -> None:
        self._primary = primary
        self._replica = replica
        self._clock = clock
        self._meter = meter
        self._warnings = RateLimited(clock, _WARNING_INTERVAL_SECONDS)
        # Since it gave no answer: when one read may try it again.
        self._again_at: float | None = None
        self._has_served = False

    def __str__(self) -> str:
        return f"{self._primary}, read from {self._replica}"

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        await self._primary.put_if_absent(key, parts, purpose)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return await self._primary.get(key, purpose)

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        if purpose is Purpose.COLD_READ:
            found = await self._from_replica(key, position, length)
            if found is not None:
                return found
        elif purpose is Purpose.SECOND_READ:
            self._fall_back("damaged", key)
        return await self._primary.get_range(key, position, length, purpose)

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
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

    async def _from_replica(self, key: str, position: int, length: int) -> bytes | None:
        """The bytes; None where the primary must be asked."""
        if not self._may_ask():
            self._meter.replica_passed_over("paused")
            return None
        try:
            data = await self._replica.get_range(key, position, length, Purpose.COLD_READ)
        except ObjectMissing:
            self._again_at = None
            self._fall_back("missing", key)
            return None
        except StoreError as error:
            self._again_at = self._clock.monotonic() + PAUSE_SECONDS
            self._fall_back("unavailable", key, str(error))
            return None
        self._again_at = None
        if len(data) < length:
            self._fall_back("short", key)
            return None
        self._has_served = True
        return data

    def _may_ask(self) -> bool:
        if self._again_at is None:
            return True
        now = self._clock.monotonic()
        if now < self._again_at:
            return False
        # This one tries, the others wait for how it ends.
        self._again_at = now + PAUSE_SECONDS
        return True

    def _fall_back(self, reason: str, key: str, cause: str | None = None) -> None:
        self._meter.replica_passed_over(reason)
        if reason == "missing" and self._has_served:
            return  # It lags. One that never had anything may be of another bucket.
        more = {} if cause is None else {"cause": cause}
        self._warnings.log(
            log,
            logging.WARNING,
            "the replica could not be read from, the bucket was",
            key=reason,
            replica=str(self._replica),
            reason=reason,
            object=key,
            **more,
        )
