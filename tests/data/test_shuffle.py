"""Random orders by arithmetic."""

from collections import Counter
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.seed import derive_seed
from lisan.data.shuffle import permute


def order(size: int, key: int) -> np.ndarray:
    return permute(np.arange(size), np.full(size, size), np.full(size, key))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_every_place_is_taken_once(size: int, key: int) -> None:
    assert sorted(order(size, key).tolist()) == list(range(size))


def test_places_of_several_sequences_are_looked_up_at_once() -> None:
    sizes, keys = (3, 1000, 1, 77), (5, 6, 7, 5)
    together = permute(
        np.concatenate([np.arange(size) for size in sizes]), np.repeat(sizes, sizes), np.repeat(keys, sizes)
    )
    assert np.array_equal(together, np.concatenate([order(size, key) for size, key in zip(sizes, keys, strict=True)]))


def test_a_place_of_a_huge_sequence_stays_inside() -> None:
    size = 10**12 + 39
    found = permute(np.arange(size - 500, size), np.full(500, size), np.full(500, 1))
    assert len(set(found.tolist())) == 500
    assert 0 <= found.min() < found.max() < size


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_things_is_as_likely_as_any_other(size: int) -> None:
    num = 40_000
    keys = np.repeat([derive_seed(0, index) for index in range(num)], size)
    orders = permute(np.tile(np.arange(size), num), np.full(size * num, size), keys).reshape(num, size)
    seen = Counter(map(tuple, orders.tolist()))
    expected = num / factorial(size)
    assert len(seen) == factorial(size)
    # Five standard errors: one seed in a million is beyond.
    assert max(abs(count - expected) for count in seen.values()) < 5 * expected**0.5


def test_neighbours_and_keys_know_nothing_of_each_other() -> None:
    first, second = order(20_000, 1), order(20_000, 2)
    straight = np.arange(20_000)
    for one, other in ((straight, first), (first[1:], first[:-1]), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 20_000**0.5
