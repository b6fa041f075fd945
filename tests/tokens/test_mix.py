"""From weights to a row order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.errors import ConfigError
from lisan.tokens.mix import BLOCK_ROWS, MixConfig, _apportion, make_plan

SIZES = {"ar": 700, "en": 1300, "par": 50}
WEIGHTS = {"ar": 0.6, "en": 0.35, "par": 0.05}


def sources_of(ids: np.ndarray) -> Counter[str]:
    ends = np.cumsum(list(SIZES.values()))
    return Counter(list(SIZES)[index] for index in np.searchsorted(ends, ids, side="right"))


def test_every_block_holds_every_source_in_exact_proportion() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 5000)
    for block in range(5):
        assert sources_of(plan.rows(BLOCK_ROWS * block, BLOCK_ROWS * (block + 1))) == {"ar": 600, "en": 350, "par": 50}


def test_without_weights_sources_come_in_proportion_to_their_size() -> None:
    counts = sources_of(make_plan(SIZES, MixConfig(), 1000).rows(0, 1000))
    assert counts == {"ar": 342, "en": 634, "par": 24}


def test_a_source_without_weight_is_not_read() -> None:
    plan = make_plan(SIZES, MixConfig(weights={"en": 1.0}), 1000)
    assert sources_of(plan.rows(0, 1000)) == {"en": 1000}


@given(start=st.integers(0, 3000), size=st.integers(0, 1500))
@settings(max_examples=50, deadline=None)
def test_any_range_is_a_part_of_the_whole(start: int, size: int) -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS, seed=5), 5000)
    assert np.array_equal(plan.rows(start, start + size), plan.rows(0, 5000)[start : start + size])


def test_a_row_comes_again_only_after_all_others_of_its_source() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 10_000)
    rows = plan.rows(0, 10_000)
    for first, size in ((0, 700), (700, 1300), (2000, 50)):
        own = rows[(rows >= first) & (rows < first + size)]
        seen = Counter(own.tolist())
        assert max(seen.values()) - min(seen.get(row, 0) for row in range(first, first + size)) <= 2
        epochs = len(own) // size
        assert all(seen.get(row, 0) >= epochs - 1 for row in range(first, first + size))


def test_seeds_give_other_orders_of_the_same_rows() -> None:
    one, other = (make_plan({"only": 1000}, MixConfig(seed=seed), 1000).rows(0, 1000) for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert sorted(one) == sorted(other)


def test_a_change_of_one_source_moves_no_row_of_another() -> None:
    before = make_plan(SIZES, MixConfig(weights=WEIGHTS), 1000)
    after = make_plan({**SIZES, "par": 80}, MixConfig(weights=WEIGHTS), 1000)
    for first, stop in ((0, 700), (700, 2000)):
        own = [rows[(rows >= first) & (rows < stop)] for rows in (before.rows(0, 1000), after.rows(0, 1000))]
        assert sorted(own[0]) == sorted(own[1])


def test_epochs_say_how_often_a_source_was_read() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 5000)
    assert plan.epochs(1000) == pytest.approx({"ar": 600 / 700, "en": 350 / 1300, "par": 1.0})


def test_the_smallest_weight_gets_a_row() -> None:
    assert sources_of(make_plan(SIZES, MixConfig(weights={"ar": 1.0, "par": 1e-9}), 1000).rows(0, 1001))["par"] >= 1


@given(shares=st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_rows_are_apportioned_whole_and_fairly(shares: list[float]) -> None:
    exact = np.array(shares) / sum(shares)
    counts = _apportion(exact, BLOCK_ROWS)
    assert sum(counts) == pytest.approx(BLOCK_ROWS, abs=len(shares))
    assert all(abs(count - share * BLOCK_ROWS) <= 1 for count, share in zip(counts, exact, strict=True))


@pytest.mark.parametrize(
    ("weights", "max_epochs", "said"),
    [
        ({"fr": 1.0}, 20, r"mix\.weights names fr, but the tokens hold ar, en, par"),
        ({"par": 1.0}, 20, r"would read par 100\.0 times, mix\.max_epochs is 20; lower mix\.weights\.par"),
        ({"ar": 0.0}, 20, "sum to nothing"),
        ({"ar": -0.5, "en": 1.0}, 20, r"must be >= 0, got \{'ar': -0\.5\}"),
    ],
)
def test_an_impossible_mix_is_refused(weights: dict[str, float], max_epochs: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(SIZES, MixConfig(weights=weights, max_epochs=max_epochs), 5000)


def test_a_weight_on_a_source_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix\.weights\.empty is above 0 but the source has no rows"):
        make_plan({"ar": 10, "empty": 0}, MixConfig(weights={"ar": 1, "empty": 1}), 10)
