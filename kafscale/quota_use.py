"""How far clients have used up their quotas: what each worker of a broker charged, where all of them can read it.

A block of shared memory, made by the supervisor and inherited by every worker. For each quota and whoever shares it (a
tag) there is one number, the time at which everything used so far will have been paid for; the newest that any worker
wrote counts. Each worker writes its own part alone and reads all, so nothing is locked. Two workers that charge at the
same instant count one of the two charges only, in the client's favour. A part is a hash table with room for so many
tags that were used lately; where it is full the tag that owes least is forgotten. The hash has a key of its own, so
that nobody can choose names that share a tag. It knows no rate.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from typing import Final, Self

from kafscale.errors import StartError
from kafscale.shared_memory import make_block

# Tags in each worker's part, and in how many places one may lie.
PLACES: Final = 16_384
PROBES: Final = 8
KEY_BYTES: Final = 32
NOTHING_OWED: Final = -math.inf

_MAGIC: Final = b"KAFSQUOT"
# Magic, workers, places, key.
_HEADER: Final = struct.Struct(f"<8sII{KEY_BYTES}s")
_PARTS_AT: Final = 64
# Of an entry, in cells of eight bytes: the tag (0: none), and the time as a double.
_ENTRY_CELLS: Final = 2
_PART_BYTES: Final = PLACES * _ENTRY_CELLS * 8


class QuotaUse:
    """The times as one worker (`index`) keeps and reads them; all of the clock that the workers share."""

    def __init__(self, memory: mmap.mmap, fd: int | None, index: int) -> None:
        magic, workers, places, self._key = _HEADER.unpack_from(memory)
        is_known = magic == _MAGIC and places == PLACES and len(memory) == _PARTS_AT + workers * _PART_BYTES
        if not is_known or not 0 <= index < workers:
            raise StartError("use of quotas is kept by another version; supervisor and workers must be alike")
        self.fd = fd
        parts = memoryview(memory)[_PARTS_AT:]
        self._tags: memoryview[int] = parts.cast("Q")
        self._times: memoryview[float] = parts.cast("d")
        length = PLACES * _ENTRY_CELLS
        self._starts = tuple(range(0, workers * length, length))
        self._own = self._starts[index]

    @classmethod
    def create(cls, workers: int) -> Self:
        """Make a block for so many workers, in memory that is only taken as far as it is used. Its fd is not inherited
        unless passed."""
        fd, memory = make_block("kafscale-quotas", _PARTS_AT + workers * _PART_BYTES)
        _HEADER.pack_into(memory, 0, _MAGIC, workers, PLACES, os.urandom(KEY_BYTES))
        return cls(memory, fd, 0)

    @classmethod
    def attach(cls, fd: int, index: int) -> Self:
        """Map a block made by another process, as the worker of this index. Raises StartError if it is none."""
        if os.fstat(fd).st_size < _HEADER.size:
            raise StartError("use of quotas is not kept; supervisor and workers must be of the same version")
        return cls(mmap.mmap(fd, 0), fd, index)

    @classmethod
    def alone(cls) -> Self:
        """For a worker without siblings, as in tests and simulations."""
        use = cls.create(1)
        use.close()
        return use

    def begin_incarnation(self) -> None:
        """Forget what a dead predecessor charged."""
        for tag_at in range(self._own, self._own + PLACES * _ENTRY_CELLS, _ENTRY_CELLS):
            # Only what is not zero: untouched memory stays untaken.
            if self._tags[tag_at]:
                self._tags[tag_at] = 0
                self._times[tag_at + 1] = 0.0

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def tag_of(self, name: str) -> int:
        """The same in all workers of a broker; never 0."""
        digest = hashlib.blake2b(name.encode("utf-8", "replace"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1

    def paid_at(self, tag: int) -> float:
        """When all that any worker charged will have been paid for; `NOTHING_OWED` where nobody knows of anything."""
        tags, newest = self._tags, NOTHING_OWED
        for start in self._starts:
            for tag_at in _places(start, tag):
                if tags[tag_at] == tag:
                    newest = max(newest, self._times[tag_at + 1])
                    break
        return newest

    def set_paid_at(self, tag: int, time: float, settled_at: float) -> None:
        """From this worker's charge on it is paid at `time`. What was paid at `settled_at` need not be remembered."""
        tags, times = self._tags, self._times
        free_at, least = -1, float("inf")
        for tag_at in _places(self._own, tag):
            if tags[tag_at] == tag:
                times[tag_at + 1] = time
                return
            owed = times[tag_at + 1] if tags[tag_at] else 0.0
            if owed < least:
                free_at, least = tag_at, max(owed, settled_at)
        # Whoever reads meanwhile finds no tag, or a time in the past.
        times[free_at + 1] = 0.0
        tags[free_at] = tag
        times[free_at + 1] = time


def _places(start: int, tag: int) -> list[int]:
    """Where a tag may lie in the part at `start`, the first choice first."""
    first = tag % PLACES
    return [start + (first + step) % PLACES * _ENTRY_CELLS for step in range(PROBES)]
