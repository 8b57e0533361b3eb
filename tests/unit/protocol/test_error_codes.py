"""Goal: codes, names and what may be retried are Kafka's."""

from __future__ import annotations

from kio.schema.errors import ErrorCode as KioErrorCode

from kafscale.protocol.error_codes import ErrorCode


def test_the_table_is_kafkas() -> None:
    """Every code that kio knows has the same name and the same answer to "may I retry?"."""
    ours = {code.name.lower(): (int(code), code.retriable) for code in ErrorCode}
    assert {code.name: (int(code), code.retriable) for code in KioErrorCode}.items() <= ours.items()


def test_no_code_is_missing() -> None:
    """From UNKNOWN_SERVER_ERROR on there is a name for every number."""
    assert [int(code) for code in ErrorCode] == list(range(-1, len(ErrorCode) - 1))
