"""DeleteTopics (key 20): delete topics.

v4 flexible; v5 error messages; v6 topics by name or id (KIP-516), in `topics` instead of `topic_names`.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import ZERO_UUID, Message, array, int16, int32, string, uuid


class DeleteTopicState(Message, frozen=True, kw_only=True):
    name: Annotated[str | None, string("6+", nullable="6+")] = None
    topic_id: Annotated[bytes, uuid("6+")] = ZERO_UUID


class DeleteTopicsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[DeleteTopicState], array("6+")] = ()
    topic_names: Annotated[Sequence[str], array("0-5", of="string")] = ()
    timeout_ms: Annotated[int, int32("0+")] = 0


class DeletableTopicResult(Message, frozen=True, kw_only=True):
    name: Annotated[str | None, string("0+", nullable="6+")] = ""
    topic_id: Annotated[bytes, uuid("6+")] = ZERO_UUID
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("5+", nullable="5+")] = None


class DeleteTopicsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    responses: Annotated[Sequence[DeletableTopicResult], array("0+")] = ()
