"""Names of objects in bundles, made again after a power failure.

Bundles are made durable, names that link to their anchors are not (`bundles.py` says why). As long as the machine runs
the kernel knows them all. This brings back, before a broker serves, what a failure may have taken: every whole record
whose name is missing gets it again. Objects that were deleted come back too, where their records are still there; that
is what a delete that is not synced means anyway: nothing names them, and they are deleted again.

It owns `{root}/bundles/directory`, which says where the directory was when its names were last known to be complete: on
which boot of which machine, and as which folder. In another place (after a boot, or a copy of the directory, whose
names are files of their own and no links) links say nothing until they are restored.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from kafscale.storage.bundle_files import (
    ANCHOR_BYTES,
    ANCHOR_SUFFIX,
    FOLDER,
    bundle_named_by,
    generation_of,
    is_whole,
    records_in,
)
from kafscale.storage.folders import Folders
from kafscale.storage.keys import check_key

log = logging.getLogger(__name__)

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PLACE_FILE = "directory"


def is_same_directory(folder: str) -> bool:
    """Whether the bundles in `folder` are where they were when their names were last known to be complete."""
    try:
        return Path(folder, _PLACE_FILE).read_text("ascii") == _place_of(folder)
    except (OSError, UnicodeDecodeError):
        return False


def restore_names(root: Path, objects: Path) -> int:
    """Give records in bundles below `root` their names below `objects` again; returns how many had none.

    Only for whoever holds the directory's lock, before anybody uses it. Raises OSError and SyncFailed.
    """
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    if is_same_directory(str(folder)):
        return 0
    folders = Folders(str(objects))
    restored = 0
    touched: set[str] = set()
    try:
        for path in sorted(folder.glob(f"*{ANCHOR_SUFFIX}")):
            restored += _restore_bundle(folder, path.name.removesuffix(ANCHOR_SUFFIX), objects, folders, touched)
        for name in touched:
            with folders.use(name, create=True) as opened:
                opened.sync()
    finally:
        folders.close()
    _remember(folder)
    if restored:
        log.warning("names of objects were restored after a power failure or a copy", extra={"objects": restored})
    return restored


def _restore_bundle(folder: Path, bundle: str, objects: Path, folders: Folders, touched: set[str]) -> int:
    anchor = folder / f"{bundle}{ANCHOR_SUFFIX}"
    if bundle_named_by(anchor.read_bytes()) != bundle:
        return 0  # Never finished: nothing links to it.
    inode = anchor.stat().st_ino
    try:
        descriptor = os.open(folder / bundle, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    restored = 0
    try:
        head = generation_of(descriptor)
        if head is None:
            return 0
        for record in records_in(descriptor, *head):
            if not is_whole(descriptor, record):
                break  # What was being written when power failed: the last.
            check_key(record.key)
            folder_path, _, name = record.key.rpartition("/")
            with folders.use(folder_path, create=True) as opened:
                if _restore_name(anchor, inode, objects / record.key, name, opened.descriptor):
                    restored += 1
                    touched.add(folder_path)
    finally:
        os.close(descriptor)
    return restored


def _restore_name(anchor: Path, inode: int, path: Path, name: str, folder_descriptor: int) -> bool:
    try:
        os.link(anchor, name, dst_dir_fd=folder_descriptor)
    except FileExistsError:
        status = path.lstat()
        if status.st_ino == inode or status.st_size != ANCHOR_BYTES or path.read_bytes() != anchor.read_bytes():
            return False
        # A copy of the name: no link, so that nobody could tell from the anchor that it is there.
        beside = path.with_name(f"{name} ")  # No key has a space.
        os.link(anchor, beside)
        os.rename(beside, path)
    return True


def _remember(folder: Path) -> None:
    beside = folder / f"{_PLACE_FILE}.new"
    with suppress(FileNotFoundError):
        beside.unlink()
    with open(beside, "x", encoding="ascii") as file:
        file.write(_place_of(str(folder)))
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, folder / _PLACE_FILE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place_of(folder: str) -> str:
    status = os.stat(folder)
    return f"{Path(BOOT_ID).read_text('ascii').strip()} {status.st_dev} {status.st_ino}\n"
