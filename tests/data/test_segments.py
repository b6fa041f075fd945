"""Rows that are made while training runs."""

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import document

from lisan.core.errors import DataError
from lisan.core.storage import Location
from lisan.data import segments
from lisan.data.config import MixConfig, Overflow, PackingConfig
from lisan.data.corpus_blocks import RecordBlocks
from lisan.data.mix import make_plan
from lisan.data.segments import SegmentMaker, find_break, interleave, position_after, row_id, split_position
from lisan.records.kinds import RecordKind
from lisan.records.records import Document, to_table

NUM = {"ar_text": 90, "en_text": 60, "fr_text": 30}


@pytest.fixture
def maker(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> SegmentMaker:
    """Three sources in blocks of four documents, ten blocks to a segment."""
    monkeypatch.setattr(segments, "SEGMENT_BLOCKS", 10)
    parts = {}
    for source, size in NUM.items():
        made = [document(source.replace("fr", "en"), index) for index in range(size)]
        table = to_table([Document(d.id, d.text, source, d.language) for d in made], RecordKind.documents)
        pq.write_table(table, tmp_path / f"{source}.parquet", row_group_size=16)
        parts[source] = ((f"{source}.parquet", size),)
    blocks = RecordBlocks(Location(str(tmp_path)), RecordKind.documents, parts, 4)
    plan = make_plan(blocks.num_blocks, MixConfig(max_epochs=100, seed=5), 100, 1)
    return SegmentMaker(blocks, plan, partial(_same, tokenizer), 64, PackingConfig(), (1.0, 1.0, 1.0))


def _same(tokenizer: Any) -> Any:
    return tokenizer


def tokens_of(row: Any) -> Counter[int]:
    return Counter(token for example in row.examples for token in example.input_ids.tolist())


def test_a_segment_holds_the_tokens_of_its_chunks_and_no_other(maker: SegmentMaker, tokenizer: Any) -> None:
    reader = maker.blocks.reader()
    for number in range(3):
        expected: Counter[int] = Counter()
        for block in maker.plan.rows(number * 10, number * 10 + 10).tolist():
            for text in reader.read(block)[1]["text"].to_pylist():
                begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
                ids = tokenizer.encode(text, add_special_tokens=False)
                expected.update([*begin, *ids, tokenizer.eos_token_id])
        found = sum((tokens_of(row) for _, row in maker.segment(number, reader)), Counter())
        assert found == expected


def test_every_row_holds_documents_of_the_source_that_its_id_names(maker: SegmentMaker, tokenizer: Any) -> None:
    texts = [
        {
            text
            for block in range(first, first + count)
            for text in maker.blocks.reader().read(block)[1]["text"].to_pylist()
        }
        for first, count in ((0, 23), (23, 15), (38, 8))
    ]
    reader = maker.blocks.reader()
    seen = set()
    for row, made in maker.segment(0, reader):
        source = int(segments.source_indices(segments.np.array([row]))[0])
        seen.add(source)
        for example in made.examples:
            if len(example) < 64:
                text = tokenizer.decode(example.input_ids, skip_special_tokens=True)
                assert any(text in whole for whole in texts[source])
    assert seen == {0, 1, 2}


def test_the_stream_goes_on_from_any_row_as_it_would_have(maker: SegmentMaker) -> None:
    whole = list(islice(maker.rows(0), 60))
    assert split_position(whole[-1][0] >> 11)[0] >= 2, "the test must cross segments"
    for place in (1, 7, 30, 59):
        position = position_after(whole[place - 1][0])
        again = list(islice(maker.rows(position), 60 - place))
        assert [row for row, _ in again] == [row for row, _ in whole[place:]]
        assert [tokens_of(row) for _, row in again] == [tokens_of(row) for _, row in whole[place:]]


def test_ids_follow_each_other_and_a_break_is_found(maker: SegmentMaker) -> None:
    ids = [row for row, _ in islice(maker.rows(0), 60)]
    assert find_break(0, ids) is None
    assert find_break(position_after(ids[9]), ids[10:]) is None
    assert find_break(0, [*ids[:5], *ids[6:]]) == 5
    assert find_break(0, [*ids[:5], ids[4], *ids[5:]]) == 5
    assert find_break(0, [*ids[:20], ids[21], ids[20], *ids[22:]]) == 20
    last = next(place for place, row in enumerate(ids) if row & 1)
    assert find_break(0, [*ids[:last], *ids[last + 1 :]]) == last


@given(st.integers(0, 2**32 - 2), st.integers(0, 2**20 - 2), st.integers(0, 1023), st.booleans())
def test_an_id_says_where_it_stands_and_what_comes_next(segment: int, index: int, source: int, is_last: bool) -> None:
    row = row_id(segment, index, source, is_last)
    assert 0 <= row < 2**63
    assert split_position(row >> 11) == (segment, index)
    assert split_position(position_after(row)) == ((segment + 1, 0) if is_last else (segment, index + 1))
    assert segments.source_indices(segments.np.array([row])) == [source]


def test_sources_are_spread_over_the_whole_segment() -> None:
    from random import Random

    rows = {0: iter(["a"] * 300), 1: iter(["b"] * 100)}
    merged = [source for source, _ in interleave(rows, {0: 300.0, 1: 100.0}, Random(1))]  # type: ignore[arg-type]
    assert Counter(merged) == {0: 300, 1: 100}
    for quarter in range(4):
        assert 15 <= merged[quarter * 100 : quarter * 100 + 100].count(1) <= 35


def test_a_segment_that_gives_no_rows_is_one_sentence(maker: SegmentMaker) -> None:
    from dataclasses import replace

    small = replace(maker, context_length=2, packing=PackingConfig(overflow=Overflow.drop))
    with pytest.raises(DataError, match=r"no record of segment 0 fits context_length=2"):
        next(small.rows(0))


def test_more_rows_than_an_id_can_number_are_refused(maker: SegmentMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_INDEX_BITS", 2)
    with pytest.raises(DataError, match=r"segment 0 of the corpus gives more than 4 rows of 64 tokens"):
        list(maker.segment(0, maker.blocks.reader()))
