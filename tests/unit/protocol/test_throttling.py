"""Goal: an answer that was encoded without a throttle time and gets one is byte for byte what the codec would write."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.protocol.api import APIS, ApiKey, encode_response
from kafscale.protocol.produce import encode_produce_response
from kafscale.protocol.schema import fields
from kafscale.protocol.throttling import throttle_place, throttled
from tests.unit.protocol.declared import messages

# Their field lies behind others whose length varies.
UNTOLD = {ApiKey.API_VERSIONS}


def has_throttle_time(key: int, version: int) -> bool:
    return any(f.name == "throttle_time_ms" and version in f.wire.versions for f in fields(APIS[key].response))


CASES = [(key, version) for key, api in APIS.items() for version in range(api.min_version, api.max_version + 1)]


@pytest.mark.parametrize(("key", "version"), CASES, ids=lambda value: str(value))
def test_every_answer_says_it(key: int, version: int) -> None:
    """All APIs, all versions; cut into buffers anywhere but in the field itself."""
    if key in UNTOLD or not has_throttle_time(key, version):
        assert throttle_place(key, version) is None
        return

    @settings(max_examples=8)
    @given(messages(APIS[key].response, version, tame=True), st.integers(1, 2**31 - 1), st.integers(0, 40))
    def check(response: Any, throttle_ms: int, cut: int) -> None:
        if key == ApiKey.PRODUCE and version >= 10:
            response = msgspec.structs.replace(response, node_endpoints=())  # see below
        told, untold = (
            b"".join(encode_response(APIS[key], version, 77, msgspec.structs.replace(response, throttle_time_ms=ms)))
            for ms in (throttle_ms, 0)
        )
        place = throttle_place(key, version)
        assert place is not None
        begin = place if place >= 0 else place + len(untold)
        cuts = [0, cut, len(untold)] if not begin < cut < begin + 4 and cut < len(untold) else [0, len(untold)]
        buffers = [untold[first:last] for first, last in itertools.pairwise(cuts)]
        found = throttled(key, version, buffers, throttle_ms)
        assert b"".join(found) == told
        assert b"".join(buffers) == untold

    check()


@pytest.mark.parametrize("version", range(10, 14))
def test_tags_are_left_alone(version: int) -> None:
    """A failed Produce that names leaders has their addresses where the field would be: it stays as it is."""
    topic: Any = bytes(16) if version >= 13 else "t"
    results: Any = [(topic, 0, 6, -1, -1, -1, None, (1, 2))]
    for rack in (None, "", "a"):
        answer = encode_produce_response(version, 5, results, nodes=[(1, "host", 9092, rack)])
        whole = answer if isinstance(answer, list) else [answer]
        assert throttled(ApiKey.PRODUCE, version, whole, 1234) == whole


def test_more_than_the_field_holds() -> None:
    plain = encode_produce_response(3, 5, [("t", 0, 0, 1, -1, 0, None, None)])
    (told,) = throttled(ApiKey.PRODUCE, 3, [plain] if not isinstance(plain, list) else plain, 2**40)
    assert bytes(told)[-4:] == b"\x7f\xff\xff\xff"
