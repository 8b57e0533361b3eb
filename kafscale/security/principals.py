"""Principals: who a client is, as rules and logs name it (Kafka's `User:name`). Pure."""

from __future__ import annotations


def principal_of(name: str) -> str:
    """The principal of a user's name."""
    return f"User:{name}"
