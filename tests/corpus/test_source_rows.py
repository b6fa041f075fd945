import bz2
import gzip
import lzma
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.sources import csv_rows
from lisan.corpus.sources.lines import BadRowError, Fault, RangeEnd, Row
from lisan.corpus.sources.read_rows import read_range
from lisan.corpus.sources.read_tasks import FileRange

Write = Callable[..., str]


def read(path: str, format: SourceFormat, start: int = 0, end: int | None = None, **options: Any) -> list[Any]:
    source = SourceConfig(format=format, path=(path,), **options)
    items = list(read_range(FileRange(path, "f", start, end, options.get("pair_path", ("",))[0]), source))
    return [item for item in items if not isinstance(item, RangeEnd)]


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


def test_a_quote_that_nobody_closes_costs_its_line_only(write: Write) -> None:
    rows = [f"{n},text {n}" for n in range(3000)]
    rows[10] = '10,"a\nb ""c"", d"'
    rows[1500] = '1500,"open'
    items = read(write("f", "id,text\n" + "".join(f"{row}\n" for row in rows)), SourceFormat.csv)
    assert [(row.value["id"], row.value["text"]) for row in items if isinstance(row, Row)] == [
        (f"{n}", 'a\nb "c", d' if n == 10 else f"text {n}") for n in range(3000) if n != 1500
    ]
    ((line, reason),) = faults(items)
    assert line == 1503
    assert reason.startswith("a quote opens a cell in this line and nothing closes it")


def test_a_quote_that_another_row_closes_costs_its_line_only(write: Write) -> None:
    path = write("f", 'x,y\n1,"open\n2,b\n3,"c, d"\n4,e\n5,"shut\n6,f"\n')
    assert values(read(path, SourceFormat.csv)) == [
        {"x": "2", "y": "b"},
        {"x": "3", "y": "c, d"},
        {"x": "4", "y": "e"},
        {"x": "5", "y": "shut\n6,f"},
    ]
    text = 'x,y,z\n1,"open,b\n' + "2,c,d\n" * 25 + '3,e",f\n4,g,"h"\n'
    items = read(write("g", text), SourceFormat.csv)
    assert [row["x"] for row in values(items)] == ["2"] * 25 + ["3", "4"]
    assert [line for line, _ in faults(items)] == [2]


def test_the_search_for_a_closing_quote_ends(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROW_CHARS", 100)
    path = write("f", 'x,y\n1,"open\n' + "".join(f"{n},b\n" for n in range(2, 90)) + '90,"c"\n')
    assert len(values(read(path, SourceFormat.csv))) == 89


def test_an_open_quote_in_a_damaged_csv_costs_its_line_only(write: Write) -> None:
    text = 'x,y\n1,"a\nb"\n2,"c\n3,d\n4,e\n'
    items = read(write("f", gzip.compress(text.encode())[:-4]), SourceFormat.csv)
    assert [row["x"] for row in values(items)] == ["1", "3", "4"]
    assert [(item.line, item.is_damage) for item in items if isinstance(item, Fault)] == [(4, False), (7, True)]


@pytest.mark.parametrize(("format", "text"), [("csv", "X, y\n1,2\n"), ("tsv", "X\t y\n1\t2\n")])
def test_a_header_below_given_columns_is_no_data(format: str, text: str, write: Write) -> None:
    items = read(write("f", text), SourceFormat(format), columns=("x", "y"))
    assert values(items) == [{"x": "1", "y": "2"}]
    assert faults(items) == [
        (1, "the line repeats the names in `columns`; leave `columns` out where files have a header")
    ]


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


def test_of_parquet_only_the_columns_that_are_asked_for_are_read(tmp_path: Any) -> None:
    far = pa.array([10**7, 1], pa.int32()).cast(pa.date32())
    bad = pa.Array.from_buffers(pa.string(), 2, [*pa.array(["ab", "cd"]).buffers()[:2], pa.py_buffer(b"\xff\xfecd")])
    pq.write_table(pa.table({"text": ["a", "b"], "date": far, "bad": bad}), tmp_path / "f.parquet")
    first, second = values(read(str(tmp_path / "f.parquet"), SourceFormat.parquet))
    assert (first["text"], second["text"]) == ("a", "b")
    assert list(first) == ["text", "date", "bad"]
    assert second["bad"] == "cd"
    for column in ("date", "bad"):
        with pytest.raises(BadRowError, match=f"column {column} cannot be read: "):
            first[column]
    assert "column date cannot be read" in str(first)


def test_parquet_rows_are_read_in_any_order(tmp_path: Any) -> None:
    pq.write_table(pa.table({"n": list(range(5000))}), tmp_path / "f.parquet", row_group_size=1500)
    rows = values(read(str(tmp_path / "f.parquet"), SourceFormat.parquet))
    assert [rows[n]["n"] for n in (0, 4999, 1024, 1500, 0)] == [0, 4999, 1024, 1500, 0]
    assert [row["n"] for row in rows] == list(range(5000))


def test_numbers_and_characters_that_are_none_are_faults(write: Write) -> None:
    text = '{"n": ' + "9" * 5000 + '}\n{"t": "a \\ud800"}\n{"t": "\\ud83d\\ude00"}\n'
    items = read(write("f", text), SourceFormat.jsonl)
    assert values(items) == [{"t": "😀"}]
    (one, huge), (two, half) = faults(items)
    assert (one, two) == (1, 2)
    assert huge == "broken JSON: an integer has more than 4300 digits"
    assert half == "broken JSON: half of a surrogate pair (\\ud800 to \\udfff) is no character"
    rows = read(write("g", '[{"t": "\\udc00"}, {"t": "x"}]'), SourceFormat.json)
    assert (values(rows), len(faults(rows))) == ([{"t": "x"}], 1)
    with pytest.raises(DataError, match=r"h cannot be read as JSON: .*4300 digits"):
        read(write("h", "[" + "9" * 5000 + "]"), SourceFormat.json)


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


def compress(data: bytes, compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": partial(compress, compression="zstd"),
    "lz4": partial(compress, compression="lz4"),
}


@pytest.mark.parametrize("compression", COMPRESS)
def test_compressed_files_are_known_by_their_first_bytes(compression: str, write: Write) -> None:
    pack = COMPRESS[compression]
    data = pack(b'{"a": 1}\n') + pack('{"a": "مر"}\n'.encode())  # members are read one after the other
    assert values(read(write("named.jsonl", data), SourceFormat.jsonl)) == [{"a": 1}, {"a": "مر"}]


def test_a_zip_archive_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="f is a zip archive; unpack it"):
        read(write("f", b"PK\x03\x04rest"), SourceFormat.text)


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd"])
def test_lines_before_the_end_of_a_cut_file_are_kept_and_the_loss_is_a_fault(compression: str, write: Write) -> None:
    draw = random.Random(0)
    lines = [f"{draw.random()} {n}" for n in range(40_000)]
    data = COMPRESS[compression]("".join(f"{line}\n" for line in lines).encode())
    items = read(write("f", data[: len(data) // 2]), SourceFormat.text)
    kept = values(items)
    assert kept == lines[: len(kept)]
    assert len(kept) > 10_000
    assert items[-1] == Fault(len(kept) + 1, items[-1].reason, "", is_damage=True)
    assert re.search(
        rf"the {compression} data is damaged: .*; the {len(kept):,} lines before are read", items[-1].reason
    )


def test_a_few_lines_before_flipped_bytes_are_kept(write: Write) -> None:
    lines = [f"{n} {n * n}" for n in range(300)]
    data = bytearray(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff" * 20
    items = read(write("f", bytes(data)), SourceFormat.text)
    assert values(items)[:100] == lines[:100]
    assert items[-1].is_damage


def test_a_block_before_damage_is_kept(write: Write) -> None:
    path = write("f", gzip.compress(b"one\ntwo\n")[:-4])
    items = read(path, SourceFormat.text, unit=TextUnit.file)
    assert values(items) == ["one\ntwo"]
    assert faults(items)[0][0] == 3


def test_the_end_of_a_span_tells_its_lines(write: Write) -> None:
    path = write("f", "a\n\nb\n")
    *_, end = read_range(FileRange(path, "f"), SourceConfig(format=SourceFormat.text, path=(path,)))
    assert end == RangeEnd(3)
