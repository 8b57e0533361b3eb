"""Goal: no text that a client or a program passes to the log can forge, split, lengthen or break a line."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale import logs
from kafscale.config import Settings

HOSTILE = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(
    [
        "a\nb",
        "\x1b[2J",
        "\r\n",
        "\x7f\x85\x9b31m",
        "\u2028x\u2029",
        "\u202eevil",
        '"},"level":"x',
        "\ud800",
        "\0",
        "",
        " x ",
    ]
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    logging.captureWarnings(False)
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def record(message: object, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("t").makeRecord("t", logging.INFO, "f", 1, message, args, None, extra=dict(extra))
    made.created = 0.0015
    return made


@settings(max_examples=300)
@given(HOSTILE, HOSTILE, st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE | st.binary(max_size=20))
def test_any_text_makes_one_printable_line(message: str, client_id: str, value: object) -> None:
    """Goal: whatever is passed, JSON is one valid printable object and text one printable line."""
    event = record("%s from", message, client_id=client_id, value=value)
    line = logs.JsonFormatter("worker", 3).format(event)
    assert line.isprintable()
    decoded = orjson.loads(line)
    assert decoded["worker"] == 3 and decoded["level"] == "info"
    if not any("\ud800" <= c <= "\udfff" for c in client_id):
        assert decoded["client_id"] == client_id
    assert logs.TextFormatter("worker", 3).format(event).isprintable()


def test_fields_are_bounded() -> None:
    """Goal: a 64 KiB client.id and ten thousand fields leave a short line."""
    event = record("x" * 100_000, client_id="y" * 65536, raw=b"\x00" * 100_000, **{f"f{n}": n for n in range(10_000)})
    for formatter in (logs.JsonFormatter("worker", 0), logs.TextFormatter("worker", 0)):
        line = formatter.format(event)
        assert len(line) < 6000
        assert "(65536 characters)" in line


def test_an_extra_cannot_replace_a_field() -> None:
    """Goal: extras named like our own fields are kept beside them."""
    decoded = orjson.loads(logs.JsonFormatter("supervisor", None).format(record("m", level="fatal", ts=1, worker=9)))
    assert decoded["level"] == "info" and decoded["level_"] == "fatal"
    assert decoded["ts"] == "1970-01-01T00:00:00.001Z" and decoded["ts_"] == 1
    assert decoded["role"] == "supervisor" and decoded["worker_"] == 9


def test_a_stack_stays_on_the_line() -> None:
    """Goal: an exception whose text has newlines gives one line with its stack, in both forms."""
    try:
        raise ValueError("first\nforged: line")
    except ValueError as error:
        event = record("failed")
        event.exc_info = (ValueError, error, error.__traceback__)
    decoded = orjson.loads(logs.JsonFormatter("worker", 1).format(event))
    assert decoded["error"] == "first\nforged: line" and "test_a_stack_stays" in decoded["stack"]
    text = logs.TextFormatter("worker", 1).format(event)
    assert text.isprintable() and 'error="first\\nforged: line"' in text and "test_a_stack_stays" in text


def test_what_cannot_be_formatted_is_still_logged() -> None:
    """Goal: a wrong format string or a failing __str__ loses no event and raises nothing."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    for formatter in (logs.JsonFormatter("worker", 0), logs.TextFormatter("worker", 0)):
        assert "%d of" in formatter.format(record("%d of", "x"))
        assert "<Broken>" in formatter.format(record("m", field=Broken()))


@pytest.mark.parametrize(
    ("chosen", "stream", "is_json"),
    [("auto", io.StringIO, True), ("auto", Terminal, False), ("json", Terminal, True), ("text", io.StringIO, False)],
)
def test_the_form_follows_settings_and_stream(chosen: Any, stream: Any, is_json: bool) -> None:
    """Goal: auto is text on a terminal and JSON elsewhere; a level below the set one is silent."""
    out = stream()
    logs.configure(Settings(log_format=chosen, log_level="warn"), "worker", worker=2, stream=out)
    logging.getLogger("some").info("not shown")
    logging.getLogger("some").warning("shown %d", 5, extra={"slot": 7})
    (line,) = out.getvalue().splitlines()
    if is_json:
        got = orjson.loads(line)
        assert (got["level"], got["logger"], got["msg"], got["worker"], got["slot"]) == (
            "warn",
            "some",
            "shown 5",
            2,
            7,
        )
    else:
        assert line.endswith("WARN  worker 2  shown 5 slot=7")


def test_a_reader_that_went_away_does_no_harm() -> None:
    """Goal: logging to a closed stream neither raises nor prints."""
    out = io.StringIO()
    logs.configure(Settings(), "supervisor", stream=out)
    out.close()
    logging.getLogger("some").error("nobody reads this")


class StillClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_repeated_events_are_held_back_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Goal: one line per interval and key; the next says how many were held back."""
    clock = StillClock()
    limited = logs.RateLimited(clock, 10.0)  # type: ignore[arg-type]
    log = logging.getLogger("limited")
    with caplog.at_level(logging.WARNING, "limited"):
        assert limited.log(log, logging.WARNING, "store slow", ms=5)
        assert not any(limited.log(log, logging.WARNING, "store slow") for _ in range(3))
        assert limited.log(log, logging.WARNING, "another")
        clock.now += 10.0
        assert limited.log(log, logging.WARNING, "store slow")
    assert [getattr(r, "held_back", 0) for r in caplog.records] == [0, 0, 3]


def test_rate_limits_are_bounded_in_memory() -> None:
    """Goal: a million different keys are not remembered."""
    clock = StillClock()
    limited = logs.RateLimited(clock, 10.0, keys_max=8)  # type: ignore[arg-type]
    assert all(limited.permit(n) == 0 for n in range(100))
    assert len(limited._seen) == 8 and limited.permit(99) is None and limited.permit(0) == 0


def test_libraries_say_nothing_of_their_requests() -> None:
    """Goal: at the level debug, too, no library writes down requests and what signs them."""
    stream = io.StringIO()
    logs.configure(Settings(log_level="debug", log_format="json"), "worker", worker=0, stream=stream)
    for name in ("botocore.auth", "botocore.endpoint", "aiobotocore.regions", "urllib3.connectionpool"):
        logging.getLogger(name).debug("Signature: AKIDSECRET")
    logging.getLogger("botocore.credentials").warning("expires soon")
    logging.getLogger("kafscale.storage").debug("ours")
    assert "AKIDSECRET" not in stream.getvalue()
    assert "expires soon" in stream.getvalue() and "ours" in stream.getvalue()
