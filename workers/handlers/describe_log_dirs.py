"""DescribeLogDirs (key 35), v1-5: how large the partitions are that this node leads.

The one "directory" is where the data is kept; sizes are those of the batches that partitions hold, wherever they lie.
Left out: total and usable bytes (-1: an object store has none to tell), future replicas.
"""

from __future__ import annotations

from kafscale.protocol.messages.describe_log_dirs import (
    DescribeLogDirsPartition,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)
from kafscale.storage.partition import PartitionLog
from workers.context import Context, Request


def handle(context: Context, request: Request, message: DescribeLogDirsRequest) -> DescribeLogDirsResponse:
    by_topic: dict[str, dict[int, PartitionLog]] = {}
    if message.topics is None:
        for partition in context.ownership.partitions():
            by_topic.setdefault(partition.topic, {})[partition.index] = partition
    else:
        for topic in message.topics:
            for index in topic.partitions:
                found = context.ownership.partition(topic.topic, index)
                if found is not None:
                    by_topic.setdefault(topic.topic, {})[index] = found
    topics = [
        DescribeLogDirsTopic(
            name=name,
            partitions=[
                DescribeLogDirsPartition(partition_index=index, partition_size=partition.size_bytes)
                for index, partition in sorted(partitions.items())
            ],
        )
        for name, partitions in by_topic.items()
    ]
    return DescribeLogDirsResponse(results=[DescribeLogDirsResult(log_dir=context.settings.data_dir, topics=topics)])
