"""Goal: the number of objects in a bucket follows what is kept, not how often it was flushed, and the requests beside
the flushes cost little. (`make day` does the same for a whole day.)"""

from __future__ import annotations

from tests.bench import day


def test_objects_do_not_follow_flushes() -> None:
    """Goal: after twenty minutes of four flushes a second there are as few objects as after ten, and nine in ten
    requests are flushes."""
    first, *_, last = day.run(1 / 3, partitions=20, every_ms=250, look_every_s=600)
    assert last.flushes == 2 * first.flushes == 4800
    assert sum(last.objects.values()) <= 1100
    assert sum(last.objects.values()) - sum(first.objects.values()) <= 500
    assert last.dollars() <= 1.1 * last.flushes * day.PRICES["put"]
