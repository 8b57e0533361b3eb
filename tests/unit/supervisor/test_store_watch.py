"""Goal: one notion of a store that is silent, which neither a question lost nor a paused process can bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kafscale.errors import StoreFailed, StoreUnavailable
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import Purpose
from supervisor.store_watch import PATIENCE_SECONDS, PROBE_SECONDS, SILENT_SECONDS, STEADY_SECONDS, StoreWatch
from tests.unit.storage.rig import KEYS, LoopClock, run

# By then a silence is noticed, however the store is silent.
NOTICED_SECONDS = SILENT_SECONDS + PATIENCE_SECONDS


class Store(MemoryStore):
    """Answers, refuses, or says nothing at all."""

    def __init__(self) -> None:
        super().__init__(LoopClock())
        self.mood = "answers"

    async def exists(self, key: str, purpose: Purpose) -> bool:
        match self.mood:
            case "refuses":
                raise StoreUnavailable("503")
            case "hangs":
                await asyncio.sleep(3600)
            case "fails":
                raise StoreFailed("a write was lost")
        return self.mood != "is empty"


def watched(script: Callable[[Store, StoreWatch, asyncio.Task[None]], object]) -> None:
    async def main() -> None:
        store = Store()
        watch = StoreWatch(store, KEYS, LoopClock())
        task = asyncio.ensure_future(watch.run())
        await script(store, watch, task)  # type: ignore[misc]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


@pytest.mark.parametrize("mood", ["refuses", "hangs"])
def test_silence_is_noticed_and_so_is_its_end(mood: str) -> None:
    async def script(store: Store, watch: StoreWatch, task: asyncio.Task[None]) -> None:
        assert not watch.is_steady
        await asyncio.sleep(STEADY_SECONDS + PROBE_SECONDS)
        assert watch.is_steady
        store.mood = mood
        # Before it is sure of a silence it is long sure of nothing.
        await asyncio.sleep(SILENT_SECONDS - PROBE_SECONDS)
        assert not watch.is_silent
        assert not watch.is_steady
        await asyncio.sleep(NOTICED_SECONDS)
        assert watch.is_silent
        store.mood = "answers"
        await asyncio.sleep(PATIENCE_SECONDS + PROBE_SECONDS + 0.1)
        assert not watch.is_silent
        assert not watch.is_steady
        await asyncio.sleep(STEADY_SECONDS)
        assert watch.is_steady

    watched(script)


def test_an_empty_bucket_answers(caplog: pytest.LogCaptureFixture) -> None:
    """A cluster that only begins has no first version yet, and that is not its loss."""

    async def script(store: Store, watch: StoreWatch, task: asyncio.Task[None]) -> None:
        store.mood = "is empty"
        await asyncio.sleep(STEADY_SECONDS + PROBE_SECONDS)
        assert watch.is_steady and not caplog.records
        store.mood = "answers"
        await asyncio.sleep(2 * PROBE_SECONDS)
        store.mood = "is empty"
        await asyncio.sleep(NOTICED_SECONDS)
        assert watch.is_silent and "has lost the cluster log's first version" in caplog.records[0].cause  # type: ignore[attr-defined]

    watched(script)


def test_a_question_without_an_answer_is_told_in_words(caplog: pytest.LogCaptureFixture) -> None:
    async def script(store: Store, watch: StoreWatch, task: asyncio.Task[None]) -> None:
        store.mood = "hangs"
        await asyncio.sleep(PROBE_SECONDS + PATIENCE_SECONDS)
        assert caplog.records[0].cause == "nothing for 4 s"  # type: ignore[attr-defined]

    watched(script)


@pytest.mark.parametrize("mood", ["refuses", "hangs"])
def test_one_question_without_an_answer_is_no_silence(mood: str) -> None:
    """However long it takes until the next, as in a process that was paused."""

    async def script(store: Store, watch: StoreWatch, task: asyncio.Task[None]) -> None:
        for _ in range(20):
            store.mood = mood
            await asyncio.sleep(PROBE_SECONDS + 0.1)
            store.mood = "answers"
            await asyncio.sleep(PATIENCE_SECONDS + PROBE_SECONDS)
            assert not watch.is_silent

    watched(script)


def test_a_store_that_fails_for_good_ends_the_watch() -> None:
    async def script(store: Store, watch: StoreWatch, task: asyncio.Task[None]) -> None:
        store.mood = "fails"
        with pytest.raises(StoreFailed):
            await task

    watched(script)
