"""How bytes get into a new file at the least cost in CPU and time.

It owns the choice between the page cache and O_DIRECT, and the aligned buffers that O_DIRECT needs. Everything here
blocks. It must not know of keys or folders.

Measured in tests/bench/local_store.py: a large write through the page cache costs 0.25 CPU-s per GB while its pages can
be recycled, and five times that in memory the kernel must find first. O_DIRECT from a reused buffer costs 0.13, and
0.05 straight from a caller's page-aligned buffer. A small write costs the same either way, but what went to the device
before the file got its name need not be waited for on its own: see `journals_in_order`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

from kafscale.storage.store import Buffer

SCRATCH_BYTES = 1 << 20
# Every device in use takes multiples of a page; some take smaller ones.
_ALIGNMENT = 4096
# A caller's buffer shorter than this is copied: pinning its pages would cost as much.
_STRAIGHT_FROM_BYTES = 64 << 10
_SMALL_PART_BYTES = 8 << 10
_JOINED_BYTES = 64 << 10
MOUNTS = "/proc/self/mountinfo"
SYSTEM = "/sys"
# Mount options that give up the order, or the flush.
_UNORDERED = frozenset({"nobarrier", "barrier=0", "data=writeback", "noload", "norecovery"})
_MAX_PARTS = os.sysconf("SC_IOV_MAX")


class DirectRefused(Exception):
    """The file system does not do O_DIRECT, or not for this write."""


class FileWriter:
    """Writes whole files, from any number of threads, each with a scratch buffer of its own."""

    def __init__(self) -> None:
        self._direct = True
        self._scratch = threading.local()

    @property
    def open_flags(self) -> int:
        """What to open the file with, beside O_WRONLY and what makes it."""
        return os.O_DIRECT if self._direct else 0

    def refuse_direct(self) -> None:
        """The file system does not open files so: go through the page cache from now on."""
        self._direct = False

    def write(self, descriptor: int, parts: Sequence[Buffer]) -> bool:
        """Fill the new, empty file with the concatenation of `parts`. Raises OSError.

        True: the bytes are on the device (perhaps in its cache), not in the page cache.
        """
        views = list(_coalesced(parts))
        if self._direct:
            try:
                self._write_aligned(descriptor, views)
            except DirectRefused:
                self._direct = False
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
            else:
                size = sum(view.nbytes for view in views)
                if size % _ALIGNMENT:
                    os.ftruncate(descriptor, size)
                return True
        # Opened when O_DIRECT was still thought to work, perhaps.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
        _write_buffered(descriptor, views)
        return False

    def _write_aligned(self, descriptor: int, views: Sequence[memoryview]) -> None:
        """Everything, the last write rounded up to the alignment (what it adds is cut off by the caller).

        In as few calls as can be: each gives other threads the interpreter, and waits to get it back.
        """
        scratch = self._scratch_buffer()
        # Blocks that are not written yet; of `scratch` the part before `start` is in them, and up to `filled` in use.
        blocks: list[memoryview] = []
        start = filled = 0
        for view in views:
            taken = 0
            while taken < view.nbytes:
                straight = (view.nbytes - taken) // _ALIGNMENT * _ALIGNMENT
                if not filled % _ALIGNMENT and straight >= _STRAIGHT_FROM_BYTES and _is_aligned(view[taken:]):
                    if filled > start:
                        blocks.append(scratch[start:filled])
                        start = filled
                    blocks.append(view[taken : taken + straight])
                    taken += straight
                    continue
                length = min(view.nbytes - taken, SCRATCH_BYTES - filled)
                scratch[filled : filled + length] = view[taken : taken + length]
                filled += length
                taken += length
                if filled == SCRATCH_BYTES:
                    _write_blocks(descriptor, [*blocks, scratch[start:]])
                    blocks.clear()
                    start = filled = 0
        if filled > start:
            blocks.append(scratch[start : -(-filled // _ALIGNMENT) * _ALIGNMENT])
        _write_blocks(descriptor, blocks)

    def _scratch_buffer(self) -> memoryview:
        scratch: memoryview | None = getattr(self._scratch, "buffer", None)
        if scratch is None:
            # Anonymous maps begin at a page, and stay where they are.
            scratch = self._scratch.buffer = memoryview(mmap.mmap(-1, SCRATCH_BYTES))
        return scratch


def journals_in_order(path: str) -> bool:
    """Whether an fsync of a folder makes everything durable that was done to the file system of `path` before it.

    ext4 and XFS write their changes to one journal, in order, and flush the device's cache before a commit. So a file
    that was written with O_DIRECT and then linked is durable, bytes, size and name, when its folder is; and should
    power fail in between, the name is not there without the bytes. ext4 may also have been made without a journal (as
    the disks of small virtual machines are): then nothing of this holds. Of other file systems nothing is assumed.
    """
    longest, device, kind, options = "", "", "", ""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                fields = before.split()
                mounted_at = fields[4].rstrip("/")
                if (path + "/").startswith(mounted_at + "/") and len(mounted_at) >= len(longest):
                    longest, device, kind, options = mounted_at, fields[2], after.split()[0], f"{before} {after}"
    except (OSError, IndexError):
        return False
    if _UNORDERED.intersection(options.replace(",", " ").split()):
        return False
    return kind == "xfs" or (kind == "ext4" and _has_journal(device))


def _has_journal(device: str) -> bool:
    """Whether the ext4 on this device (MAJOR:MINOR) has a journal, as far as it can be told."""
    try:
        name = os.path.basename(os.path.realpath(f"{SYSTEM}/dev/block/{device}"))
        with open(f"{SYSTEM}/fs/ext4/{name}/journal_task", encoding="ascii") as task:
            return task.read().strip().isdigit()
    except (OSError, ValueError):
        return False


def _coalesced(parts: Sequence[Buffer]) -> Iterator[memoryview]:
    """The same bytes in fewer parts: joining many small ones costs less than looking at each again."""
    small: list[Buffer] = []
    held = 0
    for part in parts:
        length = part.nbytes if isinstance(part, memoryview) else len(part)
        if length < _SMALL_PART_BYTES:
            small.append(part)
            held += length
            if held < _JOINED_BYTES:
                continue
        if held:
            yield memoryview(b"".join(small))
            small.clear()
            held = 0
        if length >= _SMALL_PART_BYTES:
            yield memoryview(part).cast("B")
    if held:
        yield memoryview(b"".join(small))


def _is_aligned(view: memoryview) -> bool:
    if view.readonly:
        return False  # Its address can't be had from Python.
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % _ALIGNMENT == 0


def _write_blocks(descriptor: int, blocks: list[memoryview]) -> None:
    """All of them, each a multiple of the alignment long."""
    for first in range(0, len(blocks), _MAX_PARTS):
        group = blocks[first : first + _MAX_PARTS]
        while group:
            try:
                written = os.writev(descriptor, group)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise DirectRefused from error
                raise
            if written % _ALIGNMENT:
                raise DirectRefused  # Cut short within a block, so that no aligned write can follow.
            _drop_written(group, written)


def _write_buffered(descriptor: int, views: Sequence[memoryview]) -> None:
    for first in range(0, len(views), _MAX_PARTS):
        group = list(views[first : first + _MAX_PARTS])
        while group:
            _drop_written(group, os.writev(descriptor, group))


def _drop_written(group: list[memoryview], written: int) -> None:
    while group and written >= group[0].nbytes:
        written -= group.pop(0).nbytes
    if group:
        group[0] = group[0][written:]
