"""Real data, end to end: the flights of New York in 2013 through three clients and groups that change half-way."""

from __future__ import annotations

import json

import pytest

from loadtest import flights_aiokafka, flights_confluent, flights_kafka_python
from loadtest.flights import FLIGHTS, Flight, Processed, differences, load

PARTITIONS = 12


@pytest.fixture(scope="module")
def flights() -> list[Flight]:
    return load()


def test_the_data_is_what_it_should_be(flights: list[Flight]) -> None:
    """All flights are there, as JSON, and no two have the same bytes, so that bytes tell records apart."""
    assert len(flights) == FLIGHTS
    assert len({flight.value for flight in flights}) == FLIGHTS
    for flight in flights[::97]:
        parsed = json.loads(flight.value)
        assert parsed["year"] == 2013
        assert parsed["tailnum"] == (flight.key.decode() if flight.key else None)


def test_the_check_can_fail() -> None:
    """A lost, a repeated, a swapped and a changed record are each found."""
    sent = [Flight(b"a", b"1"), Flight(b"a", b"2"), Flight(b"b", b"3")]
    right = [Processed(0, 0, 0, b"a", b"1"), Processed(0, 0, 1, b"a", b"2"), Processed(0, 1, 0, b"b", b"3")]
    assert differences(sent, right) == []
    assert differences(sent, right[:2])
    assert differences(sent, [*right, right[-1]])
    assert differences(sent, [right[1], right[0], right[2]])
    assert differences(sent, [*right[:2], Processed(0, 1, 0, b"b", b"4")])
    assert differences(sent, [Processed(0, 0, 0, b"a", b"2"), Processed(0, 0, 1, b"a", b"1"), right[2]])


def test_all_flights_with_confluent_kafka(bootstrap: str, topic: str, group: str, flights: list[Flight]) -> None:
    """Every flight once, in order per key, same bytes, by a group of three of which one leaves half-way."""
    flights_confluent.create_topic(bootstrap, topic, PARTITIONS)
    flights_confluent.produce(bootstrap, topic, flights)
    processed = flights_confluent.consume(bootstrap, topic, group, len(flights))
    assert differences(flights, processed) == []
    assert {record.member for record in processed} == {0, 1, 2}


@pytest.mark.parametrize("client", [flights_aiokafka, flights_kafka_python], ids=["aiokafka", "kafka-python"])
def test_a_tenth_with_the_python_clients(
    bootstrap: str, topic: str, group: str, flights: list[Flight], client: object
) -> None:
    """The same with a tenth of the flights through the clients written in Python."""
    assert client in (flights_aiokafka, flights_kafka_python)
    some = flights[: FLIGHTS // 10]
    flights_confluent.create_topic(bootstrap, topic, PARTITIONS)
    client.produce(bootstrap, topic, some)  # type: ignore[attr-defined]
    processed = client.consume(bootstrap, topic, group, len(some))  # type: ignore[attr-defined]
    assert differences(some, processed) == []
    assert {record.member for record in processed} == {0, 1, 2}
