"""Goal: a data directory has one broker at a time, and none that can't read it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kafscale.errors import StartError
from kafscale.storage.directory import check_format, lock_directory


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_second_broker_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    """Goal: a held directory is a StartError naming the holder, and nothing changes; released, it can be taken."""
    root = tmp_path / "new" / "data"
    descriptor = lock_directory(root)
    (root / "tmp").mkdir()
    (root / "tmp" / "in-flight").write_text("x")
    before = snapshot(root)
    with pytest.raises(StartError, match=f"process {os.getpid()}"):
        lock_directory(root)
    assert snapshot(root) == before
    os.close(descriptor)
    descriptor = lock_directory(root)
    assert not (root / "tmp" / "in-flight").exists()
    os.close(descriptor)


def test_a_child_that_inherits_the_lock_holds_it(tmp_path: Path) -> None:
    """Goal: the lock outlives the process that took it for as long as one that inherited it lives."""
    script = """
import subprocess, sys
from pathlib import Path
from kafscale.storage.directory import lock_directory
descriptor = lock_directory(Path(sys.argv[1]))
child = subprocess.Popen(["cat"], stdin=0, pass_fds=[descriptor])
"""
    reader, writer = os.pipe()
    try:
        subprocess.run([sys.executable, "-c", script, tmp_path], stdin=reader, check=True, timeout=60)
        with pytest.raises(StartError):
            lock_directory(tmp_path)
    finally:
        os.close(reader)
        os.close(writer)  # The child reads its end.
    with open(tmp_path / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # Waits for the child to be gone.
    os.close(lock_directory(tmp_path))


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """Goal: a path through a file is a StartError that names the directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file/data"):
        lock_directory(tmp_path / "file" / "data")


def test_a_new_directory_gets_its_format_and_keeps_it(tmp_path: Path) -> None:
    """Goal: the first start writes format 2, the second accepts it and changes nothing."""
    check_format(tmp_path)
    before = snapshot(tmp_path)
    assert before == {str(tmp_path / "format.json"): b'{"format":2}\n'}
    check_format(tmp_path)
    assert snapshot(tmp_path) == before


def test_an_older_format_is_taken_as_it_is(tmp_path: Path) -> None:
    """Goal: a directory of format 1 becomes one of format 2, so that an older program leaves it alone from then on."""
    (tmp_path / "format.json").write_bytes(b'{"format": 1}')
    check_format(tmp_path)
    assert snapshot(tmp_path) == {str(tmp_path / "format.json"): b'{"format":2}\n'}


@pytest.mark.parametrize("content", [b'{"format": 3}', b'{"format": 0}', b"", b"[]", b'{"format": "1"}', b"{}"])
def test_an_unknown_format_is_refused_and_nothing_is_changed(tmp_path: Path, content: bytes) -> None:
    """Goal: a newer or unreadable format is a StartError, and the directory stays as it was."""
    (tmp_path / "format.json").write_bytes(content)
    with pytest.raises(StartError):
        check_format(tmp_path)
    assert snapshot(tmp_path) == {str(tmp_path / "format.json"): content}


def test_data_without_a_format_is_refused(tmp_path: Path) -> None:
    """Goal: objects whose format can't be told are never taken for an empty directory."""
    (tmp_path / "objects" / "kafscale").mkdir(parents=True)
    with pytest.raises(StartError):
        check_format(tmp_path)
    assert not (tmp_path / "format.json").exists()
