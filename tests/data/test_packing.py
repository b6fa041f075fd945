"""Items to rows."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.errors import ConfigError
from lisan.data.config import Overflow, PackingConfig, Strategy
from lisan.data.packing import PackedRow, PackingCounts, fit, lay_out, lay_out_rows, pack
from lisan.tokenizer.labels import IGNORE_INDEX, Example, Item

REPOSITORY = Path(__file__).parents[2]
LENGTH = 32
SIZES = st.lists(st.integers(1, 100), max_size=60)
EVERY = [pytest.param(*pair, id="-".join(pair)) for pair in product(Strategy, Overflow)]


def example(size: int, start: int = 0) -> Example:
    ids = np.arange(start, start + size, dtype=np.int32)
    return Example(ids, ids.copy())


def rows_of(sizes: list[int], counts: PackingCounts | None = None, **options: object) -> list[PackedRow]:
    config = PackingConfig(**{"min_free": 0, **options})  # type: ignore[arg-type]
    items = [(example(size, 1000 * place),) for place, size in enumerate(sizes)]
    return list(pack(items, LENGTH, config, counts or PackingCounts()))


def packed(sizes: list[int], context_length: int, strategy: Strategy) -> Iterator[PackedRow]:
    whole = example(max(sizes))
    items = ((Example(whole.input_ids[:size], whole.labels[:size]),) for size in sizes)
    return pack(items, context_length, PackingConfig(strategy=strategy), PackingCounts())


def padding_of(sizes: np.ndarray, context_length: int, strategy: Strategy) -> float:
    num_rows = sum(1 for _ in packed(sizes.tolist(), context_length, strategy))
    return 1 - sizes.sum() / (num_rows * context_length)


def kept(sizes: list[int], overflow: Overflow) -> Counter[int]:
    """Return the tokens that the overflow rule leaves of the items of `rows_of`."""
    limit = {Overflow.split: max(sizes, default=0), Overflow.truncate: LENGTH, Overflow.drop: LENGTH}[overflow]
    left = [0 if overflow is Overflow.drop and size > LENGTH else min(size, limit) for size in sizes]
    return Counter(1000 * place + token for place, size in enumerate(left) for token in range(size))


@pytest.mark.parametrize(("strategy", "overflow"), EVERY)
@given(sizes=SIZES, open_rows=st.integers(1, 8), window_items=st.integers(1, 20), min_free=st.integers(0, 10))
@settings(deadline=None)
def test_no_token_is_lost_or_repeated_and_no_row_overfilled(
    strategy: Strategy, overflow: Overflow, sizes: list[int], open_rows: int, window_items: int, min_free: int
) -> None:
    options = {"open_rows": open_rows, "window_items": window_items, "min_free": min_free}
    counts = PackingCounts()
    rows = rows_of(sizes, counts, strategy=strategy, overflow=overflow, **options)
    assert Counter(token for row in rows for part in row.examples for token in part.input_ids.tolist()) == kept(
        sizes, overflow
    )
    assert counts.items == len(sizes)
    for row in rows:
        assert row.free == LENGTH - sum(row.doc_lens) >= 0
        for part in row.examples:
            start = part.input_ids[0]
            assert part.input_ids.tolist() == list(range(start, start + len(part)))
            assert ((part.labels == part.input_ids) | (part.labels == IGNORE_INDEX)).all()


@pytest.mark.parametrize(("strategy", "overflow"), EVERY)
@given(sizes=SIZES)
@settings(deadline=None)
def test_labels_follow_their_ids_into_the_row(strategy: Strategy, overflow: Overflow, sizes: list[int]) -> None:
    """A label per token but the first of each document: positions restart where `doc_lens` says."""
    rows = rows_of(sizes, strategy=strategy, overflow=overflow)
    if not rows:
        return
    input_ids, labels = lay_out_rows(rows, LENGTH, pad_id=-1)
    for row, ids, row_labels in zip(rows, input_ids, labels, strict=True):
        starts = np.cumsum([0, *row.doc_lens[:-1]])
        used = sum(row.doc_lens)
        trained = np.setdiff1d(np.arange(used), starts)
        assert (row_labels[trained] == ids[trained]).all()
        assert (row_labels[starts] == IGNORE_INDEX).all()
        assert (row_labels[used:] == IGNORE_INDEX).all()
        assert (ids[used:] == -1).all()


@pytest.mark.parametrize(("strategy", "overflow"), EVERY)
@given(sizes=SIZES)
@settings(deadline=None)
def test_the_same_items_give_the_same_rows(strategy: Strategy, overflow: Overflow, sizes: list[int]) -> None:
    first, second = (rows_of(sizes, strategy=strategy, overflow=overflow, window_items=7) for _ in range(2))
    assert [row.doc_lens for row in first] == [row.doc_lens for row in second]
    assert [[part.input_ids[0] for part in row.examples] for row in first] == [
        [part.input_ids[0] for part in row.examples] for row in second
    ]


@pytest.mark.parametrize("strategy", [Strategy.best_fit, Strategy.window])
@given(pairs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=30))
@settings(deadline=None)
def test_the_two_replies_of_a_preference_share_a_row(strategy: Strategy, pairs: list[tuple[int, int]]) -> None:
    items = [
        (example(first, 100 * place), example(second, 100 * place + 50)) for place, (first, second) in enumerate(pairs)
    ]
    counts = PackingCounts()
    rows = list(pack(items, LENGTH, PackingConfig(strategy=strategy, overflow=Overflow.drop), counts))
    for row in rows:
        owners = [int(part.input_ids[0]) // 100 for part in row.examples]
        assert owners[::2] == owners[1::2]
    assert sum(len(row.examples) for row in rows) == 2 * sum(sum(pair) <= LENGTH for pair in pairs)


@given(sizes=SIZES)
@settings(deadline=None)
def test_dropping_keeps_whole_items_and_counts_the_rest(sizes: list[int]) -> None:
    counts = PackingCounts()
    rows = rows_of(sizes, counts, overflow=Overflow.drop)
    assert sorted(size for row in rows for size in row.doc_lens) == sorted(size for size in sizes if size <= LENGTH)
    assert (counts.items, counts.dropped) == (len(sizes), sum(size > LENGTH for size in sizes))


@given(sizes=SIZES)
@settings(deadline=None)
def test_truncating_keeps_the_beginning_of_every_item(sizes: list[int]) -> None:
    counts = PackingCounts()
    rows = rows_of(sizes, counts, overflow=Overflow.truncate)
    assert sorted(size for row in rows for size in row.doc_lens) == sorted(min(size, LENGTH) for size in sizes)
    assert counts.truncated == sum(size > LENGTH for size in sizes)


def test_an_item_goes_into_the_row_that_it_fills_best() -> None:
    rows = rows_of([20, 28, 4, 12])
    assert sorted(row.doc_lens for row in rows) == [[20, 12], [28, 4]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"open_rows": 5}, 6),
        ({"strategy": Strategy.window, "window_items": 9}, 9),
        ({"strategy": Strategy.concat}, 2),
    ],
)
def test_memory_is_bounded_by_the_open_rows_or_the_window(options: dict[str, object], expected: int) -> None:
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield (example(20),)

    next(pack(endless(), LENGTH, PackingConfig(**options), PackingCounts()))  # type: ignore[arg-type]
    assert taken == expected


def test_a_window_places_the_longest_first() -> None:
    assert [row.doc_lens for row in rows_of([4, 12, 28, 20], strategy=Strategy.window)] == [[20, 12], [28, 4]]


def test_concat_fills_every_row_but_the_last_and_counts_what_it_cuts() -> None:
    counts = PackingCounts()
    rows = rows_of([20, 20, 24, 1], counts, strategy=Strategy.concat)
    assert [row.doc_lens for row in rows] == [[20, 12], [8, 24], [1]]
    assert (counts.items, counts.split) == (4, 1)


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
    [row] = rows_of([4, 3], open_rows=2)
    ids, labels = lay_out(row, 10, pad_id=9)
    assert ids.tolist() == [0, 1, 2, 3, 1000, 1001, 1002, 9, 9, 9]
    skip = IGNORE_INDEX
    assert labels.tolist() == [skip, 1, 2, 3, skip, 1001, 1002, skip, skip, skip]


@pytest.mark.parametrize(
    ("strategy", "context_length"),
    [
        (Strategy.window, 1024),
        (Strategy.window, 2048),
        (Strategy.best_fit, 1024),
        (Strategy.best_fit, 2048),
    ],
)
def test_web_text_wastes_little(strategy: Strategy, context_length: int) -> None:
    """Lengths as web pages have them: log-normal, half of them below 600 tokens."""
    sizes = np.random.default_rng(0).lognormal(np.log(600), 1, 20_000).astype(int) + 1
    assert padding_of(sizes, context_length, strategy) < 0.01


@pytest.fixture(scope="module")
def real_sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Tokens of every document of the monolingual sources of conf/data/real.yaml, by source."""
    from tiny import no_run, silent
    from tokenizers import Tokenizer

    from lisan.core.config import compose
    from lisan.core.stage import StorageConfig, run_stage
    from lisan.corpus.build_corpus import CORPUS, CorpusConfig
    from lisan.corpus.reader import list_sources, read_records
    from lisan.records.kinds import RecordKind

    config = compose(REPOSITORY / "conf", "build_corpus", CorpusConfig, ["data=real"])
    is_mono = {
        name: source.kind is RecordKind.documents and not source.pair_language
        for name, source in config.sources.items()
    }
    mono = {name: source for name, source in config.sources.items() if is_mono[name] and source.split != "validation"}
    storage = StorageConfig(root=str(tmp_path_factory.mktemp("real")))
    corpus = run_stage(CORPUS, dataclasses.replace(config, sources=mono, storage=storage), no_run, silent)
    tokenizer = Tokenizer.from_file(os.environ["LISAN_DATA"] + "/tokenizers/gpt-neox-olmo-50k/tokenizer.json")
    return {
        source: [
            len(encoding.ids) + 1
            for encoding in tokenizer.encode_batch_fast(
                [record.text for record in read_records(corpus, RecordKind.documents, "train", [source])]
            )
        ]
        for source in list_sources(corpus, RecordKind.documents)
    }


@pytest.mark.skipif("LISAN_DATA" not in os.environ, reason="LISAN_DATA names no folder of real text")
@pytest.mark.parametrize(
    ("strategy", "context_length"),
    [
        (Strategy.window, 1024),
        (Strategy.window, 2048),
        (Strategy.best_fit, 1024),
        (Strategy.best_fit, 2048),
    ],
)
def test_real_text_wastes_little(strategy: Strategy, context_length: int, real_sizes: dict[str, list[int]]) -> None:
    assert {"ar_muqtabas", "ary_marsum", "en_c4"} <= real_sizes.keys()
    rows = used = 0
    for sizes in real_sizes.values():
        rows += sum(1 for _ in packed(sizes, context_length, strategy))
        used += sum(sizes)
    assert 1 - used / (rows * context_length) < 0.01


@pytest.mark.parametrize("options", [{"open_rows": 0}, {"window_items": 0}, {"min_free": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="open_rows >= 1, window_items >= 1 and min_free >= 0"):
        PackingConfig(**options)  # type: ignore[arg-type]
