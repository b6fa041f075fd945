"""Rows on storage, read by arithmetic."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.storage import Location
from lisan.data.packing import PackedRow
from lisan.data.rows import RowReader, rows_from_table, write_rows
from lisan.tokenizer.labels import Example

LENGTH = 8


def row(value: int) -> PackedRow:
    """Return a row of two documents, of three and two tokens, that all hold its number."""
    parts = [Example(np.full(size, value, np.int32), np.full(size, value, np.int32)) for size in (3, 2)]
    return PackedRow(examples=parts, free=LENGTH - 5)


@pytest.fixture
def tokens(tmp_path: Path) -> Artifact:
    return write_tokens(str(tmp_path))


def write_tokens(root: str) -> Artifact:
    """Three sources of 70, 3 and 130 rows, the last in two shards; each row holds its id."""
    store = Store(root)
    draft = store.begin(Ref.parse("tokens/t@v1"), {}, ())
    facts: dict[str, dict[str, object]] = {}
    first = 0
    for source, shards in (("ar", (70,)), ("en", (3,)), ("par", (100, 30))):
        names = {}
        for index, size in enumerate(shards):
            name = f"shard-{index:05d}.arrow"
            place = draft.location / "rows" / source / name
            counts = write_rows(place, (row(first + number) for number in range(size)), LENGTH)
            assert (counts["rows"], counts["tokens"]) == (size, 5 * size)
            assert (counts["targets"], counts["documents"], counts["highest_id"]) == (
                3 * size,
                2 * size,
                first + size - 1,
            )
            names[name] = size
            first += size
        facts[source] = {"language": source[:2], "rows": sum(shards), "tokens": 5 * sum(shards), "shards": names}
    return draft.commit({"sources": facts, "context_length": LENGTH, "vocabulary_size": 640})


def test_a_row_id_is_its_place_in_the_sources_laid_end_to_end(tokens: Artifact) -> None:
    reader = RowReader(tokens)
    assert len(reader) == 203
    assert [reader.first_row(source) for source in reader.sources] == [0, 70, 73]
    assert reader.source_of(np.array([0, 69, 70, 72, 73, 202])).tolist() == [0, 0, 1, 1, 2, 2]


def test_any_rows_are_read_in_the_order_asked_for(tokens: Artifact) -> None:
    wanted = [202, 0, 173, 172, 64, 63, 0]
    rows = RowReader(tokens).read(wanted)
    assert rows.row_ids.tolist() == wanted
    assert rows.input_ids[:, 0].tolist() == wanted
    assert rows.input_ids.shape == rows.labels.shape == (7, LENGTH)
    assert rows.input_ids.dtype == np.int32


def test_documents_and_padding_come_back(tokens: Artifact) -> None:
    rows = RowReader(tokens).read([5])
    assert rows.doc_lens == ((3, 2),)
    assert rows.input_ids[0].tolist() == [5, 5, 5, 5, 5, 0, 0, 0]
    assert rows.labels[0].tolist() == [-100, 5, 5, -100, 5, -100, -100, -100]


def test_the_form_that_travels_is_the_form_that_is_read(tokens: Artifact) -> None:
    reader = RowReader(tokens)
    direct, travelled = reader.read([3, 80]), rows_from_table(reader.read_table([3, 80]))
    assert np.array_equal(direct.input_ids, travelled.input_ids)
    assert direct.doc_lens == travelled.doc_lens


def test_a_sliced_and_chunked_table_is_read_right(tokens: Artifact) -> None:
    """Ray Data hands over slices of what it concatenated."""
    reader = RowReader(tokens)
    table = pa.concat_tables([reader.read_table([1, 2, 3]), reader.read_table([90, 91])]).slice(1, 3)
    rows = rows_from_table(table)
    assert rows.input_ids[:, 0].tolist() == rows.row_ids.tolist() == [2, 3, 90]


def test_a_part_is_a_micro_batch(tokens: Artifact) -> None:
    rows = RowReader(tokens).read([4, 5, 6, 7])
    part = rows.part(1, 3)
    assert (len(part), part.row_ids.tolist()) == (2, [5, 6])
    assert np.array_equal(part.labels, rows.labels[1:3])


def test_shards_on_an_object_store_are_mapped_and_not_held_in_memory(bucket: str, tmp_path: Path) -> None:
    reader = RowReader(write_tokens(bucket))
    assert reader.read([202, 0]).input_ids[:, 0].tolist() == [202, 0]
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
    assert {"/".join(Path(file).parts[-3:-1]) for file in mapped} == {"ar/shard-00000.arrow", "par/shard-00001.arrow"}
    assert reader.read(list(range(203))).input_ids[:, 0].tolist() == list(range(203))


def test_rows_of_no_records_are_an_empty_file(tmp_path: Path) -> None:
    assert write_rows(Location(str(tmp_path)) / "rows" / "none.arrow", [], LENGTH)["rows"] == 0
