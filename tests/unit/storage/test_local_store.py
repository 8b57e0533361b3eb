"""Goal: what only a local directory has: durable steps in order, failing disks, temporary files, several processes."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kafscale.errors import ObjectExists, ObjectMissing, StoreFailed, StoreUnavailable
from kafscale.storage import file_writer
from kafscale.storage import folders as folders_module
from kafscale.storage.file_writer import SCRATCH_BYTES
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose

FLUSH, READ = Purpose.FLUSH, Purpose.COLD_READ


def run(root: Path, scenario: Callable[[LocalStore], Awaitable[None]]) -> None:
    async def with_store() -> None:
        store = LocalStore(root)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(with_store())


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def raising(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, raising)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4096, SCRATCH_BYTES, 2 * SCRATCH_BYTES + 4097, 3_000_001])
def test_every_way_of_writing_gives_the_same_bytes(tmp_path: Path, unnamed: bool, direct: bool, size: int) -> None:
    """Goal: with and without O_DIRECT and O_TMPFILE, aligned and not, in one part or several, the bytes arrive."""
    aligned = memoryview(mmap.mmap(-1, max(1, size)))
    aligned[:size] = os.urandom(size)
    body = bytes(aligned[:size])

    async def scenario(store: LocalStore) -> None:
        store._unnamed_files = unnamed
        store._writer._direct = direct
        await store.put_if_absent("aligned", [aligned[:size]], FLUSH)
        await store.put_if_absent("then", [aligned[:size], b"tail"], FLUSH)
        await store.put_if_absent("copied", [body], FLUSH)
        await store.put_if_absent("shifted", [b"12345", aligned[:size], b"tail"], FLUSH)
        assert await store.get("aligned", READ) == body
        assert await store.get("copied", READ) == body
        assert await store.get("then", READ) == body + b"tail"
        assert await store.get("shifted", READ) == b"12345" + body + b"tail"

    run(tmp_path, scenario)
    assert files_of(tmp_path) == ["objects/aligned", "objects/copied", "objects/shifted", "objects/then"]


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_a_name_is_made_after_its_bytes_are_durable_and_returned_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, in_order: bool
) -> None:
    """Goal: bytes made durable, link, fsyncs of the linked file and of the folder, in this order; new parents are
    fsynced before. On a file system that journals in order a file written past the page cache needs only the last."""
    steps: list[str] = []

    def recording(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            steps.append(describe(*arguments))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    def folder_of(descriptor: object) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path)
        return "fsync the file" if "#" in path.name else f"fsync {path}"

    recording("fdatasync", lambda descriptor: "fdatasync")
    recording("link", lambda source, name: f"link {name}")
    recording("fsync", folder_of)
    recording("mkdir", lambda path, mode=0: f"mkdir {path}")

    async def scenario(store: LocalStore) -> None:
        store._writer._direct = direct
        store._journals_in_order = in_order
        synced = [] if direct and in_order else ["fdatasync"]
        synced_again = ["fsync the file"] if synced else []
        steps.clear()
        await store.put_if_absent("ns/log/1", [b"x"], FLUSH)
        assert store._writer._direct == direct, "the file system of the temporary folder does no O_DIRECT"
        assert steps == [
            "mkdir ns",
            "fsync objects",
            "mkdir log",
            "fsync objects/ns",
            "fsync objects/ns/log",
            *synced,
            "link 1",
            *synced_again,
            "fsync objects/ns/log",
        ]
        steps.clear()
        await store.put_if_absent("ns/log/2", [b"x"], FLUSH)
        assert steps == [*synced, "link 2", *synced_again, "fsync objects/ns/log"]
        steps.clear()
        with pytest.raises(ObjectExists):
            await store.put_if_absent("ns/log/2", [b"y"], FLUSH)
        assert steps == [*synced, "link 2", "fsync objects/ns/log"]

    run(tmp_path, scenario)


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_a_failed_fsync_ends_the_store_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Goal: after a failed fsync of a file or folder every call raises StoreFailed, even when the disk works again."""

    async def scenario(store: LocalStore) -> None:
        store._journals_in_order = False
        await store.put_if_absent("ns/1", [b"x"], FLUSH)
        with monkeypatch.context() as broken:
            refuse(broken, call, errno.EIO)
            with pytest.raises(StoreFailed):
                await store.put_if_absent("ns/2", [b"x"], FLUSH)
        for again in (
            lambda: store.put_if_absent("ns/3", [b"x"], FLUSH),
            lambda: store.get("ns/1", READ),
            lambda: store.list("", READ),
            lambda: store.delete(["ns/1"], Purpose.SWEEP),
        ):
            with pytest.raises(StoreFailed):
                await again()

    run(tmp_path, scenario)
    assert "objects/ns/3" not in files_of(tmp_path)
    assert not any(name.startswith("tmp/") for name in files_of(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["writev", "fdatasync", "link"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_disk_applies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str, direct: bool, unnamed: bool
) -> None:
    """Goal: no room is StoreUnavailable, leaves no object and no temporary file, and the same put succeeds later."""

    async def scenario(store: LocalStore) -> None:
        store._unnamed_files = unnamed
        store._writer._direct = direct
        store._journals_in_order = False
        with monkeypatch.context() as full:
            refuse(full, call, number)
            with pytest.raises(StoreUnavailable):
                await store.put_if_absent("ns/1", [b"x"], FLUSH)
        assert files_of(tmp_path) == []
        assert not await store.exists("ns/1", READ)
        await store.put_if_absent("ns/1", [b"x"], FLUSH)

    run(tmp_path, scenario)
    assert files_of(tmp_path) == ["objects/ns/1"]


def test_no_descriptors_left_is_unavailable(tmp_path: Path) -> None:
    """Goal: EMFILE, in a process that really has none left, is StoreUnavailable; later the store works."""
    script = """
import asyncio, os, resource, sys
from pathlib import Path
from kafscale.clock import SystemClock
from kafscale.errors import StoreUnavailable
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose

async def main():
    store = LocalStore(Path(sys.argv[1]))
    await store.put_if_absent("ns/1", [b"x"], Purpose.FLUSH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    refused = 0
    for call in (lambda: store.put_if_absent("ns/2", [b"x"], Purpose.FLUSH), lambda: store.get("ns/1", Purpose.FLUSH),
                 lambda: store.list("", Purpose.FLUSH)):
        try:
            await call()
        except StoreUnavailable:
            refused += 1
    for descriptor in held:
        os.close(descriptor)
    await store.put_if_absent("ns/2", [b"x"], Purpose.FLUSH)
    assert await store.get("ns/1", Purpose.FLUSH) == b"x"
    await store.close()
    print(refused)

asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("3\n", "")


@pytest.mark.parametrize("bundled", [True, False])
def test_processes_race_for_the_same_names(tmp_path: Path, bundled: bool) -> None:
    """Goal: of several processes that create the same keys each key has one winner, whose bytes it holds, be it in a
    file of its own or in a bundle."""
    script = """
import asyncio, sys
from pathlib import Path
from kafscale.errors import ObjectExists
from kafscale.storage.bundles import BundlePolicy
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose

async def main():
    # One of the three always writes files.
    bundled = sys.argv[3] == "True" and sys.argv[2] != "0"
    store = LocalStore(Path(sys.argv[1]), bundles=BundlePolicy(bundles_max=bundled and 9, after_puts=0))
    if bundled:
        store._bundles.prepare()
    sys.stdin.readline()
    for number in range(60):
        try:
            await store.put_if_absent(f"ns/{number % 3}/{number}", [sys.argv[2].encode()], Purpose.FLUSH)
            print(number)
        except ObjectExists:
            pass
    await store.close()

asyncio.run(main())
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, str(name), str(bundled)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in range(3)
    ]
    won: dict[int, str] = {}
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for name, racer in enumerate(racers):
        output, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        for line in output.split():
            assert int(line) not in won
            won[int(line)] = str(name)
    assert sorted(won) == list(range(60))

    async def scenario(store: LocalStore) -> None:
        for number, winner in won.items():
            assert await store.get(f"ns/{number % 3}/{number}", READ) == winner.encode()

    run(tmp_path, scenario)


def test_a_folder_emptied_and_removed_by_another_process_is_made_again(tmp_path: Path) -> None:
    """Goal: a store that holds a folder open which another store's delete removed still puts and reads there."""

    async def scenario(store: LocalStore) -> None:
        other = LocalStore(tmp_path)
        for number in range(12):
            for unnamed in (True, False):
                store._unnamed_files = unnamed
                await store.put_if_absent(f"ns/log/{number}", [b"x"], FLUSH)
                assert await other.get(f"ns/log/{number}", READ) == b"x"
                await other.delete([f"ns/log/{number}"], Purpose.SWEEP)
                assert not (tmp_path / "objects" / "ns").exists()
                with pytest.raises(ObjectMissing):
                    await store.get(f"ns/log/{number}", READ)
        await other.close()

    run(tmp_path, scenario)


def test_many_folders_stay_within_the_limit_of_open_ones(tmp_path: Path) -> None:
    """Goal: open folders are bounded, and closed ones are opened again when they are needed."""

    async def scenario(store: LocalStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        count = folders_module.MAX_OPEN_FOLDERS + 20
        await asyncio.gather(*(store.put_if_absent(f"ns/{number}/x", [b"x"], FLUSH) for number in range(count)))
        assert len(os.listdir("/proc/self/fd")) <= before + folders_module.MAX_OPEN_FOLDERS + 1
        for number in range(count):
            assert await store.get(f"ns/{number}/x", READ) == b"x"

    run(tmp_path, scenario)


def test_concurrent_puts_share_the_fsync_of_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an fsync of the folder covers every name made before it began, and no put returns before one has."""
    real_fsync, real_link = os.fsync, os.link
    linked: set[str] = set()
    durable: set[str] = set()

    def link(source: str, name: str, **named: object) -> None:
        real_link(source, name, **named)  # type: ignore[arg-type]
        linked.add(name)

    def fsync(descriptor: int) -> None:
        covered = set(linked)
        real_fsync(descriptor)
        durable.update(covered)

    async def scenario(store: LocalStore) -> None:
        async def put(number: int) -> None:
            await store.put_if_absent(f"ns/{number}", [b"x"], FLUSH)
            assert str(number) in durable

        await store.put_if_absent("ns/first", [b"x"], FLUSH)
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(os, "fsync", fsync)
        await asyncio.gather(*(put(number) for number in range(200)))

    run(tmp_path, scenario)


def test_a_cancelled_put_that_has_not_begun_never_does(tmp_path: Path) -> None:
    """Goal: cancelling frees the buffers of puts that still wait for a thread; the store goes on."""

    async def scenario(store: LocalStore) -> None:
        puts = [asyncio.ensure_future(store.put_if_absent(f"ns/{n}", [b"x"], FLUSH)) for n in range(100)]
        await asyncio.sleep(0)
        for put in puts:
            put.cancel()
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await store.put_if_absent("ns/last", [b"x"], FLUSH)
        assert len(await store.list("ns/", READ)) < 100

    run(tmp_path, scenario)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Goal: a symbolic link planted in the directory neither leads a read outside nor counts as an object."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "leak").symlink_to(tmp_path / "secret")

    async def scenario(store: LocalStore) -> None:
        assert await store.list("", READ) == []
        with pytest.raises(StoreUnavailable):
            await store.get("leak", READ)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 0 8:1 / / rw,relatime - ext4 /dev/vda rw,discard", True),
        ("1 0 8:3 / / rw,relatime - ext4 /dev/vdc rw,discard", False),
        ("1 0 8:4 / / rw,relatime - ext4 /dev/vdd rw,discard", False),
        ("1 0 8:1 / / rw,relatime - xfs /dev/vda rw", True),
        ("1 0 8:1 / / rw,relatime - ext4 /dev/vda rw,nobarrier", False),
        ("1 0 8:1 / / rw,relatime - ext4 /dev/vda rw,data=writeback", False),
        ("1 0 8:1 / / rw,relatime - btrfs /dev/vda rw", False),
        ("1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:9 / /data rw - tmpfs tmpfs rw", False),
        ("1 0 8:1 / / rw - tmpfs tmpfs rw\n2 1 8:2 / /data rw - ext4 /dev/vdb rw", True),
        ("1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:9 / /dat rw - tmpfs tmpfs rw", True),
        ("nonsense", False),
    ],
)
def test_only_file_systems_that_journal_in_order_are_trusted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: bool
) -> None:
    """Goal: the longest mount point that holds the folder decides, by its type, its options, and its journal."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(line + "\n")
    monkeypatch.setattr(file_writer, "MOUNTS", str(mounts))
    monkeypatch.setattr(file_writer, "SYSTEM", str(tmp_path))
    # The third has no journal, of the fourth nothing is known.
    for number, name, task in (("8:1", "vda", "42\n"), ("8:2", "vdb", "0\n"), ("8:3", "vdc", "<none>\n")):
        (tmp_path / "fs" / "ext4" / name).mkdir(parents=True)
        (tmp_path / "fs" / "ext4" / name / "journal_task").write_text(task)
        (tmp_path / "dev" / "block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / "block" / number).symlink_to(f"../../block/{name}")
    assert file_writer.journals_in_order("/data/kafscale") is expected
