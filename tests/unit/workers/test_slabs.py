"""Goal: slab memory is never handed out while anyone can see it, is handed out again as soon as nobody can, and stays
within its bound.
"""

from __future__ import annotations

import ctypes
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.slabs import PAGE_BYTES, SlabPool

KIB = 1024


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 3 * 64 * KIB), st.integers(0, 9000)),
            st.tuples(st.just("slice"), st.integers(0, 50)),
            st.tuples(st.just("drop"), st.integers(0, 50)),
        ),
        max_size=120,
    )
)
def test_no_two_live_regions_overlap(steps: list[tuple[str, int] | tuple[str, int, int]]) -> None:
    """Whatever is taken, sliced and dropped, a region's bytes stay what its holder wrote, the bound holds, and the byte
    that is to lie at the beginning of a page does."""
    pool = SlabPool(64 * KIB, 512 * KIB)
    held: list[tuple[memoryview, int]] = []
    for number, (step, value, *lead) in enumerate(steps):
        if step == "take":
            region = pool.take(value, *lead)
            if region is not None:
                assert len(region) == value
                assert (address_of(region) + lead[0]) % PAGE_BYTES == 0
                region[:] = bytes((number % 251,)) * value
                held.append((region, number % 251))
            del region
        elif held and step == "slice":
            view, mark = held[value % len(held)]
            # The slice outlives the region it came from.
            held[value % len(held)] = (view[len(view) // 3 :], mark)
            del view
        elif held:
            held.pop(value % len(held))
        assert pool.allocated_bytes <= pool.max_bytes
        for view, mark in held:
            assert view.tobytes() == bytes((mark,)) * len(view)
        view = None


def address_of(region: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def test_memory_is_recycled_oldest_first() -> None:
    """With everything let go, frame after frame goes through the same slabs."""
    pool = SlabPool(64 * KIB, 256 * KIB)
    kept = [pool.take(60 * KIB) for _ in range(4)]
    assert pool.allocated_bytes == 256 * KIB
    assert pool.take(60 * KIB) is None
    backing = [_backing(region) for region in kept]
    kept[2] = None
    assert _backing(pool.take(60 * KIB)) == backing[2]
    # The slab in hand is now backing[2]; of the rest the oldest that is free comes next.
    kept[3] = kept[1] = None
    assert _backing(pool.take(60 * KIB)) == backing[1]
    assert pool.allocated_bytes == 256 * KIB


def _backing(region: memoryview | None) -> int:
    """Which memory a region lies in; the number, since a reference would count as a holder."""
    assert region is not None
    return id(region.obj)


def test_a_view_of_a_view_keeps_the_slab() -> None:
    """A cache that keeps a slice of a slice is as good a holder as any; so is a bytes-like cast."""
    pool = SlabPool(64 * KIB, 64 * KIB)
    region = pool.take(40 * KIB)
    assert region is not None
    piece = region[10:1000][5:50].cast("b")
    del region
    assert pool.take(60 * KIB) is None
    del piece
    assert pool.take(60 * KIB) is not None


def test_eviction_makes_room_and_its_end_means_none() -> None:
    """Over the bound the cache is asked for its oldest, as long as it has something; then nothing is handed out."""
    cache: list[memoryview] = []
    asked: list[int] = []

    def evict(byte_count: int) -> int:
        asked.append(byte_count)
        return len(cache.pop(0)) if cache else 0

    pool = SlabPool(64 * KIB, 128 * KIB, evict)
    for _ in range(6):
        region = pool.take(20 * KIB)
        assert region is not None
        cache.append(region)
    del region
    assert not asked
    assert pool.take(30 * KIB) is not None
    assert len(cache) == 3, "all regions of the oldest slab had to go, and no others"
    held = pool.take(20 * KIB), cache[:]
    cache.clear()
    assert pool.take(60 * KIB) is None
    del held


def test_frames_larger_than_a_slab_share_the_bound() -> None:
    """A large frame gets memory of its own, within the bound; idle memory of either kind makes way for the other."""
    pool = SlabPool(64 * KIB, 512 * KIB)
    large = pool.take(300 * KIB)
    assert large is not None and len(large) == 300 * KIB
    assert pool.take(300 * KIB) is None
    small = [pool.take(64 * KIB) for _ in range(10)]
    assert sum(region is not None for region in small) == 3
    del large
    small = [*small, *[pool.take(64 * KIB) for _ in range(10)]]
    assert sum(region is not None for region in small) == 8
    small.clear()
    assert pool.take(512 * KIB) is not None
    assert pool.take(512 * KIB + 1) is None
    assert pool.allocated_bytes <= 512 * KIB


def test_large_memory_is_used_again() -> None:
    """The next frame of about that size allocates nothing."""
    pool = SlabPool(64 * KIB, 2048 * KIB)
    first = pool.take(700 * KIB)
    assert first is not None
    backing = _backing(first)
    del first
    second = pool.take(690 * KIB)
    assert _backing(second) == backing
    tiny_for_it = pool.take(65 * KIB)
    assert _backing(tiny_for_it) != backing


def test_slabs_need_no_garbage_collector() -> None:
    """What is let go is free at once: no cycle keeps it."""
    gc.disable()
    try:
        pool = SlabPool(64 * KIB, 64 * KIB)
        for _ in range(50):
            region = pool.take(64 * KIB)
            assert region is not None
            del region
    finally:
        gc.enable()


def test_impossible_sizes_are_refused() -> None:
    """A pool smaller than its slabs is a mistake of the caller's."""
    with pytest.raises(ValueError, match="slabs"):
        SlabPool(2, 1)
