"""Goal: what the caller must do, as an error's kind says it, is what the client is told to do by its code."""

from __future__ import annotations

import pytest

from kafscale import errors
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.metadata import MetadataResponse, MetadataResponsePartition, MetadataResponseTopic
from workers.errors import code_of, deserves_stack_trace, error_codes_in, top_level_failure


@pytest.mark.parametrize(
    ("error", "code", "is_alarming"),
    [
        (errors.Invalid(ErrorCode.INVALID_CONFIG, "no"), ErrorCode.INVALID_CONFIG, False),
        (errors.Retry(ErrorCode.REQUEST_TIMED_OUT, "later"), ErrorCode.REQUEST_TIMED_OUT, False),
        (errors.Fenced("gone"), ErrorCode.NOT_LEADER_OR_FOLLOWER, False),
        (errors.Corrupt("bits"), ErrorCode.CORRUPT_MESSAGE, True),
        (errors.ObjectMissing("key"), ErrorCode.KAFKA_STORAGE_ERROR, True),
        (errors.StoreUnavailable("slow"), ErrorCode.KAFKA_STORAGE_ERROR, False),
        (errors.StoreUnclear("who knows"), ErrorCode.KAFKA_STORAGE_ERROR, False),
        (errors.ProtocolError("bytes"), ErrorCode.INVALID_REQUEST, False),
        (KeyError("x"), ErrorCode.UNKNOWN_SERVER_ERROR, True),
        (errors.KafscaleError("of no kind"), ErrorCode.UNKNOWN_SERVER_ERROR, True),
    ],
)
def test_codes_follow_kinds(error: Exception, code: ErrorCode, is_alarming: bool) -> None:
    """Retriable kinds get retriable codes; defects and damage are for the log, and their details for it alone."""
    found, text = code_of(error)
    assert found is code
    assert text
    assert deserves_stack_trace(error) is is_alarming
    if is_alarming:
        assert str(error) not in text
    if isinstance(error, errors.Retry | errors.Fenced | errors.StoreUnavailable):
        assert found.retriable


def test_codes_are_found_wherever_they_are() -> None:
    """At the top, in topics and in partitions; 0 is no error."""
    partitions = [MetadataResponsePartition(error_code=5), MetadataResponsePartition()]
    topics = [MetadataResponseTopic(error_code=3, partitions=partitions), MetadataResponseTopic()]
    assert sorted(error_codes_in(MetadataResponse(error_code=29, topics=topics))) == [3, 5, 29]
    assert not list(error_codes_in(MetadataResponse()))


def test_answers_that_can_say_an_error_at_the_top() -> None:
    """With a text where the answer has room for one; none where it has no field at all."""
    for key in ApiKey:
        response = APIS[key].response
        failed = top_level_failure(response)
        assert (failed is not None) == ("error_code" in response.__struct_fields__)
        if failed is not None:
            answer = failed(None, 42, "why")
            assert 42 in error_codes_in(answer)
            assert getattr(answer, "error_message", "why") == "why"
