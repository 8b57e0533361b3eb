"""The audit log as a file: appended to, made durable, rotated, and read at its end when a broker starts.

Called in a thread. One process writes a file at a time (it is locked), and it writes whole lines or, as far as that
can be told, nothing: what a full disk took of some lines is cut off again, and a crash's unfinished line at the next
start. When the file is full it gets the number of its first record as a suffix, and the oldest such files are deleted.
A file that someone else has moved away (logrotate) is begun anew. What is no ordinary file (a device, a pipe) is only
written to. Knows lines and their numbers, and nothing of what they say.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final

import msgspec

from kafscale.errors import StartError
from kafscale.security.audit_chain import LINE_BYTES_MAX, SealedRecord, read_record

# Enough that some whole lines are in it.
TAIL_BYTES: Final = 16 * LINE_BYTES_MAX
_MODE: Final = 0o600
_SUFFIX: Final = re.compile(r"[0-9]{20}")


class Tail(msgspec.Struct, frozen=True):
    """How a file ends: its last sound record (None for none), how many lines behind it are none, and how many bytes of
    an unfinished line were cut off."""

    last: SealedRecord | None = None
    unsound_lines: int = 0
    torn_bytes: int = 0


class AuditStream:
    """Standard output, a pipe, a device: what can only be written to. Raises OSError where a line can't be written; the
    same call may be repeated, and goes on where it stopped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written = 0

    def write(self, lines: bytes) -> None:
        """Write whole lines."""
        view = memoryview(lines)
        while self._written < len(lines):
            self._written += os.write(self._fd, view[self._written :])
        self._written = 0


class AuditFile:
    """`open` first. Raises OSError where a line can't be written; the same call may be repeated."""

    def __init__(self, path: Path, max_bytes: int, kept: int) -> None:
        """`max_bytes` 0: it is not rotated here. `kept`: rotated files that stay."""
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._fd = -1
        # None for an ordinary file.
        self._stream: AuditStream | None = None
        self._size = 0
        # The number of the first record in it, 0 while it is empty.
        self._first = 0
        # The last record in a file that was deleted by rotation, until it is told.
        self._thrown_away = 0

    def open(self) -> Tail:
        """Open or create it. Raises StartError where that can't be, with the reason."""
        try:
            self._open()
            if self._stream is not None:
                return Tail()
            tail = self._read_tail()
            if self._size == 0 and tail.last is None:
                # It was moved away, by us in the moment before a crash or by another.
                tail = msgspec.structs.replace(tail, last=self._last_rotated())
            return tail
        except BlockingIOError:
            raise StartError(f"the audit log {self._path} is being written by another process") from None
        except OSError as error:
            raise StartError(f"the audit log {self._path} can't be opened: {error.strerror or error}") from None

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, _MODE)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            self._stream = AuditStream(self._fd)
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sync_folder(self._path.parent)
        self._size = found.st_size
        self._first = _first_number(self._fd) if self._size else 0

    def _read_tail(self) -> Tail:
        start = max(0, self._size - TAIL_BYTES)
        content = os.pread(self._fd, self._size - start, start)
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            os.ftruncate(self._fd, self._size - len(torn))
            os.fdatasync(self._fd)
            self._size -= len(torn)
        unsound = 0
        for line in reversed(whole.split(b"\n") if newline else []):
            record = read_record(line)
            if record is not None and record.is_intact:
                return Tail(record, unsound, len(torn))
            unsound += 1
        return Tail(None, unsound, len(torn))

    def _last_rotated(self) -> SealedRecord | None:
        rotated = rotated_files(self._path)
        if not rotated:
            return None
        with open(rotated[-1], "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().rstrip(b"\n").split(b"\n")
        record = read_record(lines[-1])
        return record if record is not None and record.is_intact else None

    def write(self, lines: bytes, first: int) -> None:
        """Append whole lines, of which the first is record `first`, and make them durable."""
        if self._stream is not None:
            self._stream.write(lines)
            return
        self._follow_name()
        if self._max_bytes and self._size and self._size + len(lines) > self._max_bytes:
            self._rotate(first)
        try:
            _write_all(self._fd, lines)
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)
        self._first = self._first or first

    def take_thrown_away(self) -> int:
        """Up to which record rotation has deleted what there was; 0 if it has not since the last call."""
        last, self._thrown_away = self._thrown_away, 0
        return last

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow_name(self) -> None:
        """Begin a new file where the old one was moved away."""
        try:
            found = os.stat(self._path)
            ours = os.fstat(self._fd)
            if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        before = self._fd
        self._open()
        os.close(before)

    def _rotate(self, first: int) -> None:
        os.rename(self._path, self._path.with_name(f"{self._path.name}.{self._first:020d}"))
        before = self._fd
        self._open()
        os.close(before)
        rotated = rotated_files(self._path)
        too_many = rotated[: max(0, len(rotated) - self._kept)]
        for old in too_many:
            os.unlink(old)
        if too_many:
            left = rotated[len(too_many) :]
            self._thrown_away = (number_of(left[0]) if left else first) - 1
        _sync_folder(self._path.parent)


def rotated_files(path: Path) -> list[Path]:
    """The files that rotation made of this one, the oldest first."""
    prefix = path.name + "."
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(prefix)]
    except FileNotFoundError:
        return []
    return [path.with_name(name) for name in sorted(names) if _SUFFIX.fullmatch(name[len(prefix) :])]


def number_of(rotated: Path) -> int:
    """The number of the first record in a rotated file."""
    return int(rotated.name[-20:])


def _first_number(fd: int) -> int:
    record = read_record(os.pread(fd, LINE_BYTES_MAX, 0).split(b"\n", 1)[0])
    # Whatever else stands there first: a name is needed, and this one sorts first.
    return 1 if record is None else record.sequence


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
