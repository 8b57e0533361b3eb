"""InitProducerId (key 22): a producer id and epoch for an idempotent or transactional producer.

v2 flexible; v3 the producer's own id and epoch, to have the epoch raised (KIP-360). Version 6 (two-phase commit,
KIP-939) is unstable in Kafka 4.3 and not declared.
"""

from typing import Annotated

from kafscale.protocol.schema import Message, int16, int32, int64, string


class InitProducerIdRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    transactional_id: Annotated[str | None, string("0+", nullable="0+")] = ""
    transaction_timeout_ms: Annotated[int, int32("0+")] = 0
    producer_id: Annotated[int, int64("3+")] = -1
    producer_epoch: Annotated[int, int16("3+")] = -1


class InitProducerIdResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    producer_id: Annotated[int, int64("0+")] = -1
    producer_epoch: Annotated[int, int16("0+")] = 0
