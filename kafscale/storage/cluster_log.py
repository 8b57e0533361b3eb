"""The cluster log as objects: version numbers, the envelope around a version's bytes, and how a lost race looks.

Owns the objects `{namespace}/cluster/{version}`; must not know what a version says. What must always hold: versions are
numbered from 1 without a gap (v+1 is only written by one who has read v), never change and are never deleted; a number
stays bound to the bytes that were first tried under it until it is settled whose it is.

Envelope, big-endian: magic "KFSC", format (u16), zero (u16), version (u64), length of the payload (u32), CRC32C of all
that precedes it and of the payload (u32), payload.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

import crc32c

from kafscale.clock import Clock
from kafscale.errors import (
    Corrupt,
    ObjectExists,
    ObjectMissing,
    StartError,
    StoreUnavailable,
    StoreUnclear,
)
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys, sequence_of
from kafscale.storage.retrying import PATIENCE_SECONDS, insist
from kafscale.storage.store import ObjectStore, Purpose

FORMAT = 1
MAGIC = b"KFSC"
FIRST_VERSION = 1
# So many reads at once while the newest version is searched for.
PROBES_AT_ONCE = 16

_HEAD = struct.Struct(">4sHHQI")
_CRC = struct.Struct(">I")

_Result = TypeVar("_Result")


class ClusterLog:
    """Appends to and reads the cluster log of one namespace."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._patience_seconds = patience_seconds

    async def append(self, version: int, payload: bytes) -> bool:
        """Write `payload` as `version`: True if it is ours, False if someone else's bytes are there.

        Raises StoreUnavailable if nothing was applied, StoreUnclear if that can't be told after `patience_seconds`:
        then whoever writes next meets the outcome under the same number.
        """
        key = self._keys.cluster(version)
        body = seal_envelope(version, payload)
        deadline = self._clock.monotonic() + self._patience_seconds
        unclear = False
        for wait in backoff_seconds(self._random):
            try:
                await self._store.put_if_absent(key, [body], Purpose.CLUSTER)
                return True
            except (ObjectExists, StoreUnclear) as error:
                unclear = unclear or isinstance(error, StoreUnclear)
                try:
                    return await self._store.get(key, Purpose.CLUSTER) == body
                except ObjectMissing:
                    pass  # Nobody's: send the same bytes again.
                except (StoreUnavailable, StoreUnclear):
                    unclear = True
            except StoreUnavailable:
                pass
            if self._clock.monotonic() >= deadline:
                break
            await self._clock.sleep(wait)
        message = f"version {version} of the cluster log could not be written"
        raise StoreUnclear(message) if unclear else StoreUnavailable(message)

    async def read(self, version: int) -> bytes | None:
        """The payload of `version`, or None if it does not exist. Raises Corrupt on damage, StartError on a newer
        format, StoreUnavailable after `patience_seconds` without an answer."""
        key = self._keys.cluster(version)
        try:
            return open_envelope(version, await self._insist(lambda: self._store.get(key, Purpose.CLUSTER)), key)
        except ObjectMissing:
            return None

    async def newest(self) -> int:
        """The number of the newest version; 0 if there is none. It rests on keys that exist, and takes some
        logarithm of the number of versions in rounds of `PROBES_AT_ONCE`; one listing of what lies above it, which must
        be nothing, shows whether versions were lost.

        Raises Corrupt where they were, StoreUnavailable once a question has had no answer for `patience_seconds`.
        """
        low, high = 0, None
        while high is None or high - low > 1:
            if high is None:
                probes = [low + (1 << power) for power in range(PROBES_AT_ONCE)]
            else:
                step = max(1, (high - low) // (PROBES_AT_ONCE + 1))
                probes = list(range(low + step, high, step))[: PROBES_AT_ONCE + 1]
            taken = await asyncio.gather(*map(self._is_taken, probes))
            for number, is_taken in zip(probes, taken, strict=True):
                if not is_taken:
                    high = number
                    break
                low = number
        found = self._keys.cluster(low)
        above = await self._insist(lambda: self._store.list(self._keys.cluster_prefix, Purpose.CLUSTER, found))
        expected = low + 1
        for info in above:
            # Written since the search began, by another: then they follow without a gap.
            if sequence_of(info.key) != expected:
                raise Corrupt(
                    f"version {expected} of the cluster log is missing, but {info.key} exists: objects were deleted"
                )
            expected += 1
        return expected - 1

    async def _is_taken(self, version: int) -> bool:
        return await self._insist(lambda: self._store.exists(self._keys.cluster(version), Purpose.CLUSTER))

    async def _insist(self, question: Callable[[], Awaitable[_Result]]) -> _Result:
        return await insist(question, self._clock, self._random, self._patience_seconds)


def seal_envelope(version: int, payload: bytes) -> bytes:
    """The bytes of the object that holds `payload` as `version`."""
    head = _HEAD.pack(MAGIC, FORMAT, 0, version, len(payload))
    return head + _CRC.pack(crc32c.crc32c(payload, crc32c.crc32c(head))) + payload


def open_envelope(version: int, data: bytes, key: str) -> bytes:
    """The payload of an object. Raises Corrupt, and StartError if the object was written in a newer format."""
    if len(data) < _HEAD.size + _CRC.size:
        raise Corrupt(f"{key}: {len(data)} bytes are no version of the cluster log")
    magic, found_format, _, found_version, length = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise Corrupt(f"{key}: no version of the cluster log")
    if found_format > FORMAT:
        raise StartError(
            f"{key} is in format {found_format}, newer than this Kafscale reads ({FORMAT}): start a newer version"
        )
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    payload = data[_HEAD.size + _CRC.size :]
    if crc != crc32c.crc32c(payload, crc32c.crc32c(data[: _HEAD.size])):
        raise Corrupt(f"{key}: the checksum does not fit")
    if length != len(payload) or found_version != version:
        raise Corrupt(f"{key}: holds {len(payload)} bytes of version {found_version}")
    return payload
