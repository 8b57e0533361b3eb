"""How many client connections a broker has: what each of its workers counts, where all of them can read it.

A block of shared memory, made by the supervisor and inherited by every worker. Each worker writes its own part alone
and reads all, so nothing is locked and no number is ever half written; two workers that let somebody in at the same
instant may exceed a limit by one each. Client addresses are counted in a table of hashes (a count-min sketch of two
rows): an address may seem to have a few more connections than it has, once in thousands of addresses, and never fewer.
The hash has a key of its own, so that nobody can choose addresses that share a place. It knows no limit.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from typing import Final, Self

from kafscale.errors import StartError
from kafscale.shared_memory import make_block

# Places in each row for every connection that there may be: what two addresses share is then a rarity.
PLACES_PER_CONNECTION: Final = 8
ROWS: Final = 2
KEY_BYTES: Final = 32

_MAGIC: Final = b"KAFSCENS"
# Magic, workers, places in a row, key.
_HEADER: Final = struct.Struct(f"<8sII{KEY_BYTES}s")
_PARTS_AT: Final = 64
# Of a worker's part, in cells of four bytes: its connections, the second it counts arrivals of, these; then the table.
_OPEN, _SECOND, _ARRIVED, _TABLE = 0, 1, 2, 16
_CELL_BYTES: Final = 4


class Census:
    """The counts as one worker (`index`) keeps and reads them."""

    def __init__(self, memory: mmap.mmap, fd: int | None, index: int) -> None:
        magic, workers, places, self._key = _HEADER.unpack_from(memory)
        if magic != _MAGIC or len(memory) != _size(workers, places) or not 0 <= index < workers:
            raise StartError("the census is of another version of Kafscale; supervisor and workers must be the same")
        self.fd = fd
        self._places = places
        self._cells: memoryview[int] = memoryview(memory)[_PARTS_AT:].cast("I")
        self._length = _TABLE + ROWS * places
        self._starts = range(0, workers * self._length, self._length)
        self._own = self._starts[index]

    @classmethod
    def create(cls, workers: int, addresses_max: int) -> Self:
        """Make a block for so many workers, and so many addresses at a time (0: none is counted), in memory that is
        only taken as far as it is used. Its fd is not inherited unless passed."""
        places = 1 << max(0, addresses_max * PLACES_PER_CONNECTION - 1).bit_length()
        fd, memory = make_block("kafscale-census", _size(workers, places))
        _HEADER.pack_into(memory, 0, _MAGIC, workers, places, os.urandom(KEY_BYTES))
        return cls(memory, fd, 0)

    @classmethod
    def attach(cls, fd: int, index: int) -> Self:
        """Map a block made by another process, as the worker of this index. Raises StartError if it is none."""
        if os.fstat(fd).st_size < _HEADER.size:
            raise StartError("there is no census; supervisor and workers must be of the same version")
        return cls(mmap.mmap(fd, 0), fd, index)

    @classmethod
    def alone(cls, addresses_max: int = 1000) -> Self:
        """For a worker without siblings, as in tests and simulations."""
        census = cls.create(1, addresses_max)
        census.close()
        return census

    def begin_incarnation(self) -> None:
        """Forget what a dead predecessor counted."""
        # Only what is not zero: untouched memory stays untaken.
        cells, step = self._cells, mmap.PAGESIZE // _CELL_BYTES
        zeros = memoryview(bytes(mmap.PAGESIZE)).cast("I")
        for start in range(self._own, self._own + self._length, step):
            end = min(start + step, self._own + self._length)
            if cells[start:end] != zeros[: end - start]:
                cells[start:end] = zeros[: end - start]

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    # All connections

    @property
    def open(self) -> int:
        """Connections of all workers."""
        cells = self._cells
        return sum(cells[start + _OPEN] for start in self._starts)

    def set_open(self, count: int) -> None:
        """This worker has so many."""
        self._cells[self._own + _OPEN] = count

    # By address

    def count(self, host: str) -> int:
        """Connections of all workers from this address, or a few more."""
        cells = self._cells
        return min(sum(cells[start + place] for start in self._starts) for place in self._places_of(host))

    def enter(self, host: str) -> None:
        """This worker has one more from this address; `leave` undoes it."""
        for place in self._places_of(host):
            self._cells[self._own + place] += 1

    def leave(self, host: str) -> None:
        for place in self._places_of(host):
            self._cells[self._own + place] -= 1

    def _places_of(self, host: str) -> tuple[int, int]:
        """Its place in each row, from a part's start."""
        digest = hashlib.blake2b(host.encode("utf-8", "replace"), key=self._key, digest_size=8).digest()
        first, second = struct.unpack("<II", digest)
        return _TABLE + first % self._places, _TABLE + self._places + second % self._places

    # By time

    def arrived(self, second: int) -> int:
        """How many all workers have let in during this second of the clock that they share."""
        cells, second = self._cells, second & 0xFFFFFFFF
        return sum(cells[start + _ARRIVED] for start in self._starts if cells[start + _SECOND] == second)

    def arrive(self, second: int) -> None:
        """This worker lets one in."""
        cells, own = self._cells, self._own
        if cells[own + _SECOND] != second & 0xFFFFFFFF:
            cells[own + _ARRIVED] = 0
            cells[own + _SECOND] = second & 0xFFFFFFFF
        cells[own + _ARRIVED] += 1


def _size(workers: int, places: int) -> int:
    return _PARTS_AT + workers * (_TABLE + ROWS * places) * _CELL_BYTES
