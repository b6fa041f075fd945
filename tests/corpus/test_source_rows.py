import gzip
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lisan.core.errors import DataError
from lisan.corpus.rows import Fault, Row, SpanEnd, read_span
from lisan.corpus.sources import SourceConfig, SourceFormat, Span, TextUnit

Write = Callable[..., str]


def read(path: str, format: SourceFormat, start: int = 0, end: int | None = None, **options: Any) -> list[Any]:
    source = SourceConfig(format=format, path=(path,), **options)
    items = list(read_span(Span(path, "f", start, end, options.get("pair_path", ("",))[0]), source))
    return [item for item in items if not isinstance(item, SpanEnd)]


def values(items: list[Any]) -> list[Any]:
    return [item.value for item in items if isinstance(item, Row)]


def faults(items: list[Any]) -> list[tuple[int, str]]:
    return [(item.line, item.reason) for item in items if isinstance(item, Fault)]


def test_a_broken_line_of_jsonl_is_a_fault_with_its_line(write: Write) -> None:
    items = read(write("f", b'{"a": 1}\n\n{"a": \n\xff\xfe\n{"a": 2}'), SourceFormat.jsonl)
    assert values(items) == [{"a": 1}, {"a": 2}]
    (third, first), (fourth, second) = faults(items)
    assert (third, fourth) == (3, 4)
    assert first.startswith("broken JSON")
    assert second == "not valid utf-8 at byte 0 of the line"


@pytest.mark.parametrize("cut", range(1, 30, 3))
def test_a_file_cut_anywhere_gives_the_rows_and_keys_of_the_whole(cut: int, write: Write) -> None:
    path = write("f", '{"a": 1}\n{"b": "مر"}\n{"c": 3}\n')
    whole = read(path, SourceFormat.jsonl)
    parts = read(path, SourceFormat.jsonl, 0, cut) + read(path, SourceFormat.jsonl, cut, None)
    assert [(row.key, row.value) for row in parts] == [(row.key, row.value) for row in whole]


def test_a_byte_order_mark_is_no_text(write: Write) -> None:
    assert values(read(write("f", b"\xef\xbb\xbfone\r\ntwo"), SourceFormat.text)) == ["one", "two"]


def test_blocks_end_at_their_separator_and_lose_a_broken_line_only(write: Write) -> None:
    path = write("f", b"a\nb\n***\n***\nc\n\xff\nd\n")
    items = read(path, SourceFormat.text, unit=TextUnit.block, separator="***")
    assert values(items) == ["a\nb", "c\nd"]
    assert faults(items) == [(6, "not valid utf-8 at byte 0 of the line")]
    assert values(read(write("g", "a\nb\n\n \nc"), SourceFormat.text, unit=TextUnit.block)) == ["a\nb", "c"]


def test_a_whole_file_is_one_row_in_its_encoding(write: Write) -> None:
    path = write("f", "سلام\nعليكم".encode("windows-1256"))
    assert values(read(path, SourceFormat.text, unit=TextUnit.file, encoding="windows-1256")) == ["سلام\nعليكم"]


def test_csv_cells_may_span_lines_and_a_bad_row_is_alone(write: Write) -> None:
    path = write("f", b'x,y\n1,"a\nb"\n2\n3,\xff\n4,"c ""d"""\n')
    items = read(path, SourceFormat.csv)
    assert values(items) == [{"x": "1", "y": "a\nb"}, {"x": "4", "y": 'c "d"'}]
    assert faults(items) == [(4, "expected 2 columns, got 1"), (5, "not valid utf-8")]


def test_columns_replace_a_header(write: Write) -> None:
    assert values(read(write("f", "q,A\n"), SourceFormat.csv, columns=("x", "y"))) == [{"x": "q", "y": "A"}]
    assert values(read(write("g", 'say "hi"\tقل\n'), SourceFormat.tsv, columns=("x", "y"))) == [
        {"x": 'say "hi"', "y": "قل"}
    ]
    assert values(read(write("h", "x\ty\n1\t2\n"), SourceFormat.tsv)) == [{"x": "1", "y": "2"}]


def test_a_json_file_is_an_array_or_has_one_under_data(write: Write) -> None:
    assert values(read(write("f", '[{"a": 1}, 2]'), SourceFormat.json)) == [{"a": 1}, 2]
    assert values(read(write("g", '{"data": [3]}'), SourceFormat.json)) == [3]
    with pytest.raises(DataError, match=r"not valid JSON: .* at line 2; .*format=jsonl"):
        read(write("h", '{"a": 1}\n{"a": 2}'), SourceFormat.json)


def test_parquet_rows_are_dicts(tmp_path: Any) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, None]}), tmp_path / "f.parquet")
    rows = read(str(tmp_path / "f.parquet"), SourceFormat.parquet)
    assert values(rows) == [{"text": "a", "n": 1}, {"text": "b", "n": None}]


def test_what_is_not_parquet_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="is not a parquet file"):
        read(write("f.parquet", "text"), SourceFormat.parquet)


def test_aligned_files_are_read_line_by_line(write: Write) -> None:
    first, second = write("a", "one\ntwo\n"), write("b", "واحد\nاثنان\n")
    items = read(first, SourceFormat.aligned, pair_path=(second,))
    assert values(items) == [{"first": "one", "second": "واحد"}, {"first": "two", "second": "اثنان"}]


@pytest.mark.parametrize(("first", "second"), [("1\n2\n3\n", "1\n2\n"), ("1\n2\n", "1\n2\n3\n")])
def test_files_of_unequal_length_are_not_aligned(first: str, second: str, write: Write) -> None:
    with pytest.raises(DataError, match=r"has more lines than .* \(2\); they must be aligned"):
        read(write("a", first), SourceFormat.aligned, pair_path=(write("b", second),))


def test_a_cut_off_gzip_is_refused(write: Write) -> None:
    data = gzip.compress(b"line\n" * 10000)
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(write("f.gz", data[:-20]), SourceFormat.text)


def test_the_end_of_a_span_tells_its_lines(write: Write) -> None:
    path = write("f", "a\n\nb\n")
    *_, end = read_span(Span(path, "f"), SourceConfig(format=SourceFormat.text, path=(path,)))
    assert end == SpanEnd(3)
