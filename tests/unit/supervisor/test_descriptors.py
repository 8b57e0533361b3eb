"""Goal: a worker gets the newest descriptor that its supervisor handed over, however slow it is, and a sound snapshot
is the only thing that changes what is in force.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable

from kafscale.security.acl_rules import RuleSet
from kafscale.security.sealed_memory import seal
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from supervisor.descriptors import DescriptorSender
from workers.snapshots import SnapshotReceiver

PATIENCE_SECONDS = 20.0


class Ends:
    """Both ends of the socket, as two processes have them."""

    def __init__(self) -> None:
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sender = DescriptorSender(sending)
        self.received: list[Snapshot] = []
        self.refused = 0
        self.receiver = SnapshotReceiver(receiving, self.received.append, self._refuse)

    def _refuse(self) -> None:
        self.refused += 1

    def send(self, generation: int, spoil: Callable[[bytearray], None] = lambda data: None) -> None:
        data = compile_snapshot(RuleSet(), generation)
        spoil(data)
        fd = seal(data)
        self.sender.send(fd)
        os.close(fd)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 - turns of the loop
                await asyncio.sleep(0)

    def close(self) -> None:
        self.sender.close()
        self.receiver.stop()


def open_descriptors() -> int:
    # What other tests have left to be collected holds some.
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_the_newest_counts_and_the_others_are_let_go_of() -> None:
    """What was sent before the receiver looked is not gone through one by one; no descriptor stays open."""

    async def scenario() -> None:
        ends = Ends()
        before = open_descriptors()
        for generation in range(1, 9):
            ends.send(generation)
        ends.receiver.start()
        await ends.until(lambda: bool(ends.received))
        assert [snapshot.generation for snapshot in ends.received] == [8]
        ends.send(9)
        await ends.until(lambda: len(ends.received) == 2)
        assert ends.received[-1].generation == 9
        # Python keeps one open for each mapping.
        assert open_descriptors() == before + len(ends.received)
        ends.close()

    asyncio.run(scenario())


def test_a_worker_that_takes_nothing_gets_the_last_one_later() -> None:
    """However many were sent meanwhile; sending never blocks and keeps no more than one."""

    async def scenario() -> None:
        ends = Ends()
        before = open_descriptors()
        for generation in range(1, 2001):
            ends.send(generation)
        assert open_descriptors() <= before + 1
        ends.receiver.start()
        await ends.until(lambda: bool(ends.received) and ends.received[-1].generation == 2000)
        assert open_descriptors() == before + len(ends.received)
        ends.close()

    asyncio.run(scenario())


def test_a_snapshot_that_is_not_sound_is_refused() -> None:
    """Cut off, flipped, of another version, or not sealed: counted, and the one before stays."""

    def flip(data: bytearray) -> None:
        data[-1] ^= 1

    def cut(data: bytearray) -> None:
        del data[-8:]

    def other_version(data: bytearray) -> None:
        data[8] += 1

    async def scenario() -> None:
        ends = Ends()
        ends.receiver.start()
        ends.send(1)
        await ends.until(lambda: bool(ends.received))
        for number, spoil in enumerate((flip, cut, other_version, bytearray.clear), 1):
            ends.send(2, spoil)
            await ends.until(lambda number=number: ends.refused == number)  # type: ignore[misc]
        unsealed = os.memfd_create("test")
        os.write(unsealed, compile_snapshot(RuleSet(), 2))
        ends.sender.send(unsealed)
        os.close(unsealed)
        await ends.until(lambda: ends.refused == 5)
        assert [snapshot.generation for snapshot in ends.received] == [1]
        ends.send(3)
        await ends.until(lambda: len(ends.received) == 2)
        ends.close()

    asyncio.run(scenario())


def test_an_end_that_is_gone_is_no_trouble_to_the_other() -> None:
    """Sending to a dead worker does nothing; a worker whose supervisor is gone hears of it elsewhere."""

    async def scenario() -> None:
        ends = Ends()
        ends.receiver.start()
        ends.receiver.stop()
        ends.send(1)
        ends.sender.close()
        other = Ends()
        other.receiver.start()
        other.sender.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not other.received and not other.refused
        other.receiver.stop()

    asyncio.run(scenario())
