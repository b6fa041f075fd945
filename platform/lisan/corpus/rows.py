"""Rows of a piece, as its files have them: strings of text files, dicts of the others.

In: a `Span` and its source's config. Out: `Row`s in file order and, for every row that cannot be read, a `Fault` with
its line. Always: a row's key depends on the file alone, not on how the file was cut. `chain` is the only caller.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lisan.core.errors import DataError
from lisan.core.storage import Location
from lisan.corpus.sources import SourceConfig, SourceFormat, Span, TextUnit, open_file


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    "Unique in the source: file and position."
    line: int
    "From 1, counted from where the span starts."
    value: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used; it goes to quarantine."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """How many lines a span had: what a later span of the same file adds to its line numbers."""

    num_lines: int


Item = Row | Fault | SpanEnd


def read_span(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Yield every row of a span; DataError when the file as a whole cannot be read."""
    try:
        yield from READERS[source.format](span, source)
    except (EOFError, OSError) as error:
        raise DataError(f"{span.path} cannot be read to its end: {error}; is it complete?") from error


def read_lines(span: Span) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number from 1, byte offset, line) for the lines that start in the span; a byte order mark is dropped."""
    with open_file(span.path) as stream:
        offset = number = 0
        if span.start:
            stream.seek(span.start - 1)
            offset = span.start - 1 + len(stream.readline())
        while span.end is None or offset < span.end:
            line = stream.readline()
            if not line:
                return
            number += 1
            yield number, offset, line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
            offset += len(line)


def _decode(line: bytes, encoding: str, number: int) -> str | Fault:
    try:
        return line.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError as error:
        return Fault(number, f"not valid {encoding} at byte {error.start} of the line", excerpt(line))


def excerpt(value: bytes | str) -> str:
    """Return what quarantine keeps of a row: enough to find it again."""
    text = value[:2000].decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else value[:2000]
    return _SURROGATE.sub("?", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _read_lines_as(parse: Callable[[str, int], Any], span: Span, source: SourceConfig) -> Iterator[Item]:
    number = 0
    for number, offset, line in read_lines(span):
        text = _decode(line, source.encoding, number)
        if isinstance(text, Fault):
            yield text
        elif text.strip():
            value = parse(text, number)
            yield value if isinstance(value, Fault) else Row(f"{span.name}:{offset}", number, value)
    yield SpanEnd(number)


def _read_jsonl(span: Span, source: SourceConfig) -> Iterator[Item]:
    def parse(text: str, number: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            return Fault(number, f"broken JSON: {error.msg} at column {error.colno}", excerpt(text))
        except RecursionError:
            return Fault(number, "broken JSON: nested too deeply", excerpt(text))

    yield from _read_lines_as(parse, span, source)


def _read_text(span: Span, source: SourceConfig) -> Iterator[Item]:
    if source.unit is TextUnit.line:
        yield from _read_lines_as(lambda text, _: text, span, source)
    else:
        yield from _read_blocks(span, source)


def _read_blocks(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Join lines up to a separator, or up to the end; a line that cannot be decoded is taken out of its block."""
    block: list[str] = []
    first, start = 1, 0
    for number, offset, line in read_lines(span):
        text = _decode(line, source.encoding, number)
        if isinstance(text, Fault):
            yield text
            continue
        if source.unit is TextUnit.block and text.strip() == source.separator:
            if block:
                yield Row(f"{span.name}:{start}", first, "\n".join(block))
            block = []
            continue
        if not block:
            first, start = number, offset
        block.append(text)
    if block:
        yield Row(f"{span.name}:{start}", first, "\n".join(block))


def _read_tsv(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Split at tabs and nothing else: quotes in a tsv are text."""
    columns = list(source.columns) or _first_line(span, source).split("\t")

    def parse(text: str, number: int) -> Any:
        cells = text.split("\t")
        if len(cells) != len(columns):
            return Fault(number, f"expected {len(columns)} columns, got {len(cells)}", excerpt(text))
        return dict(zip(columns, cells, strict=True))

    header = not source.columns and span.start == 0
    for item in _read_lines_as(parse, span, source):
        if header and isinstance(item, Row):
            header = False
            continue
        yield item


def _first_line(span: Span, source: SourceConfig) -> str:
    for _, _, line in read_lines(Span(span.path, span.name)):
        return line.rstrip(b"\r\n").decode(source.encoding, errors="replace")
    return ""


def _read_csv(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Read quoted cells over several lines; undecodable bytes travel as surrogates and condemn their row only."""
    csv.field_size_limit(sys.maxsize)
    lines = (line.decode(source.encoding, errors="surrogateescape") for _, _, line in read_lines(span))
    reader = csv.reader(lines, strict=True)
    columns = list(source.columns)
    index = end = 0
    while True:
        first = end + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(first, f"broken CSV: {error}", "")
            end = reader.line_num
            continue
        end = reader.line_num
        if not columns:
            columns = cells
        elif cells:
            yield _csv_item(cells, columns, f"{span.name}:{index}", first, source.encoding)
            index += 1


def _csv_item(cells: list[str], columns: list[str], key: str, line: int, encoding: str) -> Item:
    text = ",".join(cells)
    if len(cells) != len(columns):
        return Fault(line, f"expected {len(columns)} columns, got {len(cells)}", excerpt(text))
    if _SURROGATE.search(text):
        return Fault(line, f"not valid {encoding}", excerpt(text))
    return Row(key, line, dict(zip(columns, cells, strict=True)))


def _read_json(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Read one JSON array, or the array under `data`; such a file is one unit and is refused whole when broken."""
    with open_file(span.path) as stream:
        data = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(data.decode(source.encoding))
    except UnicodeDecodeError as error:
        raise DataError(f"{span.path} is not valid {source.encoding} at byte {error.start}; convert it") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{span.path} is not valid JSON: {error.msg} at line {error.lineno}; for one object a line use format=jsonl"
        ) from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        kind = type(value).__name__
        raise DataError(f"{span.path} must hold a JSON array of objects, or one under `data`, got {kind}")
    for index, row in enumerate(rows):
        yield Row(f"{span.name}:{index}", index + 1, row)


def _read_parquet(span: Span, source: SourceConfig) -> Iterator[Item]:  # noqa: ARG001  the signature of every reader
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Location(span.path)
    try:
        file = pq.ParquetFile(place.file_system.open_input_file(place.full_path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{span.path} is not a parquet file: {error}") from error
    index = 0
    for batch in file.iter_batches(batch_size=1024, use_threads=False):
        for row in batch.to_pylist():
            yield Row(f"{span.name}:{index}", index + 1, row)
            index += 1


def _read_aligned(span: Span, source: SourceConfig) -> Iterator[Item]:
    """Read two files line by line as {first, second}; DataError when one is longer."""
    first, second = read_lines(span), read_lines(Span(span.pair_path, span.name))
    number = 0
    for number, offset, line in first:
        other = next(second, None)
        sides = [_decode(side, source.encoding, number) for side in (line, other[2] if other else b"")]
        if other is None:
            raise DataError(f"{span.path} has more lines than {span.pair_path} ({number - 1}); they must be aligned")
        fault = next((side for side in sides if isinstance(side, Fault)), None)
        yield fault or Row(f"{span.name}:{offset}", number, {"first": sides[0], "second": sides[1]})
    if next(second, None) is not None:
        raise DataError(f"{span.pair_path} has more lines than {span.path} ({number}); they must be aligned")


READERS: dict[SourceFormat, Callable[[Span, SourceConfig], Iterator[Item]]] = {
    SourceFormat.jsonl: _read_jsonl,
    SourceFormat.text: _read_text,
    SourceFormat.tsv: _read_tsv,
    SourceFormat.csv: _read_csv,
    SourceFormat.json: _read_json,
    SourceFormat.parquet: _read_parquet,
    SourceFormat.aligned: _read_aligned,
}
