"""InitProducerId (key 22), v0-5: an id for an idempotent producer, from blocks claimed in the bucket.

A producer that already has an id and asks to have its epoch raised gets a new id with epoch 0, as in Kafka, where
only a transactional id ties a producer to its epoch. Left out: transactions. A request with a transactional id is
refused with UNSUPPORTED_VERSION, which clients treat as final; an empty one with INVALID_REQUEST, as in Kafka.
"""

from __future__ import annotations

from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from kafscale.security.needs import WRITE_TRANSACTION
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: InitProducerIdRequest) -> InitProducerIdResponse:
    if message.transactional_id is not None:
        if not request.access.allows(WRITE_TRANSACTION, message.transactional_id):
            raise Invalid(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "not authorized")
        if not message.transactional_id:
            raise Invalid(ErrorCode.INVALID_REQUEST, "a transactional id can't be empty")
        raise Invalid(ErrorCode.UNSUPPORTED_VERSION, "transactions are not supported yet")
    if not request.access.writes_somewhere():
        raise Invalid(ErrorCode.CLUSTER_AUTHORIZATION_FAILED, "not authorized")
    return InitProducerIdResponse(producer_id=await context.producer_ids.next(), producer_epoch=0)


def failed(message: InitProducerIdRequest, code: int, text: str) -> InitProducerIdResponse:
    return InitProducerIdResponse(error_code=code, producer_epoch=-1)
