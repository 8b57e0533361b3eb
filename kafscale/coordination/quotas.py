"""Client quotas: what is set for whom, which of it counts for a client, and what an administrator may ask.

A quota is set for a user, a client id, or both, each by name or for all that have none of their own (the default). For
each kind of quota the closest one counts, in the order of Kafka's ClientQuotaManager; it says also who shares it: a
quota of users is shared by all clients of a user, one of users and client ids is each pair's own. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

USER: Final = "user"
CLIENT_ID: Final = "client-id"
IP: Final = "ip"
MAX_QUOTAS: Final = 10_000
MAX_NAME_CHARS: Final = 1024

PRODUCE_RATE: Final = "producer_byte_rate"
FETCH_RATE: Final = "consumer_byte_rate"
REQUEST_PERCENTAGE: Final = "request_percentage"
# What each says, and whether it must be a whole number, as in Kafka (QuotaConfig).
KEYS: Final[Mapping[str, bool]] = MappingProxyType({PRODUCE_RATE: True, FETCH_RATE: True, REQUEST_PERCENTAGE: False})
# Kafka's others, so that the answer can say what there is instead.
OTHER_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "controller_mutation_rate": "changes of topics are not limited here",
        "connection_creation_rate": "the setting connections_per_second_max limits connections",
    }
)
_LONG_MAX: Final = 2**63 - 1


class QuotaEntity(msgspec.Struct, frozen=True, array_like=True):
    """Whom a quota is for: (type, name) pairs in the order of their types; a name of None is the default's."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, **names: str | None) -> QuotaEntity:
        """`user` and `client_id`, each given or not."""
        return cls(tuple(sorted((kind.replace("_", "-"), name) for kind, name in names.items())))

    def __str__(self) -> str:
        return ", ".join(f"{kind} {'<default>' if name is None else name!r}" for kind, name in self.parts)


class ClientQuota(msgspec.Struct, frozen=True):
    """What is set for an entity, by key; never empty."""

    entity: QuotaEntity
    values: dict[str, float]


# What counts for a client


class Limit(NamedTuple):
    """A quota as it counts for one client: so much a second, shared by all that have the same `shared_by`."""

    rate: float
    shared_by: str


class Limits(NamedTuple):
    """What counts for a client; None where nothing limits it."""

    produce: Limit | None
    fetch: Limit | None
    request: Limit | None


NO_LIMITS: Final = Limits(None, None, None)


class QuotaRules:
    """All quotas of a catalogue, to be looked up in."""

    def __init__(self, quotas: Sequence[ClientQuota]) -> None:
        self._values = {quota.entity.parts: quota.values for quota in quotas}
        # By kind of quota, so that what nobody limits costs nothing.
        self._keys = {key for quota in quotas for key in quota.values}

    @property
    def are_set(self) -> bool:
        return bool(self._values)

    def limits_of(self, user: str, client_id: str) -> Limits:
        """What counts for a client of this user and client id."""
        if not self._values:
            return NO_LIMITS
        return Limits(
            self._limit(PRODUCE_RATE, user, client_id),
            self._limit(FETCH_RATE, user, client_id),
            self._limit(REQUEST_PERCENTAGE, user, client_id),
        )

    def _limit(self, key: str, user: str, client_id: str) -> Limit | None:
        if key not in self._keys:
            return None
        for parts in _nearest_first(user, client_id):
            rate = self._values.get(parts, {}).get(key)
            if rate is not None:
                kinds = [kind for kind, _ in parts]
                whose = (user if USER in kinds else None, client_id if CLIENT_ID in kinds else None)
                return Limit(rate, repr((key, *whose)))
        return None


def _nearest_first(user: str, client_id: str) -> Iterable[tuple[tuple[str, str | None], ...]]:
    """Entities whose quotas may count, the one that does first (ClientQuotaManager)."""
    for user_name in (user, None):
        for client_name in (client_id, None):
            yield (CLIENT_ID, client_name), (USER, user_name)
        yield ((USER, user_name),)
    yield ((CLIENT_ID, client_id),)
    yield ((CLIENT_ID, None),)


# Changing them


def entity_complaint(parts: Sequence[tuple[str, str | None]]) -> str | None:
    """What is wrong with an entity that quotas are to be set for."""
    kinds = [kind for kind, _ in parts]
    if not kinds:
        return "Invalid empty client quota entity"
    if len(set(kinds)) != len(kinds):
        return "a type of entity is named twice"
    for kind, name in parts:
        if kind == IP:
            return "quotas of addresses are not kept here; see the settings connections_max_per_address and others"
        if kind not in (USER, CLIENT_ID):
            return f"there is no type of entity {kind[:100]!r}; there are user and client-id"
        if name is not None and len(name) > MAX_NAME_CHARS:
            return f"a name of {len(name)} characters; there may be {MAX_NAME_CHARS}"
    return None


def value_complaint(key: str, value: float) -> str | None:
    """What is wrong with a value that is to be set."""
    if key not in KEYS:
        instead = f": {OTHER_KEYS[key]}" if key in OTHER_KEYS else f"; there are {', '.join(KEYS)}"
        return f"Invalid configuration key {key[:100]}{instead}"
    if not value > 0 or math.isinf(value):
        return f"Quota {key} must be greater than 0, and {value} is not"
    if KEYS[key] and (value != math.floor(value) or value > _LONG_MAX):
        return f"{key} must be a whole number below 2^63, and {value} is not"
    return None


def altered(values: Mapping[str, float], changes: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """The values after these changes; None takes one away."""
    after = dict(values)
    for key, value in changes:
        if value is None:
            after.pop(key, None)
        else:
            after[key] = value
    return after


# Asking for them


class MatchType(IntEnum):
    """How a component of a filter names what it means."""

    EXACT = 0
    DEFAULT = 1
    SPECIFIED = 2


class Component(NamedTuple):
    """One component of a filter: the entities that have this type, named so."""

    kind: str
    match_type: int
    match: str | None


def filter_complaint(components: Sequence[Component]) -> str | None:
    """What is wrong with a filter, but for types that nobody knows (`unknown_type`)."""
    seen = set()
    for kind, match_type, match in components:
        if not kind:
            return "Invalid empty entity type."
        if kind in seen:
            return f"Entity type {kind} cannot appear more than once in the filter."
        seen.add(kind)
        if match_type == MatchType.EXACT:
            if match is None:
                return "Request specified MATCH_TYPE_EXACT, but set match string to null."
        elif match_type in (MatchType.DEFAULT, MatchType.SPECIFIED):
            if match is not None:
                return f"Request specified MATCH_TYPE_{MatchType(match_type).name}, but also specified a match string."
        else:
            return f"Unknown match type {match_type}"
    if IP in seen and len(seen) > 1:
        return "Invalid entity filter component combination: ip goes with nothing else."
    return None


def unknown_type(components: Iterable[Component]) -> str | None:
    """The first type that there are no entities of in any broker."""
    return next((kind for kind, _, _ in components if kind not in (USER, CLIENT_ID, IP)), None)


def matching(quotas: Iterable[ClientQuota], components: Sequence[Component], is_strict: bool) -> list[ClientQuota]:
    """The quotas of entities that have each of the types, named so; and no other type, if it is strict."""
    return [quota for quota in quotas if _matches(dict(quota.entity.parts), components, is_strict)]


def _matches(names: Mapping[str, str | None], components: Sequence[Component], is_strict: bool) -> bool:
    if is_strict and len(names) != len(components):
        return False
    for kind, match_type, match in components:
        if kind not in names:
            return False
        if match_type != MatchType.SPECIFIED and names[kind] != match:
            return False
    return True
