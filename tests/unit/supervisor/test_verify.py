"""Goal: `kafscale verify` ends with one line where the store does not let it read. (Findings are tested end to end.)"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kafscale.errors import StoreFailed, StoreRefused
from kafscale.storage.local import LocalStore
from kafscale.storage.store import Purpose
from supervisor import read_store, verify
from tests.unit.supervisor.test_recover import fill, settings_of


def test_a_policy_that_forbids_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: many checks that fail at once are one error, of the kind that the command line turns into a line."""

    class ListsOnly(LocalStore):
        async def get(self, key: str, purpose: Purpose) -> bytes:
            raise StoreRefused("403 AccessDenied")

    settings = settings_of(tmp_path)
    asyncio.run(fill(settings, damaged=False))
    monkeypatch.setattr(read_store, "open_store", lambda settings, clock, source: ListsOnly(tmp_path))
    with pytest.raises(StoreFailed, match="403 AccessDenied"):
        verify.run(settings, verify.Options())
