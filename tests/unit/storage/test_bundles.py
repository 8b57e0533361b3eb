"""Goal: objects in bundles are as durable, exclusive and well guarded as files, and bundles come and go unseen."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kafscale.errors import ObjectExists, ObjectMissing, StoreFailed, StoreUnavailable
from kafscale.storage import restored_names
from kafscale.storage.bundle_files import ANCHOR_BYTES, ANCHOR_SUFFIX, BLOCK_BYTES, FOLDER, bundle_named_by
from kafscale.storage.bundles import BundlePolicy
from kafscale.storage.directory import complete_names
from kafscale.storage.local import OBJECTS, LocalStore
from kafscale.storage.store import Purpose

FLUSH, READ = Purpose.FLUSH, Purpose.COLD_READ
SMALL = BundlePolicy(object_bytes=64 << 10, bundle_bytes=64 << 10, bundles_max=2, after_puts=0)


def run(root: Path, scenario: Callable[[LocalStore], Awaitable[None]], policy: BundlePolicy = SMALL) -> None:
    """With a store that has a bundle ready; as after a kill, its bundles stay when it is gone."""

    async def with_store() -> None:
        store = LocalStore(root, bundles=policy)
        store._bundles.prepare()
        await scenario(store)
        await store._threads.close()

    asyncio.run(with_store())


def boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Let the machine be on another boot from now on."""
    path = tmp_path / f"boot-{name}"
    path.write_text(f"{name}\n")
    monkeypatch.setattr(restored_names, "BOOT_ID", str(path))


def is_bundled(root: Path, key: str) -> bool:
    return bundle_named_by((root / OBJECTS / key).read_bytes()) is not None


def body_of(number: int) -> bytes:
    return bytes([number % 251]) * (number * 37 % 9_000)


def bundles_in(root: Path) -> list[str]:
    return sorted(path.name for path in (root / FOLDER).glob("*-*") if not path.name.endswith(ANCHOR_SUFFIX))


def overwrite(path: Path, position: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)


def test_one_write_and_one_link_make_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a put into a bundle writes durably, then links; it makes no file and syncs nothing else."""
    steps: list[str] = []

    def recording(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            steps.append(describe(*arguments))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    async def scenario(store: LocalStore) -> None:
        await store.put_if_absent("ns/log/0", [b"x"], FLUSH)
        store._bundles._is_preparing = True  # Not in between.
        recording("pwritev", lambda descriptor, buffers, position, flags: f"pwritev {flags == os.RWF_DSYNC}")
        recording("link", lambda source, name: f"link {name}")
        for call in ("fsync", "fdatasync", "open", "write", "pwrite"):
            recording(call, lambda *_, name=call: name)  # type: ignore[misc]
        await store.put_if_absent("ns/log/1", [b"y", b"z"], FLUSH)
        assert steps == ["pwritev True", "link 1"]

    run(tmp_path, scenario)
    assert is_bundled(tmp_path, "ns/log/1")


def test_only_small_objects_of_flushes_go_into_bundles(tmp_path: Path) -> None:
    """Goal: what lives long, or is large, is a file of its own."""

    async def scenario(store: LocalStore) -> None:
        for purpose in Purpose:
            await store.put_if_absent(f"ns/{purpose}", [b"x"], purpose)
        await store.put_if_absent("ns/large", [bytes(SMALL.object_bytes)], FLUSH)

    run(tmp_path, scenario)
    assert [purpose for purpose in Purpose if is_bundled(tmp_path, f"ns/{purpose}")] == [FLUSH]
    assert not is_bundled(tmp_path, "ns/large")


def test_who_puts_little_gets_no_bundle(tmp_path: Path) -> None:
    """Goal: the space of a bundle is taken only after some objects, and they go on as files where there is none."""

    async def scenario() -> None:
        store = LocalStore(tmp_path)
        for number in range(BundlePolicy().after_puts):
            await store.put_if_absent(f"ns/{number}", [b"x"], FLUSH)
            assert number == BundlePolicy().after_puts - 1 or not (tmp_path / FOLDER).exists()
        await store._threads.close()
        assert not any(is_bundled(tmp_path, f"ns/{number}") for number in range(BundlePolicy().after_puts))
        store._bundles.close()

    asyncio.run(scenario())


def test_names_lost_with_the_power_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: whatever of the names is gone after a boot, every object whose put returned is there, with its bytes; an
    object that lost against another, and one that was being written, are not."""
    root = tmp_path / "data"
    root.mkdir()
    boot(monkeypatch, tmp_path, "first")
    complete_names(root)

    async def before(store: LocalStore) -> None:
        other = LocalStore(root)
        await other.put_if_absent("ns/log/3", [b"seal"], Purpose.RECOVERY)
        for number in range(8):
            if number == 3:
                with pytest.raises(ObjectExists):
                    await store.put_if_absent("ns/log/3", [b"zombie"], FLUSH)
            else:
                await store.put_if_absent(f"ns/log/{number}", [body_of(number)], FLUSH)
        own = store._bundles._current
        assert own is not None
        # The last one's bytes did not all reach the disk.
        await store.put_if_absent("ns/log/8", [b"torn" * 3000], FLUSH)
        overwrite(root / FOLDER / own.name, own.position - BLOCK_BYTES, bytes(BLOCK_BYTES))
        await other.close()

    run(root, before)
    for number in (1, 2, 5, 7, 8):
        (root / OBJECTS / "ns" / "log" / str(number)).unlink()
    complete_names(root)
    assert not (root / OBJECTS / "ns" / "log" / "1").exists(), "the machine is the same: names are what they are"
    boot(monkeypatch, tmp_path, "second")
    complete_names(root)

    async def after(store: LocalStore) -> None:
        for number in range(8):
            expected = b"seal" if number == 3 else body_of(number)
            assert await store.get(f"ns/log/{number}", READ) == expected
        assert not await store.exists("ns/log/8", READ)
        with pytest.raises(ObjectExists):
            await store.put_if_absent("ns/log/1", [b"again"], FLUSH)

    run(root, after)


def test_all_names_and_folders_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the folders of the names come back too."""
    boot(monkeypatch, tmp_path, "first")

    async def before(store: LocalStore) -> None:
        for number in range(5):
            await store.put_if_absent(f"a/{number % 2}/b/{number}", [body_of(number)], FLUSH)

    async def after(store: LocalStore) -> None:
        assert [info.size for info in await store.list("a/", READ)] == [len(body_of(n)) for n in (0, 2, 4, 1, 3)]
        for number in range(5):
            assert await store.get(f"a/{number % 2}/b/{number}", READ) == body_of(number)

    run(tmp_path, before)
    shutil.rmtree(tmp_path / OBJECTS)
    complete_names(tmp_path)
    run(tmp_path, after)


def test_what_a_bundle_held_before_it_was_filled_anew_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: records of an earlier filling are none, wherever the new ones end."""
    boot(monkeypatch, tmp_path, "first")

    async def before(store: LocalStore) -> None:
        store._bundles._is_preparing = True  # Only here.
        for number in range(6):
            await store.put_if_absent(f"old/{number}", [bytes([number]) * 5_000], FLUSH)
        await store.delete([f"old/{number}" for number in range(6)], Purpose.SWEEP)
        bundles = store._bundles
        own = bundles._current
        assert own is not None
        bundles._full.append(own)
        bundles._current = None
        recycled = bundles._recycle()
        assert recycled is own
        bundles._spare = recycled
        await store.put_if_absent("new/0", [b"x" * 5_000], FLUSH)
        assert bundles._current is own

    run(tmp_path, before)
    shutil.rmtree(tmp_path / OBJECTS)
    complete_names(tmp_path)
    assert sorted(path.name for path in (tmp_path / OBJECTS).iterdir()) == ["new"]


def test_a_copied_directory_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a copy whose names are files and not links reads as the original, is not taken for empty, and becomes
    links again at the first start."""
    boot(monkeypatch, tmp_path, "first")
    original, copied = tmp_path / "original", tmp_path / "copied"
    original.mkdir()
    complete_names(original)

    async def fill(store: LocalStore) -> None:
        for number in range(9):
            await store.put_if_absent(f"ns/{number}", [body_of(number)], FLUSH)

    async def check(store: LocalStore) -> None:
        for number in range(9):
            assert await store.get(f"ns/{number}", READ) == body_of(number)
        await store.delete(["ns/nothing"], Purpose.SWEEP)  # Looks for bundles to remove.
        for number in range(9):
            assert await store.get(f"ns/{number}", READ) == body_of(number)

    run(original, fill)
    shutil.copytree(original, copied)
    held = bundles_in(copied)
    run(copied, check)
    complete_names(copied)
    assert os.stat(copied / FOLDER / f"{held[0]}{ANCHOR_SUFFIX}").st_nlink == 10
    run(copied, check)
    assert held[0] in bundles_in(copied)


def test_a_reader_that_was_overtaken_says_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: bytes that were put where the object lay, after it was deleted, are never taken for the object's."""

    async def scenario(store: LocalStore) -> None:
        store._bundles._is_preparing = True  # Only here.
        await store.put_if_absent("ns/old", [b"old" * 1000], FLUSH)
        bundles = store._bundles
        own = bundles._current
        assert own is not None
        place = bundles.place(own.name, "ns/old")
        real = os.pread

        def overtaken(descriptor: int, length: int, position: int) -> bytes:
            if position == place.position:
                monkeypatch.setattr(os, "pread", real)
                os.unlink(tmp_path / OBJECTS / "ns" / "old")
                bundles._full.append(own)
                bundles._current = None
                bundles._spare = bundles._recycle()
                bundles.put("ns/new", "ns", [b"new" * 1000], 3000, lambda anchor: None)
            return real(descriptor, length, position)

        monkeypatch.setattr(os, "pread", overtaken)
        with pytest.raises(ObjectMissing):
            await store.get("ns/old", READ)
        assert bundles._current is own

    run(tmp_path, scenario)


def test_another_process_follows_what_was_written_over(tmp_path: Path) -> None:
    """Goal: a store that has looked through another's bundle finds what takes the place of an object that lost."""

    async def scenario(store: LocalStore) -> None:
        other = LocalStore(tmp_path)
        await store.put_if_absent("ns/0", [b"first"], FLUSH)
        assert await other.get("ns/0", READ) == b"first"
        await other.put_if_absent("ns/1", [b"seal"], Purpose.RECOVERY)
        real = store._bundles._write

        def seen_by_the_other(descriptor: int, data: memoryview, position: int) -> None:
            real(descriptor, data, position)
            own = store._bundles._current
            assert own is not None
            with pytest.raises(ObjectMissing):
                other._bundles.place(own.name, "ns/none")

        store._bundles._write = seen_by_the_other  # type: ignore[method-assign]
        with pytest.raises(ObjectExists):
            await store.put_if_absent("ns/1", [b"zombie" * 3000], FLUSH)
        store._bundles._write = real  # type: ignore[method-assign]
        await store.put_if_absent("ns/2", [b"second" * 10], FLUSH)
        await store.put_if_absent("ns/3", [b"third"], FLUSH)
        assert await other.get("ns/1", READ) == b"seal"
        assert await other.get("ns/2", READ) == b"second" * 10
        assert await other.get("ns/3", READ) == b"third"
        await other.close()

    run(tmp_path, scenario)


def test_bundles_are_filled_anew_and_never_grow_in_number(tmp_path: Path) -> None:
    """Goal: with objects deleted as fast as they are put, the bundles stay as many as the policy says."""
    count = 200

    async def scenario(store: LocalStore) -> None:
        bundled = 0
        for number in range(count):
            key = f"ns/{number}"
            await store.put_if_absent(key, [body_of(number)], FLUSH)
            bundled += is_bundled(tmp_path, key)
            if number >= 3:
                assert await store.get(f"ns/{number - 3}", READ) == body_of(number - 3)
                await store.delete([f"ns/{number - 3}"], Purpose.SWEEP)
        assert len(bundles_in(tmp_path)) <= SMALL.bundles_max
        assert bundled > count // 2

    run(tmp_path, scenario)


def test_bundles_of_the_dead_are_removed_when_empty(tmp_path: Path) -> None:
    """Goal: a killed process's bundle stays while it holds an object or the process lives, and then goes."""
    complete_names(tmp_path)
    script = """
import asyncio, sys
from pathlib import Path
from kafscale.storage.bundles import BundlePolicy
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose

async def main():
    store = LocalStore(Path(sys.argv[1]), bundles=BundlePolicy(bundle_bytes=1 << 20, bundles_max=1, after_puts=0))
    store._bundles.prepare()
    await store.put_if_absent("ns/1", [b"x"], Purpose.FLUSH)
    await store.put_if_absent("ns/2", [b"y"], Purpose.FLUSH)
    print("ready", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    (held,) = bundles_in(tmp_path)

    async def scenario(store: LocalStore) -> None:
        assert await store.get("ns/2", READ) == b"y"
        await store.delete(["ns/1"], Purpose.SWEEP)
        assert held in bundles_in(tmp_path)
        os.rename(tmp_path / OBJECTS / "ns" / "2", tmp_path / "kept")
        os.unlink(tmp_path / "kept")
        await store.delete(["ns/none"], Purpose.SWEEP)
        assert held in bundles_in(tmp_path), "its process lives, and may put more into it"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        await store.delete(["ns/none"], Purpose.SWEEP)
        assert held not in bundles_in(tmp_path)
        assert not (tmp_path / FOLDER / f"{held}{ANCHOR_SUFFIX}").exists()

    try:
        run(tmp_path, scenario)
    finally:
        process.kill()
        process.wait(60)
        process.stdin.close()
        process.stdout.close()


def test_what_a_kill_left_half_made_is_removed(tmp_path: Path) -> None:
    """Goal: a bundle without an anchor, an anchor without a bundle and an anchor without content hold nobody up."""
    complete_names(tmp_path)
    (tmp_path / FOLDER / "dead-000001").write_bytes(bytes(8192))
    (tmp_path / FOLDER / f"dead-000002{ANCHOR_SUFFIX}").write_bytes(bytes(ANCHOR_BYTES))
    (tmp_path / FOLDER / "dead-000003").write_bytes(bytes(8192))
    (tmp_path / FOLDER / f"dead-000003{ANCHOR_SUFFIX}").write_bytes(b"")
    (tmp_path / FOLDER / "directory").unlink()
    complete_names(tmp_path)

    async def scenario(store: LocalStore) -> None:
        await store.delete(["ns/none"], Purpose.SWEEP)
        assert not list((tmp_path / FOLDER).glob("dead-*"))

    run(tmp_path, scenario)


def test_a_failed_write_ends_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an error of the disk in a bundle is as final as a failed fsync; a full disk applies nothing and passes."""

    async def scenario(store: LocalStore) -> None:
        await store.put_if_absent("ns/0", [b"x"], FLUSH)

        def refuse(number: int) -> Callable[..., int]:
            def raising(*arguments: object) -> int:
                raise OSError(number, os.strerror(number))

            return raising

        with monkeypatch.context() as broken:
            broken.setattr(os, "pwritev", refuse(errno.ENOSPC))
            with pytest.raises(StoreUnavailable):
                await store.put_if_absent("ns/1", [b"x"], FLUSH)
        assert not await store.exists("ns/1", READ)
        await store.put_if_absent("ns/1", [b"y"], FLUSH)
        assert await store.get("ns/1", READ) == b"y"
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwritev", refuse(errno.EIO))
            with pytest.raises(StoreFailed):
                await store.put_if_absent("ns/2", [b"x"], FLUSH)
        with pytest.raises(StoreFailed):
            await store.get("ns/1", READ)

    run(tmp_path, scenario)


@pytest.mark.parametrize("missing", ["direct", "dsync"])
def test_a_file_system_without_the_shortcuts_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Goal: without O_DIRECT, or without writes that sync, objects are durable and read the same."""
    synced: list[int] = []
    real_open, real_pwritev, real_fdatasync = os.open, os.pwritev, os.fdatasync

    def open_(path: object, flags: int, *arguments: object, **named: object) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real_open(path, flags, *arguments, **named)  # type: ignore[arg-type]

    def pwritev(descriptor: int, buffers: object, position: int, flags: int) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no RWF_DSYNC")
        return real_pwritev(descriptor, buffers, position, flags)  # type: ignore[arg-type]

    def fdatasync(descriptor: int) -> None:
        synced.append(descriptor)
        real_fdatasync(descriptor)

    if missing == "direct":
        monkeypatch.setattr(os, "open", open_)
    else:
        monkeypatch.setattr(os, "pwritev", pwritev)
        monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def scenario(store: LocalStore) -> None:
        for number in range(5):
            await store.put_if_absent(f"ns/{number}", [body_of(number)], FLUSH)
            assert is_bundled(tmp_path, f"ns/{number}")
        for number in range(5):
            assert await store.get(f"ns/{number}", READ) == body_of(number)
        assert len(synced) >= (5 if missing == "dsync" else 0)

    run(tmp_path, scenario)
