"""Items to rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisan.core.errors import ConfigError
from lisan.tokens.labels import IGNORE_INDEX, Example
from lisan.tokens.packing import Overflow, PackingConfig, PackingCounts, Row, fit, lay_out, pack

LENGTH = 32
SIZES = st.lists(st.integers(1, 100), max_size=60)


def example(size: int, start: int = 0) -> Example:
    ids = np.arange(start, start + size, dtype=np.int32)
    return Example(ids, ids.copy())


def rows_of(sizes: list[int], counts: PackingCounts | None = None, **options: object) -> list[Row]:
    config = PackingConfig(**{"min_free": 0, **options})  # type: ignore[arg-type]
    items = [(example(size, 1000 * place),) for place, size in enumerate(sizes)]
    return list(pack(items, LENGTH, config, counts or PackingCounts()))


@given(sizes=SIZES, open_rows=st.integers(1, 8), min_free=st.integers(0, 10))
def test_splitting_loses_and_repeats_no_token_and_never_overfills(
    sizes: list[int], open_rows: int, min_free: int
) -> None:
    rows = rows_of(sizes, open_rows=open_rows, min_free=min_free, overflow=Overflow.split)
    packed = sorted(token for row in rows for part in row.examples for token in part.input_ids.tolist())
    assert packed == sorted(1000 * place + token for place, size in enumerate(sizes) for token in range(size))
    for row in rows:
        assert row.free == LENGTH - sum(row.doc_lens) >= 0


@given(sizes=SIZES)
def test_dropping_keeps_whole_items_and_counts_the_rest(sizes: list[int]) -> None:
    counts = PackingCounts()
    rows = rows_of(sizes, counts, overflow=Overflow.drop)
    assert sorted(size for row in rows for size in row.doc_lens) == sorted(size for size in sizes if size <= LENGTH)
    assert (counts.items, counts.dropped) == (len(sizes), sum(size > LENGTH for size in sizes))


@given(sizes=SIZES)
def test_truncating_keeps_the_beginning_of_every_item(sizes: list[int]) -> None:
    counts = PackingCounts()
    rows = rows_of(sizes, counts, overflow=Overflow.truncate)
    assert sorted(size for row in rows for size in row.doc_lens) == sorted(min(size, LENGTH) for size in sizes)
    assert counts.truncated == sum(size > LENGTH for size in sizes)


def test_an_item_goes_into_the_row_that_it_fills_best() -> None:
    rows = rows_of([20, 28, 4, 12])
    assert sorted(row.doc_lens for row in rows) == [[20, 12], [28, 4]]


def test_memory_is_bounded_by_the_open_rows() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield (example(20),)

    rows = pack(endless(), LENGTH, PackingConfig(open_rows=5), PackingCounts())  # type: ignore[arg-type]
    next(rows)
    assert taken == 6


def test_a_row_with_little_room_is_full() -> None:
    assert [row.doc_lens for row in rows_of([30, 2], min_free=4)] == [[30], [2]]


def test_many_open_rows_waste_little() -> None:
    sizes = np.random.default_rng(0).exponential(LENGTH / 4, 4000).astype(int).clip(1, LENGTH).tolist()
    waste = {open_rows: 1 - sum(sizes) / (LENGTH * len(rows_of(sizes, open_rows=open_rows))) for open_rows in (1, 64)}
    assert waste[64] < 0.01 < waste[1]


def test_the_first_token_of_a_split_part_has_no_label() -> None:
    counts = PackingCounts()
    parts = [part for [part] in fit([(example(70),)], LENGTH, Overflow.split, counts)]
    assert [len(part) for part in parts] == [32, 32, 6]
    assert all(part.labels[0] == IGNORE_INDEX and (part.labels[1:] >= 0).all() for part in parts)
    assert counts.split == 1


def test_a_pair_stays_together_or_goes() -> None:
    counts = PackingCounts()
    pairs = [(example(10), example(12)), (example(LENGTH), example(1))]
    [row] = pack(pairs, LENGTH, PackingConfig(overflow=Overflow.drop), counts)
    assert row.doc_lens == [10, 12]
    assert counts.dropped == 1


def test_a_truncated_pair_has_an_equal_part_each() -> None:
    counts = PackingCounts()
    [[chosen, rejected]] = fit([(example(LENGTH), example(5))], LENGTH, Overflow.truncate, counts)
    assert (len(chosen), len(rejected)) == (LENGTH // 2, 5)
    assert counts.truncated == 1


def test_what_keeps_no_label_when_it_is_truncated_is_dropped() -> None:
    long_prompt = example(40)
    long_prompt.labels[:35] = IGNORE_INDEX
    counts = PackingCounts()
    assert list(fit([(long_prompt,), (example(9), long_prompt)], LENGTH, Overflow.truncate, counts)) == []
    assert (counts.truncated, counts.dropped) == (0, 2)


def test_a_row_is_laid_out_with_padding_that_trains_nothing() -> None:
    [row] = rows_of([3, 4], open_rows=2)
    ids, labels = lay_out(row, 10, pad_id=9)
    assert ids.tolist() == [0, 1, 2, 1000, 1001, 1002, 1003, 9, 9, 9]
    skip = IGNORE_INDEX
    assert labels.tolist() == [skip, 1, 2, skip, 1001, 1002, 1003, skip, skip, skip]


@pytest.mark.parametrize("options", [{"open_rows": 0}, {"min_free": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="open_rows >= 1 and min_free >= 0"):
        PackingConfig(**options)  # type: ignore[arg-type]
