"""Memory that the supervisor makes and its workers map: a memory file whose size is settled before anybody sees it.

Who writes which part of it, and what it means, is its users' to say. It has no name, is passed on by descriptor, and is
gone with its last descriptor and mapping. Linux only.
"""

from __future__ import annotations

import fcntl
import mmap
import os


def make_block(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Zeroed memory of so many bytes, taken only as far as it is used: its descriptor, which is not inherited unless
    passed and which the caller closes, and a mapping. `name` is seen in /proc alone. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # A file that shrank under a mapping would kill the reader with SIGBUS.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, mmap.mmap(fd, size)
