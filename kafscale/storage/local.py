"""An object store in a local directory: one file per object, or a record in a bundle for many small ones.

It owns `{root}/objects`, where a key is a path, and `{root}/tmp`, which only file systems without O_TMPFILE need. A put
makes the bytes durable before they have a name, and links them to their key: one winner, or EEXIST. There are two ways.
A file of its own is written without a name; then it, its link and its folder are fsynced (or only the folder, where
`file_writer.journals_in_order` says that this is enough). A small object of a flush, which compaction soon rewrites,
becomes a record in a bundle (`bundles.py`), and that is one write. A failed fsync ends the store for good: the kernel
forgets what it could not write, so reading back would prove nothing. All calls that block run in threads of its own,
one hop per call. It must not know what the bytes mean.

Several processes may use one root: names are made by link(2) alone, and nothing is remembered of what a folder holds.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from kafscale.errors import ObjectExists, ObjectMissing, StoreFailed, StoreUnavailable
from kafscale.storage.bundle_files import ANCHOR_BYTES
from kafscale.storage.bundles import BundlePolicy, Bundles
from kafscale.storage.file_writer import FileWriter, journals_in_order
from kafscale.storage.folders import Folder, Folders, SyncFailed
from kafscale.storage.keys import check_key
from kafscale.storage.store import Buffer, ObjectInfo, Purpose
from kafscale.storage.threads import Threads

log = logging.getLogger(__name__)

OBJECTS = "objects"
TEMPORARY = "tmp"
_ATTEMPTS = 4
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# After these a write may have happened in part, and the next one proves nothing.
_BROKEN = frozenset({errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE})
# What opening an unnamed file says where it is not supported.
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})

_Result = TypeVar("_Result")


class LocalStore:
    """Objects as files below `root`; see `ObjectStore` for what each method promises.

    An object's time of creation is its file's mtime, or the system's time when its record was written. A put that is
    cancelled may still be applied, and reads its buffers until then.
    """

    def __init__(self, root: Path, threads: int = 4, bundles: BundlePolicy | None = None) -> None:
        """Make the folders. Raises OSError where that can't be done."""
        self._objects = str(root / OBJECTS)
        self._temporary = str(root / TEMPORARY)
        for folder in (self._objects, self._temporary):
            os.makedirs(folder, exist_ok=True)
        self._folders = Folders(self._objects)
        self._bundles = Bundles(str(root), self._folders, bundles or BundlePolicy())
        self._writer = FileWriter()
        self._journals_in_order = journals_in_order(os.path.realpath(root))
        self._threads = Threads("local-store", threads)
        self._unnamed_files = True
        self._name_prefix = f"{os.getpid()}-{secrets.token_hex(8)}-"
        self._name_numbers = count()
        self._failure: str | None = None

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        check_key(key)
        is_brief = purpose is Purpose.FLUSH
        await self._call(lambda: self._put_or_fail(key, parts, is_brief))

    async def get(self, key: str, purpose: Purpose) -> bytes:
        return await self._call(lambda: self._read(key, 0, None)[0])

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        if position < 0 or length < 0:
            raise ValueError(f"no range of {length} bytes at {position} can be read from {key}")
        return await self._call(lambda: self._read(key, position, length)[0])

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        if length < 0:
            raise ValueError(f"no tail of {length} bytes can be read from {key}")
        return await self._call(lambda: self._read(key, None, length))

    async def exists(self, key: str, purpose: Purpose) -> bool:
        check_key(key)
        return await self._call(lambda: self._exists(key))

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        if prefix:
            check_key(prefix + "x")  # Some key begins so.
        return await self._call(lambda: _list(self._folders, self._info, prefix, start_after))

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        for key in keys:
            check_key(key)
        await self._call(lambda: self._delete(keys))

    async def close(self) -> None:
        await self._threads.close()
        self._bundles.close()
        self._folders.close()

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await self._threads.call(lambda: self._guarded(function))

    def _guarded(self, function: Callable[[], _Result]) -> _Result:
        """Run `function` in terms of the store's errors."""
        if self._failure is not None:
            raise StoreFailed(self._failure)
        try:
            return function()
        except SyncFailed as error:
            self._failure = f"{error}; the data directory can't be trusted until the broker is started again"
            raise StoreFailed(self._failure) from error
        except OSError as error:
            # Full, out of descriptors or memory, not allowed, unreadable: nothing was applied, and once somebody has
            # mended it the same call succeeds.
            raise StoreUnavailable(f"the data directory does not work: {error}") from error

    # Writing

    def _put_or_fail(self, key: str, parts: Sequence[Buffer], is_brief: bool) -> None:
        try:
            if not (is_brief and self._put_into_bundle(key, parts)):
                self._put(key, parts)
        except OSError as error:
            if error.errno in _BROKEN:
                raise SyncFailed(f"writing the object {key} failed: {error}") from error
            raise

    def _put_into_bundle(self, key: str, parts: Sequence[Buffer]) -> bool:
        """False, and nothing done, where it must be a file of its own."""
        size = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)
        folder_path, _, name = key.rpartition("/")
        for _ in range(_ATTEMPTS):
            with self._folders.use(folder_path, create=True) as folder:
                try:
                    is_put = self._bundles.put(
                        key,
                        folder_path,
                        parts,
                        size,
                        lambda anchor, at=folder.descriptor: os.link(anchor, name, dst_dir_fd=at),  # type: ignore[misc]
                    )
                except FileExistsError as error:
                    folder.sync()  # As below.
                    raise ObjectExists(f"object {key} exists") from error
                except OSError:
                    if not folder.is_gone():
                        raise
                    self._folders.forget(folder)
                    continue
            if self._bundles.should_prepare():
                self._threads.post(self._prepare_bundle)
            return is_put
        raise StoreUnavailable(f"the folder of {key} is removed as often as it is made")

    def _prepare_bundle(self) -> None:
        try:
            self._guarded(self._bundles.prepare)
        except StoreUnavailable as error:
            log.warning("no bundle for small objects: they become files", extra={"cause": str(error)})
        except StoreFailed:
            pass  # Whoever calls next is told.

    def _put(self, key: str, parts: Sequence[Buffer]) -> None:
        folder_path, _, name = key.rpartition("/")
        for _ in range(_ATTEMPTS):
            with self._folders.use(folder_path, create=True) as folder:
                try:
                    with self._new_file(folder) as (descriptor, path):
                        is_on_device = self._writer.write(descriptor, parts)
                        is_in_order = is_on_device and self._journals_in_order
                        if not is_in_order:
                            _sync_file(descriptor, key)
                        # With a folder's descriptor os.link calls linkat(2) with AT_SYMLINK_FOLLOW, which open(2) gives
                        # as the way to name a file opened with O_TMPFILE.
                        os.link(path, name, dst_dir_fd=folder.descriptor, follow_symlinks=True)
                        if not is_in_order and self._unnamed_files:
                            # Without a journal the file is on disk as it was synced: as one that has no name, which a
                            # check of the file system after a power failure takes for deleted, link or not.
                            _sync_link(descriptor, key)
                except FileExistsError as error:
                    # The winner may not have come to its fsync, and never will if it was killed: "taken" must last.
                    folder.sync()
                    raise ObjectExists(f"object {key} exists") from error
                except OSError as error:
                    # A removed folder takes no new names, and says so as ENOENT or EPERM.
                    if folder.is_gone():
                        self._folders.forget(folder)
                    elif isinstance(error, FileNotFoundError) and self._unnamed_files:
                        self._unnamed_files = False  # No /proc to name it by.
                    else:
                        raise
                    continue
                folder.sync()
                return
        raise StoreUnavailable(f"the folder of {key} is removed as often as it is made")

    @contextmanager
    def _new_file(self, folder: Folder) -> Iterator[tuple[int, str]]:
        """A new, empty file and a path to link it by; gone at the end of the context unless it was linked."""
        if self._unnamed_files:
            try:
                descriptor = self._open_new(".", os.O_TMPFILE, folder.descriptor)
            except OSError as error:
                if error.errno not in _NO_UNNAMED_FILES or folder.is_gone():
                    raise
                self._unnamed_files = False
            else:
                try:
                    yield descriptor, f"/proc/self/fd/{descriptor}"
                finally:
                    os.close(descriptor)
                return
        path = f"{self._temporary}/{self._name_prefix}{next(self._name_numbers)}"
        descriptor = self._open_new(path, os.O_CREAT | os.O_EXCL, None)
        try:
            yield descriptor, path
        finally:
            os.close(descriptor)
            os.unlink(path)

    def _open_new(self, path: str, how: int, folder_descriptor: int | None) -> int:
        flags = self._writer.open_flags
        if flags:
            try:
                return os.open(path, how | os.O_WRONLY | flags, 0o644, dir_fd=folder_descriptor)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._writer.refuse_direct()
                if how & os.O_CREAT:
                    # Some file systems make the file before they refuse the flag.
                    with suppress(FileNotFoundError):
                        os.unlink(path)
        return os.open(path, how | os.O_WRONLY, 0o644, dir_fd=folder_descriptor)

    def _delete(self, keys: Sequence[str]) -> None:
        """Not fsynced: what a power failure brings back is an object that nothing names, and is deleted again."""
        emptied: set[str] = set()
        for key in keys:
            try:
                os.unlink(f"{self._objects}/{key}")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            emptied.add(key.rpartition("/")[0])
        for folder in emptied:
            while folder:
                try:
                    os.rmdir(f"{self._objects}/{folder}")
                except OSError:
                    break  # Not empty, or gone already.
                folder = folder.rpartition("/")[0]
        self._bundles.reap()

    # Reading

    def _read(self, key: str, position: int | None, length: int | None) -> tuple[bytes, int]:
        """`length` bytes (None: all) from `position` (None: that many before the end), and the object's size."""
        with self._opened(key) as (descriptor, status):
            size = status.st_size
            bundle = self._bundles.named_by(descriptor, size)
            if bundle is not None:
                found = self._bundles.read(bundle, key, position, length)
                self._check_named(key, status)
                return found
            if position is None:
                position = max(0, size - (size if length is None else length))
            end = size if length is None else min(size, position + length)
            data = os.pread(descriptor, max(0, end - position), position)
            pieces = [data]
            read = len(data)
            while position + read < end and data:  # One read(2) gives at most 2 GiB.
                data = os.pread(descriptor, end - position - read, position + read)
                pieces.append(data)
                read += len(data)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces), size

    def _check_named(self, key: str, status: os.stat_result) -> None:
        """Raise ObjectMissing unless the key still leads to the file of this status. Only then was what was read from a
        bundle the object's: its place is used for another once the name is gone."""
        try:
            now = os.stat(f"{self._objects}/{key}", follow_symlinks=False)
        except FileNotFoundError:
            raise ObjectMissing(f"object {key} was deleted while it was read") from None
        if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            raise ObjectMissing(f"object {key} was deleted while it was read")

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        check_key(key)
        folder_path, _, name = key.rpartition("/")
        try:
            with self._folders.use(folder_path, create=False) as folder:
                try:
                    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder.descriptor)
                except FileNotFoundError:
                    if folder.is_gone():
                        self._folders.forget(folder)
                        descriptor = os.open(f"{self._objects}/{key}", os.O_RDONLY | os.O_NOFOLLOW)
                    else:
                        raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"there is no object {key}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ObjectMissing(f"there is no object {key}")
            yield descriptor, status
        finally:
            os.close(descriptor)

    def _exists(self, key: str) -> bool:
        try:
            with (
                self._opened(key) as (descriptor, status),
                self._folders.use(key.rpartition("/")[0], create=False) as folder,
            ):
                bundle = self._bundles.named_by(descriptor, status.st_size)
                if bundle is not None:
                    self._bundles.place(bundle, key)
                folder.sync()  # "Taken" must last, as with a put that finds it so.
        except (ObjectMissing, FileNotFoundError):
            return False
        return True

    def _info(self, key: str, status: os.stat_result) -> ObjectInfo:
        if status.st_size == ANCHOR_BYTES:
            with self._opened(key) as (descriptor, opened):
                bundle = self._bundles.named_by(descriptor, opened.st_size)
            if bundle is not None:
                place = self._bundles.place(bundle, key)
                return ObjectInfo(key, place.length, place.created_ms)
        return ObjectInfo(key, status.st_size, status.st_mtime_ns // 1_000_000)


def _list(
    folders: Folders, info_of: Callable[[str, os.stat_result], ObjectInfo], prefix: str, start_after: str
) -> list[ObjectInfo]:
    """Walk the folders that can hold such keys. What is named is durable, as if its put had returned."""
    found: list[ObjectInfo] = []
    pending = [prefix.rpartition("/")[0]]
    while pending:
        folder_path = pending.pop()
        before = f"{folder_path}/" if folder_path else ""
        try:
            with folders.use(folder_path, create=False) as folder:
                pending += _scan(folder, info_of, before, prefix, start_after, found)
                folder.sync()
        except (FileNotFoundError, NotADirectoryError):
            continue
    found.sort(key=lambda info: info.key)
    return found


def _scan(
    folder: Folder,
    info_of: Callable[[str, os.stat_result], ObjectInfo],
    before: str,
    prefix: str,
    start_after: str,
    found: list[ObjectInfo],
) -> list[str]:
    """Add the folder's objects that match to `found`; return its folders in which more may be."""
    below = []
    with os.scandir(folder.descriptor) as entries:
        for entry in entries:
            key = before + entry.name
            if entry.is_dir(follow_symlinks=False):
                inside = key + "/"
                matches = inside.startswith(prefix) or prefix.startswith(inside)
                if matches and (inside > start_after or start_after.startswith(inside)):
                    below.append(key)
            elif key > start_after and key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                try:
                    found.append(info_of(key, entry.stat(follow_symlinks=False)))
                except (FileNotFoundError, ObjectMissing):
                    continue  # Deleted meanwhile.
    return below


def _sync_link(descriptor: int, key: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(f"fsync of the object {key} failed: {error}") from error


def _sync_file(descriptor: int, key: str) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise  # A full disk found late (delayed allocation). The file has no name and is never read.
        raise SyncFailed(f"fsync of the object {key} failed: {error}") from error
