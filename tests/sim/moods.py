"""What a seed has in store: how many brokers, which settings, and which kinds of trouble how often."""

from __future__ import annotations

import random

import msgspec

from kafscale.config import Settings
from tests.sim.store import StoreFaults

NEVER_MS = 10**9


class Mood(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of trouble a seed has: how often, of which kinds (weights, 1 where not named), how replaced workers and
    their logs are dealt with, and how long producers wait between batches."""

    name: str
    share: int
    brokers: tuple[int, ...] = (1,)
    pace_seconds: float
    weights: dict[str, int]
    # The weight of kinds that are not named.
    usual_weight: int = 1
    kills_hung: float = 0.5
    sweep_seconds: tuple[float | None, ...] = (None, 0.5, 3.0)
    producer_pace_seconds: tuple[float, ...] = (0.1, 0.5, 1.0)
    # The share of producers that are.
    idempotent: float = 0.8
    # What a request to the store usually takes, in seconds.
    store_seconds: tuple[float, ...] = (0.002, 0.01, 0.05)
    sweep_list_seconds: float = 0.0
    # The share of seeds in which an administrator deletes records. What is deleted is no longer checked.
    deletes: float = 0.3


MOODS = (
    Mood(
        # One broker, and a bit of everything, with time in between to recover.
        name="alone",
        share=6,
        pace_seconds=2.5,
        weights={"crash": 4, "pause": 3, "hang": 3, "lost answers": 3, "outage": 2, "cut off": 2},
    ),
    Mood(
        # All at once.
        name="storm",
        share=6,
        pace_seconds=0.7,
        weights={"crash": 3, "lost answers": 3, "outage": 2, "broken connections": 2},
        sweep_seconds=(None, 3.0),
    ),
    Mood(
        # Workers that come back after they were replaced, to logs that may have been swept.
        name="undead",
        share=6,
        pace_seconds=3.5,
        weights={"hang": 2, "outlived hang": 8, "broken connections": 4, "crash of all": 0, "supervisor crash": 0},
        kills_hung=0.0,
        sweep_seconds=(0.5, 0.5, None),
        producer_pace_seconds=(3.0, 6.0),
        idempotent=0.4,
    ),
    Mood(
        # Workers that die young, while a slow store is swept all the time.
        name="tidy",
        share=3,
        brokers=(1, 2),
        pace_seconds=0.8,
        usual_weight=0,
        weights={"short life": 6, "crash": 4, "supervisor crash": 1, "outage": 1, "broker leaves": 2},
        sweep_seconds=(0.1,),
        store_seconds=(0.005, 0.03),
        sweep_list_seconds=1.5,
        deletes=0.1,
    ),
    Mood(
        # Several brokers, and a bit of everything.
        name="cluster",
        share=6,
        brokers=(2, 2, 3),
        pace_seconds=2.0,
        weights={"broker killed": 3, "broker paused": 2, "broker leaves": 3, "crash": 2},
    ),
    Mood(
        # Brokers come and go, and workers die meanwhile: slots move, and move again before they have arrived.
        name="moving",
        share=8,
        brokers=(2, 3, 3),
        pace_seconds=1.2,
        usual_weight=0,
        weights={
            "broker leaves": 6,
            "broker killed": 3,
            "rolling restart": 2,
            "crash": 4,
            "pause": 1,
            "hang": 1,
            "supervisor crash": 1,
            "lost answers": 1,
            "etcd events": 1,
        },
        sweep_seconds=(0.5, 3.0),
    ),
    Mood(
        # Planned moves upon planned moves, over a store that is slow: what is given away has not arrived yet.
        name="hasty",
        share=6,
        brokers=(2, 3, 3, 3),
        pace_seconds=1.5,
        usual_weight=0,
        weights={
            "leaves in a row": 8,
            "slow store": 6,
            "broker leaves": 2,
            "rolling restart": 1,
            "crash": 2,
            "supervisor crash": 1,
            "broker killed": 1,
            "etcd events": 1,
            "lost answers": 1,
        },
        store_seconds=(0.02, 0.05, 0.1),
        sweep_seconds=(0.5, 3.0),
        producer_pace_seconds=(0.1, 0.3),
    ),
    Mood(
        # Brokers that are alive and cut off, or asleep: replaced without knowing it.
        name="apart",
        share=6,
        brokers=(2, 3),
        pace_seconds=2.5,
        usual_weight=0,
        weights={
            "broker paused": 3,
            "supervisor paused": 2,
            "broker off store": 2,
            "broker off etcd": 3,
            "broker off both": 2,
            "clock jump": 2,
            "clock strobe": 2,
            "hang": 1,
            "broken connections": 1,
        },
        kills_hung=0.2,
        sweep_seconds=(0.5, 3.0),
        producer_pace_seconds=(0.5, 3.0),
        idempotent=0.6,
        deletes=0.0,
    ),
    Mood(
        # Everything that etcd can do.
        name="forgetful",
        share=4,
        brokers=(2, 3),
        pace_seconds=2.0,
        usual_weight=0,
        weights={
            "etcd outage": 2,
            "etcd lost": 2,
            "etcd restored": 3,
            "etcd compacted": 1,
            "etcd answers lost": 2,
            "etcd events": 2,
            "broker killed": 2,
            "broker leaves": 1,
            "broker off etcd": 1,
            "crash": 2,
            "supervisor crash": 2,
        },
    ),
)


def mood_of_seed(seed: int) -> Mood:
    """Drawn apart from all else, so that it can be told without running the seed."""
    return random.Random(f"{seed}/mood").choices(MOODS, [mood.share for mood in MOODS])[0]


def store_faults(chance: random.Random, mood: Mood) -> StoreFaults:
    lost = chance.choice((0.0, 0.01, 0.03))
    return StoreFaults(
        delay_usual=chance.choice(mood.store_seconds),
        sweep_list_seconds=mood.sweep_list_seconds,
        slow=chance.choice((0.0, 0.02, 0.05)),
        answer_lost_applied=lost,
        answer_lost_not_applied=lost,
        answer_lost_applied_later=lost / 2,
        own_put_refused=lost / 2,
        unavailable=lost,
        delete_answer_lost=lost,
    )


def settings_of(chance: random.Random, mood: Mood) -> Settings:
    sweep_seconds = chance.choice(mood.sweep_seconds)
    return Settings(
        workers=chance.randint(1, 3),
        slots=chance.choice((4, 8)),
        offsets_topic_partitions=chance.choice((1, 3)),
        flush_bytes=chance.choice((4096, 20_000, 1 << 20)),
        flush_interval_ms=chance.choice((None, None, 20, 100)),
        cache_bytes=8 << 20,
        checkpoint_interval_bytes=1 << 20,
        checkpoint_interval_objects=chance.choice((8, 20, 60)),
        checkpoint_interval_ms=chance.choice((500, 2000, 20_000)),
        # Without a grace period: what is deleted may never be missed.
        sweep_interval_ms=NEVER_MS if sweep_seconds is None else round(1000 * sweep_seconds),
        sweep_grace_ms=0,
        group_initial_rebalance_delay_ms=chance.choice((0, 500)),
        worker_hang_timeout_ms=chance.choice((1500, 3000, 5000)),
        etcd_lease_ttl_ms=chance.choice((2000, 3000)),
        drain_timeout_ms=chance.choice((4000, 10_000)),
        slot_release_timeout_ms=chance.choice((1000, 3000, 10_000)),
        auto_create_topics=False,
    )
