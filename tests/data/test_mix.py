"""From weights to a row order."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.config import compose
from lisan.core.errors import ConfigError
from lisan.data.config import MixConfig, MixStageConfig
from lisan.data.mix import CYCLE_ROWS, Plan, _apportion, make_plan, plan_shares
from lisan.train.config import TrainConfig

CONF = Path(__file__).parents[2] / "conf"
SIZES = {"ar": 700, "en": 1300, "par": 50}
WEIGHTS = {"ar": 0.6, "en": 0.35, "par": 0.05}


def sources_of(ids: np.ndarray) -> Counter[str]:
    ends = np.cumsum(list(SIZES.values()))
    return Counter(list(SIZES)[index] for index in np.searchsorted(ends, ids, side="right"))


def test_every_block_holds_every_source_in_exact_proportion() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 5000, 1)
    for block in range(5):
        assert sources_of(plan.rows(CYCLE_ROWS * block, CYCLE_ROWS * (block + 1))) == {"ar": 600, "en": 350, "par": 50}


def test_without_weights_sources_come_in_proportion_to_their_size() -> None:
    counts = sources_of(make_plan(SIZES, MixConfig(), 1000, 1).rows(0, 1000))
    assert counts == {"ar": 342, "en": 634, "par": 24}


def test_a_source_without_weight_is_not_read() -> None:
    plan = make_plan(SIZES, MixConfig(weights={"en": 1.0}), 1000, 1)
    assert sources_of(plan.rows(0, 1000)) == {"en": 1000}


@given(start=st.integers(0, 3000), size=st.integers(0, 1500))
@settings(max_examples=50, deadline=None)
def test_any_range_is_a_part_of_the_whole(start: int, size: int) -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS, seed=5), 5000, 1)
    assert np.array_equal(plan.rows(start, start + size), plan.rows(0, 5000)[start : start + size])


def test_a_row_comes_again_only_after_all_others_of_its_source() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 10_000, 1)
    rows = plan.rows(0, 10_000)
    for first, size in ((0, 700), (700, 1300), (2000, 50)):
        own = rows[(rows >= first) & (rows < first + size)]
        seen = Counter(own.tolist())
        assert max(seen.values()) - min(seen.get(row, 0) for row in range(first, first + size)) <= 2
        epochs = len(own) // size
        assert all(seen.get(row, 0) >= epochs - 1 for row in range(first, first + size))


def test_seeds_give_other_orders_of_the_same_rows() -> None:
    one, other = (make_plan({"only": 1000}, MixConfig(seed=seed), 1000, 1).rows(0, 1000) for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert sorted(one) == sorted(other)


def test_a_change_of_one_source_moves_no_row_of_another() -> None:
    before = make_plan(SIZES, MixConfig(weights=WEIGHTS), 1000, 1)
    after = make_plan({**SIZES, "par": 80}, MixConfig(weights=WEIGHTS), 1000, 1)
    for first, stop in ((0, 700), (700, 2000)):
        own = [rows[(rows >= first) & (rows < stop)] for rows in (before.rows(0, 1000), after.rows(0, 1000))]
        assert sorted(own[0]) == sorted(own[1])


def test_epochs_say_how_often_a_source_was_read() -> None:
    plan = make_plan(SIZES, MixConfig(weights=WEIGHTS), 5000, 1)
    assert plan.epochs(1000) == pytest.approx({"ar": 600 / 700, "en": 350 / 1300, "par": 1.0})


def test_the_smallest_weight_gets_a_row() -> None:
    plan = make_plan(SIZES, MixConfig(weights={"ar": 1.0, "par": 1e-9}), 1000, 1)
    assert sources_of(plan.rows(0, CYCLE_ROWS)) == {"ar": 999, "par": 1}


@given(cuts=st.sets(st.integers(1, CYCLE_ROWS - 1), max_size=40), scale=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_weights_down_to_a_tenth_of_a_percent_are_met_exactly(cuts: set[int], scale: float) -> None:
    wanted = np.diff([0, *sorted(cuts), CYCLE_ROWS]).tolist()
    weights = {f"s{index:02d}": scale * count for index, count in enumerate(wanted)}
    plan = make_plan(dict.fromkeys(weights, 77), MixConfig(weights=weights, max_epochs=1e9), 3 * CYCLE_ROWS, 1)
    for block in range(3):
        ids = plan.rows(CYCLE_ROWS * block, CYCLE_ROWS * (block + 1))
        assert np.bincount(ids // 77, minlength=len(wanted)).tolist() == wanted


@given(shares=st.lists(st.floats(1e-6, 10), min_size=1, max_size=200))
def test_a_block_has_its_size_whatever_the_weights(shares: list[float]) -> None:
    exact = np.array(shares) / sum(shares)
    counts = _apportion(exact, CYCLE_ROWS)
    assert sum(counts) == CYCLE_ROWS
    assert min(counts) >= 1
    if exact.min() >= 1 / CYCLE_ROWS:
        assert all(abs(count - share * CYCLE_ROWS) <= 1 for count, share in zip(counts, exact, strict=True))


STAGES = {
    "rising": MixStageConfig(from_step=37, weights={"ar": 0.8, "en": 0.2}),
    "anneal": MixStageConfig(from_step=90, weights={"par": 0.5, "ar": 0.5}),
}
STAGED = MixConfig(weights=WEIGHTS, stages=STAGES, max_epochs=100)


def staged(step_rows: int = 33) -> Plan:
    return make_plan(SIZES, STAGED, 200, step_rows)


def test_a_stage_begins_at_its_step_with_its_weights() -> None:
    plan, rows = staged(), staged().rows(0, 33 * 200)
    assert np.array_equal(rows[: 33 * 37], make_plan(SIZES, MixConfig(weights=WEIGHTS), 200, 33).rows(0, 33 * 37))
    rising, anneal = 33 * 37, 33 * 90
    assert sources_of(rows[rising : rising + CYCLE_ROWS]) == {"ar": 800, "en": 200}
    assert sources_of(rows[rising:anneal]).keys() == {"ar", "en"}
    for start in range(anneal, anneal + 3000, CYCLE_ROWS):
        assert sources_of(rows[start : start + CYCLE_ROWS]) == {"ar": 500, "par": 500}
    assert {source: round(n * SIZES[source]) for source, n in plan.epochs(33 * 200).items()} == sources_of(rows)


def test_without_weights_the_first_stage_may_begin_at_once() -> None:
    config = MixConfig(stages={"all": MixStageConfig(from_step=0, weights={"en": 1.0})})
    plan = make_plan(SIZES, config, 40, 25)
    assert sources_of(plan.rows(0, 1000)) == {"en": 1000}
    assert plan.epochs(1000) == {"en": 1000 / 1300}
    assert [source for source in SIZES if config.reads(source)] == ["en"]


@given(
    starts=st.lists(st.integers(1, 150), min_size=1, max_size=4, unique=True),
    weights=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=5, max_size=5
    ),
    step_rows=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None)
def test_a_source_is_read_through_over_all_stages_before_a_row_comes_again(
    starts: list[int], weights: list[tuple[int, int, int]], step_rows: int
) -> None:
    named = [dict(zip(SIZES, map(float, w), strict=True)) for w in weights]
    stages = {f"s{i}": MixStageConfig(from_step=s, weights=named[i + 1]) for i, s in enumerate(sorted(starts))}
    config = MixConfig(weights=named[0], stages=stages, max_epochs=1e9)
    plan = make_plan(SIZES, config, 160, step_rows)
    rows = plan.rows(0, 160 * step_rows)
    first = 0
    for source, size in SIZES.items():
        own = rows[(rows >= first) & (rows < first + size)]
        for epoch in range(0, len(own), size):
            assert len(set(own[epoch : epoch + size].tolist())) == len(own[epoch : epoch + size])
        assert len(own) == dict(zip(SIZES, plan.rows_read(len(rows)), strict=True))[source]
        first += size


@given(start=st.integers(0, 5000), size=st.integers(0, 2500))
@settings(max_examples=50, deadline=None)
def test_any_range_over_stages_is_a_part_of_the_whole(start: int, size: int) -> None:
    plan = staged()
    assert np.array_equal(plan.rows(start, start + size), plan.rows(0, 8000)[start : start + size])


def test_a_later_stage_changes_nothing_before_it() -> None:
    one, other = (
        make_plan(
            SIZES, MixConfig(weights=WEIGHTS, stages={"s": MixStageConfig(from_step=s, weights={"en": 1})}), 99, 9
        )
        for s in (50, 70)
    )
    assert np.array_equal(one.rows(0, 450), other.rows(0, 450))
    assert not np.array_equal(one.rows(0, 600), other.rows(0, 600))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"weights": {"fr": 1.0}}, r"mix\.weights names fr, but the tokens hold ar, en, par"),
        ({"weights": {"par": 1.0}}, r"would read par 100 times, mix\.max_epochs is 20; lower its weight"),
        ({"epoch_caps": {"en": 0.5}}, r"would read en 2\.4\d+ times, mix\.epoch_caps\.en is 0\.5; lower its weight"),
        ({"epoch_caps": {"fr": 2}}, r"mix\.epoch_caps names fr, but the tokens hold ar, en, par"),
        ({"epoch_caps": {"ar": 0}}, r"mix\.epoch_caps must be > 0, got \{'ar': 0\}"),
        ({"weights": {"ar": 0.0}}, r"mix\.weights sum to nothing"),
        ({"weights": {"ar": -0.5, "en": 1.0}}, r"mix\.weights must be >= 0, got \{'ar': -0\.5\}"),
        ({"weights": {"ar": float("nan")}}, r"mix\.weights must be >= 0, got \{'ar': nan\}"),
        ({"weights": {"ar": float("inf")}}, r"mix\.weights must be >= 0, got \{'ar': inf\}"),
        (
            {"stages": {"late": MixStageConfig(from_step=5000, weights={"ar": 1})}},
            r"mix\.stages\.late\.from_step is 5000 but the run ends after 5000 steps; lower it, raise loop\.num_steps",
        ),
        ({"stages": {"odd": MixStageConfig(from_step=9, weights={"fr": 1})}}, r"mix\.stages\.odd\.weights names fr"),
        ({"stages": {"odd": MixStageConfig(from_step=9, weights={})}}, r"mix\.stages\.odd\.weights is empty"),
        ({"stages": {"odd": MixStageConfig(from_step=9, weights={"ar": 0})}}, r"odd\.weights sum to nothing"),
        ({"stages": {"odd": MixStageConfig(from_step=9, weights={"ar": -1})}}, r"odd\.weights must be >= 0"),
        ({"stages": {"odd": MixStageConfig(from_step=-1, weights={"ar": 1})}}, r"odd\.from_step must be > -1, got -1"),
        (
            {"stages": dict(reversed(STAGES.items()))},
            r"mix\.stages\.rising\.from_step must be > 90, got 37; stages stand",
        ),
        (
            {"weights": {"ar": 1.0}, "stages": {"all": MixStageConfig(from_step=0, weights={"en": 1.0})}},
            r"mix\.stages\.all\.from_step is 0, so mix\.weights would never be used; leave one of the two out",
        ),
        (
            {"stages": {"last": MixStageConfig(from_step=1000, weights={"par": 1.0})}, "epoch_caps": {"ar": 1.5}},
            r"would read par 80\.\d+ times, mix\.max_epochs is 20",
        ),
    ],
)
def test_an_impossible_mix_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_plan(SIZES, MixConfig(**values), 5000, 1)
    assert "\n" not in str(caught.value)


def test_a_cap_of_its_own_lets_a_source_repeat_more_often() -> None:
    config = MixConfig(weights={"par": 0.5, "en": 0.5}, epoch_caps={"par": 25.0})
    assert make_plan(SIZES, config, 2400, 1).epochs(2400)["par"] == pytest.approx(24, abs=0.5)


def test_more_sources_than_a_block_has_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix\.weights mix 1001 sources; 1000 is the most"):
        make_plan({f"s{index}": 10 for index in range(1001)}, MixConfig(), 10, 1)


def test_a_weight_on_a_source_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix\.weights\.empty is above 0 but the source has no rows"):
        make_plan({"ar": 10, "empty": 0}, MixConfig(weights={"ar": 1, "empty": 1}), 10, 1)


def test_a_recipe_gives_stages_and_the_command_line_changes_one() -> None:
    """A dictionary, so that one stage has a name of its own to be overridden by."""
    stages = {"rise": {"from_step": 10, "weights": {"a": 1}}, "anneal": {"from_step": 20, "weights": {"a": 1, "b": 1}}}
    recipe = {"mix": {"stages": stages, "epoch_caps": {"a": 2}}}

    def mix(*overrides: str) -> MixConfig:
        return compose(CONF, "train_cpt", TrainConfig, ["recipe=tiny", *overrides], recipe).mix

    assert mix().stages["anneal"] == MixStageConfig(from_step=20, weights={"a": 1.0, "b": 1.0})
    assert mix().epoch_caps == {"a": 2.0}
    line = "+mix.stages={rise: {from_step: 5, weights: {a: 1}}, late: {from_step: 7, weights: {b: 1}}}"
    config = compose(CONF, "train_cpt", TrainConfig, ["recipe=tiny", line, "mix.stages.late.from_step=9"])
    assert [(name, stage.from_step) for name, stage in config.mix.stages.items()] == [("rise", 5), ("late", 9)]
    with pytest.raises(ConfigError, match=r"mix\.stages\.late\.from_step must be > 5, got 3"):
        compose(CONF, "train_cpt", TrainConfig, ["recipe=tiny", line, "mix.stages.late.from_step=3"])
    with pytest.raises(ConfigError, match=r"mix\.stages\.anneal\.weights must be set"):
        compose(CONF, "train_cpt", TrainConfig, ["recipe=tiny", "+mix.stages={anneal: {from_step: 20}}"])


def test_the_planned_shares_are_those_of_the_weights_over_all_stages() -> None:
    sizes = {"a": 10, "b": 30}
    assert plan_shares(sizes, MixConfig(), 8) == {"a": 0.25, "b": 0.75}
    late = {"anneal": MixStageConfig(from_step=6, weights={"b": 2.0})}
    mix = MixConfig(weights={"a": 1.0}, stages=late)
    assert plan_shares(sizes, mix, 8) == {"a": 0.75, "b": 0.25}
    draws = make_plan(sizes, replace(mix, max_epochs=1e9), 8, 500).rows_read(8 * 500)
    assert [rows_before / 4000 for rows_before in draws] == [0.75, 0.25]
