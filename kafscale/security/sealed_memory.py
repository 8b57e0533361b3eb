"""Memory that one process writes once and others only read: a memory file, sealed before anybody sees it.

Once sealed it can be neither written nor resized by anyone, its maker included, so that what was checked when it was
opened holds for as long as it is mapped. It has no name, and is gone with its last descriptor and mapping. It is passed
on by descriptor; how, is not known here. Linux only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from kafscale.errors import Corrupt
from kafscale.security.snapshot import Snapshot

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def seal(data: bytes | bytearray) -> int:
    """A descriptor of sealed memory that holds `data`. Not inherited; the caller closes it. Raises OSError."""
    fd = os.memfd_create("kafscale-acls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(fd, view[written:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_sealed(fd: int) -> Snapshot:
    """The snapshot in sealed memory. Takes the descriptor over, and closes it. Raises Corrupt where the memory is not
    sealed or holds no sound snapshot."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise Corrupt("the memory of an ACL snapshot is not sealed: its maker could still change it")
        size = os.fstat(fd).st_size
        if size == 0:
            raise Corrupt("the memory of an ACL snapshot is empty")
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise Corrupt(f"an ACL snapshot can't be mapped: {error.strerror or error}") from error
    finally:
        os.close(fd)
    return Snapshot(memoryview(memory))
