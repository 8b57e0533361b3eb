"""Open folders of a local store: created on demand, kept open, and fsynced for many callers at once.

It owns the descriptors and the rule that makes a name in a folder durable: an fsync of the folder that began after the
name was made, and one of every parent since the folder itself was made. Everything here blocks, and is called from the
store's threads. It must not know what the files hold.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

MAX_OPEN_FOLDERS = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_ATTEMPTS = 8


class SyncFailed(Exception):
    """An fsync failed: what the kernel holds and what the disk holds may differ from now on, and nobody can tell."""


class Folder:
    """An open folder. `descriptor` serves calls relative to it."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.users = 0
        self._lock = threading.Lock()
        self._ticket_lock = threading.Lock()
        self._names_made = 0
        self._names_durable = 0

    def sync(self) -> None:
        """Return when every name made in the folder before this call is durable. Raises SyncFailed.

        One fsync serves all who came before it began: who waits for the lock finds the work done.
        """
        with self._ticket_lock:
            self._names_made += 1
            ticket = self._names_made
        with self._lock:
            if self._names_durable >= ticket:
                return
            covered = self._names_made
            _sync(self.descriptor, self.path)
            self._names_durable = covered

    def is_gone(self) -> bool:
        """Whether the folder was removed since it was opened."""
        return os.fstat(self.descriptor).st_nlink == 0


class Folders:
    """Folders below `root` by their path relative to it ("" is the root itself), the last used ones kept open."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: OrderedDict[str, Folder] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, path: str, create: bool) -> Iterator[Folder]:
        """The folder, open for as long as the context. Whatever was in it when this process first opened it is durable:
        a process that ended between a link and its fsync leaves names that a power failure could still take back.

        Raises FileNotFoundError if it isn't there and `create` is false, OSError and SyncFailed.
        """
        folder = self._acquire(path, create)
        try:
            yield folder
        finally:
            with self._lock:
                folder.users -= 1
                if folder.users == 0 and self._open.get(path) is not folder:
                    os.close(folder.descriptor)

    def sync_nearest(self, path: str) -> None:
        """Make what was removed from the folder durable, or its own removal if it is gone.

        Raises OSError and SyncFailed.
        """
        while True:
            try:
                with self.use(path, create=False) as folder:
                    if folder.is_gone():
                        self.forget(folder)
                        raise FileNotFoundError
                    folder.sync()
                return
            except (FileNotFoundError, NotADirectoryError):
                if not path:
                    raise
                path = path.rpartition("/")[0]

    def forget(self, folder: Folder) -> None:
        """Open the folder anew next time: this one was removed."""
        with self._lock:
            if self._open.get(folder.path) is folder:
                self._drop(folder.path)

    def close(self) -> None:
        with self._lock:
            for path in list(self._open):
                self._drop(path)

    def _acquire(self, path: str, create: bool) -> Folder:
        with self._lock:
            folder = self._open.get(path)
            if folder is not None:
                self._open.move_to_end(path)
                folder.users += 1
                return folder
        opened = Folder(path, self._open_durably(path, create))
        with self._lock:
            folder = self._open.get(path)
            if folder is None:
                folder = self._open[path] = opened
            else:
                os.close(opened.descriptor)
            folder.users += 1
            for other in list(self._open) if len(self._open) > MAX_OPEN_FOLDERS else ():
                if other != path and len(self._open) > MAX_OPEN_FOLDERS:
                    self._drop(other)
            return folder

    def _drop(self, path: str) -> None:
        folder = self._open.pop(path)
        if folder.users == 0:
            os.close(folder.descriptor)

    def _open_durably(self, path: str, create: bool) -> int:
        """Open the folder, making it and its parents where they are missing; fsync it and every parent.

        Parents are fsynced even where another made them, who may not have come to it yet.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._open_path(path, create)
            except FileNotFoundError:
                # A sweep may remove a folder between its making and its opening.
                if not create or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _open_path(self, path: str, create: bool) -> int:
        at = os.open(self._root, _FOLDER)
        try:
            walked = self._root
            for name in path.split("/") if path else ():
                if create:
                    try:
                        os.mkdir(name, 0o755, dir_fd=at)
                    except FileExistsError:
                        pass
                below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
                try:
                    _sync(at, walked)
                finally:
                    os.close(at)
                    at = below
                walked = f"{walked}/{name}"
            _sync(at, walked)
        except BaseException:
            os.close(at)
            raise
        return at


def _sync(descriptor: int, path: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(f"fsync of the folder {path} failed: {error}") from error
