"""Whose a data directory is, and in what format: its lock and its format file.

It owns `{root}/lock` and `{root}/format.json`, and clears `{root}/tmp` of what a killed process left. It must not know
what objects mean. Everything here blocks, and is called before the broker serves.

Format 1 had a file for every object; 2 has bundles too (`bundles.py`), and reads 1 as it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from kafscale.errors import StartError
from kafscale.storage.folders import SyncFailed
from kafscale.storage.local import OBJECTS, TEMPORARY
from kafscale.storage.restored_names import restore_names

FORMAT = 2
_LOCK = "lock"
_FORMAT_FILE = "format.json"


class _Format(msgspec.Struct):
    format: int


def lock_directory(root: Path) -> int:
    """Take the data directory, made where it is missing, for this process and those that inherit the descriptor.

    Returns an inheritable descriptor: the directory is free again once every process that holds it has closed it or
    ended. Raises StartError if another holds it or it can't be written; nothing is changed then.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StartError(f"the data directory {root} can't be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartError(
                f"the data directory {root} belongs to a running broker (process {holder}, or workers that it left);"
                " stop it or choose another with --data-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        os.set_inheritable(descriptor, True)
        # Nobody else is at work here now, so that what is there was left behind.
        for left in (root / TEMPORARY).glob("*"):
            left.unlink()
    except OSError as error:
        os.close(descriptor)
        raise StartError(f"the data directory {root} can't be locked: {error}") from error
    except StartError:
        os.close(descriptor)
        raise
    return descriptor


def check_format(root: Path) -> None:
    """Make sure that this program can read the locked directory; a new one gets its format file.

    Raises StartError for a newer format or one that can't be told; nothing is changed then.
    """
    path = root / _FORMAT_FILE
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        if any((root / OBJECTS).glob("*")):
            raise StartError(f"{path} is missing, though {root} holds data: it can't be told in what format") from None
        _write_format(root, path)
        return
    except OSError as error:
        raise StartError(f"{path} can't be read: {error.strerror}") from error
    try:
        format_version = msgspec.json.decode(found, type=_Format).format
    except msgspec.MsgspecError as error:
        raise StartError(f"{path} can't be understood: {error}") from error
    if format_version > FORMAT:
        raise StartError(
            f"{root} is in format {format_version}, and this program knows formats up to {FORMAT}:"
            " use the version that wrote it or a newer one"
        )
    if format_version < 1:
        raise StartError(f"{path} names format {format_version}, which never was")
    if format_version < FORMAT:
        _write_format(root, path)


def complete_names(root: Path) -> None:
    """Bring back what a power failure may have taken from the locked directory of a local store. Raises StartError."""
    try:
        (root / OBJECTS).mkdir(exist_ok=True)
        restore_names(root, root / OBJECTS)
    except (OSError, SyncFailed) as error:
        raise StartError(f"the names of objects in {root} can't be made complete: {error}") from error


def _write_format(root: Path, path: Path) -> None:
    temporary = root / f"{_FORMAT_FILE}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            file.write(msgspec.json.encode(_Format(FORMAT)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StartError(f"{path} can't be written: {error}") from error
