"""A simulated administrator that deletes the beginnings of partitions now and then."""

from __future__ import annotations

import asyncio

from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from tests.sim.client import MOVED, Lost
from tests.sim.consumer import Consumer
from tests.sim.history import Partition, RecordsDeleted


class Janitor(Consumer):
    """Deletes up to a random offset of a random partition, at a leisurely pace. `run` never returns."""

    async def run(self, partitions: list[Partition]) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / 3.0))
            partition = partitions[self.random.randrange(len(partitions))]
            bounds = await self.bounds(partition)
            if bounds is None or bounds[0] == bounds[1]:
                continue
            try:
                await self._delete(partition, self.random.randint(bounds[0], bounds[1]))
            except Lost:
                await self.backoff()

    async def _delete(self, partition: Partition, offset: int) -> None:
        wanted = DeleteRecordsPartition(partition_index=partition[1], offset=offset)
        request = DeleteRecordsRequest(
            topics=[DeleteRecordsTopic(name=partition[0], partitions=[wanted])], timeout_ms=5000
        )
        self.recorder.operations += 1
        wire = await self.wire_to(await self.leader_of(*partition))
        answer = await wire.ask(ApiKey.DELETE_RECORDS, 2, request)
        result = answer.topics[0].partitions[0]
        if result.error_code == 0:
            if result.low_watermark < offset:
                self.world.complain(
                    f"{partition[0]}-{partition[1]} was deleted up to {offset}, and the answer says"
                    f" {result.low_watermark}"
                )
            self.recorder.add(RecordsDeleted(partition, result.low_watermark))
        # Another owner may know less than the one that was asked for the bounds, while it doesn't know it is replaced.
        elif result.error_code not in MOVED | {ErrorCode.OFFSET_OUT_OF_RANGE}:
            self.unexpected("DeleteRecords", result.error_code)
        else:
            await self.refresh(partition[0])
