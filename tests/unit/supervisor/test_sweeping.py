"""Goal: what nobody ended is ended by the leader's sweeps, and swept; what is somebody's stays as it is."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

from kafscale.config import Settings
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import LogReader, find_end
from supervisor.controller import Controller
from supervisor.sealing import LogEnder
from supervisor.sweeping import sweep_ended_logs
from tests.unit.storage.rig import KEYS, LoopClock, Writer, batch_of, make_partition, run, write_checkpoint

SWEEP_MS, GRACE_MS = 1000, 600_000


def test_a_log_that_nobody_ended_is_ended_and_swept() -> None:
    """Its broker was killed while it was about to. A log of a worker that is registered, and one that is young, are not
    ended, though no list names them."""

    async def scenario() -> None:
        clock, source = LoopClock(), random.Random(1)
        store = MemoryStore(clock)
        reader = LogReader(store, KEYS, clock, source)
        left, registered, young = (Writer(store, number) for number in (1, 2, 3))
        for writer in (left, registered):
            await writer.flush(make_partition(0), batch_of(1))
        await clock.sleep(GRACE_MS / 1000 + 1)
        await young.flush(make_partition(0), batch_of(1))

        worker = SimpleNamespace(node_id=100, log_id=registered.log_id)
        coordination: Any = SimpleNamespace(
            is_leader=True, is_available=True, members=lambda: [SimpleNamespace(incarnations=[worker])]
        )
        settings = Settings(slots=4, sweep_interval_ms=SWEEP_MS, sweep_grace_ms=GRACE_MS)
        controller = Controller(
            ClusterLog(store, KEYS, clock, source), clock, settings, "w", lambda version, payload: None
        )
        owner = Writer(store, 4)
        post: Any = SimpleNamespace(node_id=0, log_id=owner.log_id)
        await controller.start([post], _no_logs)
        epochs = {slot: (entries[-1].epoch, []) for slot, entries in enumerate(controller.state.slots)}
        await write_checkpoint(owner, epochs)
        ender = LogEnder(store, KEYS, clock, source, "w")

        async def has_ended(writer: Writer) -> bool:
            return (await find_end(reader, writer.log_id)).sealed

        sweeping = asyncio.create_task(
            sweep_ended_logs(settings, store, KEYS, clock, source, controller, coordination, [post], ender)
        )
        await clock.sleep(SWEEP_MS * 1.5 / 1000)
        assert not await has_ended(left), "a worker so new that its registration is not known would be ended"
        await clock.sleep(SWEEP_MS * 3 / 1000)
        sweeping.cancel()
        assert await has_ended(left)
        assert not await has_ended(registered)
        assert not await has_ended(young)
        names = [info.key for info in await store.list(KEYS.log_objects(left.log_id), Purpose.RECOVERY)]
        assert KEYS.log(left.log_id, 0) not in names and names, "its records are swept, its end is still shown"
        await controller.close()

    run(scenario())


async def _no_logs(log_id: str) -> Any:
    raise AssertionError("the bucket was empty")
