"""Goal: what the local store called durable is there after a power failure, on ext4 with a journal and without one.

A file system in an image is copied while it is mounted: the copy has what was written to the device so far and nothing
of what the kernel still holds. It is checked and repaired as after a failure, mounted, and read. Needs root.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kafscale.storage import restored_names
from kafscale.storage.bundle_files import bundle_named_by
from kafscale.storage.bundles import BundlePolicy
from kafscale.storage.directory import check_format, complete_names
from kafscale.storage.local import OBJECTS, LocalStore
from kafscale.storage.store import Purpose

TOOLS = ("mkfs.ext4", "e2fsck", "mount", "umount")
POLICY = BundlePolicy(bundle_bytes=1 << 20, bundles_max=2, after_puts=0)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, TOOLS)) or not os.path.exists("/dev/loop-control"),
    reason="needs root, loop devices and e2fsprogs",
)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily, so that a test that fails with files open leaves nothing mounted.
        subprocess.run(["umount", "-l", folder], check=True)


def body_of(number: int) -> bytes:
    return bytes([number]) * (5_000 * number + 1)


async def put_all(root: Path, image: Path, copied: Path) -> None:
    """Put files and records, and copy the device while their store is still open."""
    store = LocalStore(root, bundles=POLICY)
    store._bundles.prepare()
    for number in range(20):
        purpose = Purpose.FLUSH if number % 2 else Purpose.CHECKPOINT
        await store.put_if_absent(f"ns/log/{number}", [body_of(number)], purpose)
        assert bool(number % 2) == (bundle_named_by((root / OBJECTS / f"ns/log/{number}").read_bytes()) is not None)
    await asyncio.to_thread(shutil.copyfile, image, copied)
    await store.close()


async def read_all(root: Path) -> None:
    store = LocalStore(root, bundles=POLICY)
    try:
        for number in range(20):
            assert await store.get(f"ns/log/{number}", Purpose.RECOVERY) == body_of(number)
        assert len(await store.list("ns/", Purpose.RECOVERY)) == 20
    finally:
        await store.close()


@pytest.mark.parametrize("options", [[], ["-O", "^has_journal"]], ids=["journal", "no journal"])
def test_objects_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Goal: every object whose put returned is there, with its bytes, whichever way it was written."""
    image, copied = tmp_path / "image", tmp_path / "copied"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
    with mounted(image, tmp_path / "before") as root:
        check_format(root)
        complete_names(root)
        asyncio.run(put_all(root, image, copied))
    # 0: sound, 1: mended.
    assert subprocess.run(["e2fsck", "-fy", copied], capture_output=True, check=False).returncode in (0, 1)
    boot = tmp_path / "boot"
    boot.write_text("another\n")
    monkeypatch.setattr(restored_names, "BOOT_ID", str(boot))
    with mounted(copied, tmp_path / "after") as root:
        complete_names(root)
        asyncio.run(read_all(root))
