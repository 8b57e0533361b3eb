"""One Produce request with data for 1, 16, 100 and 1,000 partitions: time to acknowledge, and objects written.

Cost must not follow the number of partitions: each request is one object. The cases are taken in turn, so that drift of
the machine falls on all alike; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

from kio.index import load_request_schema

from loadtest import wire
from loadtest.measure import report
from loadtest.target import Target, add_arguments, target

CASES = (1, 16, 100, 1_000)
VALUE_BYTES = 100


def request_for(topic: str, partitions: int) -> bytes:
    """A Produce request with a batch of one record for each of so many partitions."""
    return request_for_each(topic, range(partitions))


def request_for_each(topic: str, partitions: Iterable[int]) -> bytes:
    """A Produce request with a batch of one record for each of these partitions."""
    module = sys.modules[load_request_schema(wire.PRODUCE, 9).__module__]
    data = module.TopicProduceData(
        name=topic,
        partition_data=tuple(
            module.PartitionProduceData(index=index, records=wire.batch([bytes(VALUE_BYTES)])) for index in partitions
        ),
    )
    return wire.request(wire.PRODUCE, 9, 1, **(wire.produce_body(topic, b"") | {"topic_data": (data,)}))


def measure(broker: Target, seconds: float) -> list[dict[str, Any]]:
    """A row for each number of partitions. The broker must have one worker, or one request could not carry them all."""
    topic = broker.create_topic(max(CASES))
    if len(set(broker.leaders(topic).values())) != 1:
        raise RuntimeError("this needs a broker with one worker")
    took: dict[int, list[float]] = {partitions: [] for partitions in CASES}
    objects: dict[int, list[int]] = {partitions: [] for partitions in CASES}
    requests = {partitions: request_for(topic, partitions) for partitions in CASES}
    with wire.Connection(next(iter(broker.leaders(topic).values()))) as connection:
        deadline = time.monotonic() + seconds * len(CASES)
        while time.monotonic() < deadline or len(took[CASES[0]]) < 20:
            for partitions in CASES:
                known = len(broker.objects()) if len(objects[partitions]) < 10 else -1
                began = time.perf_counter()
                connection.send(requests[partitions])
                payload = connection.receive_frame()
                took[partitions].append(time.perf_counter() - began)
                if known >= 0:
                    objects[partitions].append(len(broker.objects()) - known)
                check_answer(payload, partitions)
    rows = [
        {
            "partitions": partitions,
            "requests": len(took[partitions]),
            "median ms": statistics.median(took[partitions]) * 1000,
            # The median, as a checkpoint may be written meanwhile.
            "objects a request": statistics.median(objects[partitions]),
        }
        for partitions in CASES
    ]
    for row in rows:
        row["times one partition's"] = row["median ms"] / rows[0]["median ms"]
    return rows


def error_codes(payload: bytes) -> dict[int, int]:
    """Partition → error code of an answer to such a request."""
    answer = wire.parse_response(payload, wire.PRODUCE, 9, 1)
    return {int(part.index): int(part.error_code) for part in answer.responses[0].partition_responses}


def check_answer(payload: bytes, partitions: int) -> None:
    errors = list(error_codes(payload).values())
    if errors != [0] * partitions:
        raise RuntimeError(f"the broker refused records: errors {set(errors)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=3)
    options = parser.parse_args()
    with target(options) as broker:
        rows = measure(broker, options.seconds)
    report("partitions in one request", rows)


if __name__ == "__main__":
    main()
