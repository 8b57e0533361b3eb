"""Small objects of a local store, kept together in bundles, so that making one durable is a single write.

It owns this process's bundles (one is being filled, one waits for its turn, the others are full), their locks, and what
is known of where objects lie in any bundle. What must always hold:

- An object gets its name only when its record is durable: a write to blocks that are in place and were written before,
  which no file system needs more than a flush for. The name itself is not synced. Should power fail, the next start
  makes it again from the record (`restored_names.py`), so "named" means durable.
- Records lie without gaps: one is written at a time, and what did not get its name is written over.
- A bundle is filled anew only when it has no names left and their removal is durable. A reader that has found a record
  looks afterwards whether the name is still there; if so, what it read was the object.
- Bundles whose process has ended are removed once they are nameless. A lock says who lives.

When there is no room it says so, and the object becomes a file of its own. It must not know what objects mean.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from kafscale.clock import SystemClock
from kafscale.errors import ObjectMissing
from kafscale.storage.bundle_files import (
    ANCHOR_BYTES,
    ANCHOR_SUFFIX,
    BLOCK_BYTES,
    FOLDER,
    Place,
    bundle_named_by,
    data_position,
    encode_anchor,
    encode_head,
    fill_record,
    generation_of,
    holds_record,
    new_generation,
    padded_record_bytes,
    records_in,
)
from kafscale.storage.folders import Folders, SyncFailed
from kafscale.storage.restored_names import is_same_directory
from kafscale.storage.store import Buffer

# Bundles whose records are remembered, this process's own among them.
_KNOWN_MAX = 128
_ZEROED_AT_ONCE_BYTES = 256 << 10
# After a bundle could be neither recycled nor made, so many puts pass before that is tried again.
_PUTS_BETWEEN_TRIES = 64
# Errors after which nothing was applied and the disk is no worse: no room, no memory, no descriptors.
_HARMLESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.EAGAIN})


class BundlePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Objects below `object_bytes` go into bundles of `bundle_bytes`, `bundles_max` of them, once `after_puts` of them
    were put: who writes little needs no bundle."""

    object_bytes: int = 256 << 10
    bundle_bytes: int = 8 << 20
    bundles_max: int = 32
    after_puts: int = 32


class _Known:
    """Where objects lie in a bundle, as far as it was looked through."""

    __slots__ = ("generation", "places", "read_to")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.places: dict[str, Place] = {}
        self.read_to = BLOCK_BYTES


class _Own:
    """A bundle of this process. `descriptor` holds its lock and writes; `folders` are where its names are."""

    __slots__ = ("descriptor", "folders", "generation", "known", "name", "position")

    def __init__(self, name: str, descriptor: int, known: _Known) -> None:
        self.name = name
        self.descriptor = descriptor
        self.known = known
        self.position = BLOCK_BYTES
        self.folders: set[str] = set()


class Bundles:
    """The bundles below `root`. Every method blocks and may be called from any thread."""

    def __init__(self, root: str, folders: Folders, policy: BundlePolicy) -> None:
        self._folder = f"{root}/{FOLDER}"
        self._folders = folders
        self._policy = policy
        self._clock = SystemClock()
        self._owner = secrets.token_hex(8)
        self._made = 0
        self._puts = 0
        self._try_at = policy.after_puts
        self._is_preparing = False
        # Held by whoever writes to the current bundle.
        self._writing = threading.Lock()
        self._scratch = memoryview(b"")
        self._current: _Own | None = None
        self._spare: _Own | None = None
        self._full: deque[_Own] = deque()
        # Of any process, last used last.
        self._looking = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._direct = True
        self._dsync = True

    # Writing

    def put(self, key: str, folder: str, parts: Sequence[Buffer], size: int, name_it: Callable[[str], None]) -> bool:
        """Make the object durable and call `name_it` with the path of the anchor to link to, in folder `folder`. False,
        and nothing done, if it is too large or there is no room.

        Raises what `name_it` does, and then the object is not there; OSError (nothing was applied); SyncFailed.
        """
        policy = self._policy
        if size >= policy.object_bytes or policy.bundles_max == 0:
            return False
        with self._writing:
            self._puts += 1
            own = self._room_for(padded_record_bytes(key, size))
            if own is None:
                return False
            known = own.known
            created_ms = self._clock.wall_ms()
            length = fill_record(self._scratch, known.generation, created_ms, key, parts)
            start = own.position
            self._write(own.descriptor, self._scratch[:length], start)
            try:
                name_it(f"{self._folder}/{own.name}{ANCHOR_SUFFIX}")
            except BaseException:
                # It must not come back after a power failure. What is put next is written over it.
                self._scratch[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
                self._write(own.descriptor, self._scratch[:BLOCK_BYTES], start)
                raise
            own.folders.add(folder)
            known.places[key] = Place(data_position(start, key), size, created_ms)
            own.position = known.read_to = start + length
            return True

    def _room_for(self, length: int) -> _Own | None:
        """The bundle to write so much to."""
        own = self._current
        if own is not None and own.position + length <= self._policy.bundle_bytes:
            return own
        if self._spare is None:
            return None
        if own is not None:
            self._full.append(own)
        own = self._current = self._spare
        self._spare = None
        return own

    def _write(self, descriptor: int, data: memoryview, position: int) -> None:
        """Durably. Raises OSError where nothing but room, memory or descriptors is wanting, else SyncFailed."""
        try:
            while data.nbytes:
                if self._dsync:
                    try:
                        written = os.pwritev(descriptor, [data], position, os.RWF_DSYNC)
                    except OSError as error:
                        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                            raise
                        self._dsync = False
                        continue
                else:
                    written = os.pwrite(descriptor, data, position)
                    os.fdatasync(descriptor)
                data = data[written:]
                position += written
        except OSError as error:
            if error.errno in _HARMLESS:
                raise
            raise SyncFailed(f"writing to a bundle in {self._folder} failed: {error}") from error

    # Making room

    def should_prepare(self) -> bool:
        """Whether `prepare` is to be called soon; true once, until it has been."""
        if self._is_preparing or self._spare is not None or self._puts < self._try_at:
            return False
        own = self._current
        if own is not None and own.position < self._policy.bundle_bytes // 2:
            return False
        self._is_preparing = True
        return True

    def prepare(self) -> None:
        """Have the next bundle ready, an old one if possible. Raises OSError, SyncFailed."""
        try:
            self._try_at = self._puts + _PUTS_BETWEEN_TRIES
            spare = self._recycle() or self._make()
            if spare is not None:
                with self._writing:
                    self._spare = spare
                    self._try_at = 0
        finally:
            self._is_preparing = False

    def _recycle(self) -> _Own | None:
        for own in list(self._full):
            if _links(f"{self._folder}/{own.name}{ANCHOR_SUFFIX}") == 1:
                break
        else:
            return None
        # A name that came back would lead to nothing.
        for folder in own.folders:
            self._folders.sync_nearest(folder)
        generation = new_generation()
        block = _aligned(BLOCK_BYTES)
        head = encode_head(generation, self._policy.bundle_bytes)
        block[: len(head)] = head
        self._write(own.descriptor, block, 0)
        known = _Known(generation)
        with self._looking:
            self._known[own.name] = known
        with self._writing:
            self._full.remove(own)
        own.known = known
        own.position = BLOCK_BYTES
        own.folders.clear()
        return own

    def _make(self) -> _Own | None:
        """A new bundle, its blocks in place and written, so that a later write changes nothing but bytes."""
        if self._made >= self._policy.bundles_max:
            return None
        if not self._scratch.nbytes:
            self._scratch = _aligned(self._policy.object_bytes + 2 * BLOCK_BYTES)
        os.makedirs(self._folder, exist_ok=True)
        name = f"{self._owner}-{self._made:06d}"
        path = f"{self._folder}/{name}"
        descriptor = self._new_file(path)
        try:
            # Held until this process ends: nobody else removes it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "a new bundle was removed before it could be locked", path)
            generation = new_generation()
            zeros = _aligned(_ZEROED_AT_ONCE_BYTES)
            head = encode_head(generation, self._policy.bundle_bytes)
            zeros[: len(head)] = head
            position = 0
            while position < self._policy.bundle_bytes:
                rest = min(_ZEROED_AT_ONCE_BYTES, self._policy.bundle_bytes - position)
                written = os.pwrite(descriptor, zeros[:rest], position)
                if not position:
                    zeros[: len(head)] = bytes(len(head))
                position += written
            os.fsync(descriptor)
            anchor = os.open(path + ANCHOR_SUFFIX, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                os.write(anchor, encode_anchor(name))
                os.fsync(anchor)
            finally:
                os.close(anchor)
            _sync_folder(self._folder)
            _sync_folder(os.path.dirname(self._folder))
        except BaseException:
            os.close(descriptor)
            _remove(path)
            raise
        self._made += 1
        known = _Known(generation)
        with self._looking:
            self._known[name] = known
        return _Own(name, descriptor, known)

    def _new_file(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if self._direct:
            try:
                descriptor = os.open(path, flags | os.O_DIRECT, 0o644)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                with suppress(FileNotFoundError):
                    os.unlink(path)
            else:
                try:
                    os.pwrite(descriptor, _aligned(BLOCK_BYTES), 0)
                except OSError as error:
                    os.close(descriptor)
                    os.unlink(path)
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    return descriptor
            self._direct = False
        return os.open(path, flags, 0o644)

    # Reading

    def named_by(self, descriptor: int, size: int) -> str | None:
        """The bundle that an open file, of so many bytes, is the anchor of; None for an object of its own."""
        return bundle_named_by(os.pread(descriptor, ANCHOR_BYTES, 0)) if size == ANCHOR_BYTES else None

    def place(self, bundle: str, key: str) -> Place:
        """Where the object lies. Raises ObjectMissing."""
        descriptor = self._open(bundle, key)
        try:
            return self._find(bundle, descriptor, key)
        finally:
            os.close(descriptor)

    def read(self, bundle: str, key: str, position: int | None, length: int | None) -> tuple[bytes, int]:
        """`length` bytes (None: all) from `position` (None: that many before the end), and the object's size. They are
        the object's only if it still has its name afterwards. Raises ObjectMissing."""
        descriptor = self._open(bundle, key)
        try:
            place = self._find(bundle, descriptor, key)
            size = place.length
            if position is None:
                position = max(0, size - (size if length is None else length))
            end = size if length is None else min(size, position + length)
            return os.pread(descriptor, max(0, end - position), place.position + position), size
        finally:
            os.close(descriptor)

    def _open(self, bundle: str, key: str) -> int:
        try:
            return os.open(f"{self._folder}/{bundle}", os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise ObjectMissing(f"there is no object {key}: bundle {bundle} is gone") from None

    def _find(self, bundle: str, descriptor: int, key: str) -> Place:
        head = generation_of(descriptor)
        if head is None:
            raise ObjectMissing(f"there is no object {key}: bundle {bundle} is damaged")
        generation, size = head
        with self._looking:
            known = self._known.get(bundle)
            if known is None or known.generation != generation:
                known = self._known[bundle] = _Known(generation)
            self._known.move_to_end(bundle)
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
            # A record that got no name was written over, perhaps by a longer one: what was seen of it is wrong, its end
            # too. So look where the key was last seen, then on, then from the start.
            for start in (known.read_to, BLOCK_BYTES):
                place = known.places.get(key)
                if place is not None and holds_record(descriptor, generation, key, place):
                    return place
                for record in records_in(descriptor, generation, size, start):
                    known.places[record.key] = record.place
                    known.read_to = record.end
            place = known.places.get(key)
            if place is None or not holds_record(descriptor, generation, key, place):
                raise ObjectMissing(f"there is no object {key}: bundle {bundle} does not hold it")
            return place

    # Removing

    def reap(self) -> None:
        """Remove the bundles of processes that have ended in which no object is left. Raises OSError."""
        if not is_same_directory(self._folder):
            return  # Copied here, perhaps: then links say nothing.
        names = {path.name.removesuffix(ANCHOR_SUFFIX) for path in Path(self._folder).glob("*-*")}
        for name in names:
            if not name.startswith(self._owner) and _links(f"{self._folder}/{name}{ANCHOR_SUFFIX}") <= 1:
                self._remove_unless_held(f"{self._folder}/{name}")

    def _remove_unless_held(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            # Whoever removed it did not come to its anchor.
            with suppress(FileNotFoundError):
                os.unlink(path + ANCHOR_SUFFIX)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Only whoever holds the lock makes names.
            if _links(path + ANCHOR_SUFFIX) <= 1:
                _remove(path)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of this process's bundles; those without objects are removed."""
        with self._writing:
            owned = [own for own in (self._current, self._spare, *self._full) if own is not None]
            self._current = self._spare = None
            self._full.clear()
            self._made = self._policy.bundles_max
        for own in owned:
            path = f"{self._folder}/{own.name}"
            if _links(path + ANCHOR_SUFFIX) == 1:
                _remove(path)
            os.close(own.descriptor)


def _links(path: str) -> int:
    """How many names a file has, 0 if it is not there."""
    try:
        return os.stat(path, follow_symlinks=False).st_nlink
    except FileNotFoundError:
        return 0


def _remove(path: str) -> None:
    """The bundle and its anchor, in this order: an anchor that is left alone is seen to belong to nobody."""
    for left in (path, path + ANCHOR_SUFFIX):
        with suppress(OSError):
            os.unlink(left)


def _aligned(length: int) -> memoryview:
    # Anonymous maps begin at a page.
    return memoryview(mmap.mmap(-1, length))


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(f"fsync of the folder {path} failed: {error}") from error
    finally:
        os.close(descriptor)
