"""Reads the rows of a file range in file order: strings of text files, mappings of the others.

A row that cannot be read becomes a `Fault` with its line. Keys of rows depend on the file alone, not on its ranges.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest

import pyarrow as pa

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.sources.compressed import open_file
from lisan.corpus.sources.csv_rows import read_csv, read_tsv
from lisan.corpus.sources.lines import SURROGATE, Fault, Item, Lines, Row, decode, excerpt, read_lines_as
from lisan.corpus.sources.parquet_rows import read_parquet
from lisan.corpus.sources.read_tasks import FileRange


def read_range(file_range: FileRange, source: SourceConfig) -> Iterator[Item]:
    """Yield every row of a file range; DataError if the file as a whole cannot be read."""
    lines = Lines(file_range)
    try:
        yield from READERS[source.format](lines, source)
    except (EOFError, OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file_range.path} cannot be read to its end: {error}; is it complete?") from error
    if lines.damage:
        yield lines.damage


def _read_jsonl(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    yield from read_lines_as(partial(_parse_json, encoding=source.encoding), lines, source)


def _parse_json(line: bytes, number: int, encoding: str) -> object:
    text = line.decode(encoding)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Fault(number, f"broken JSON: {error.msg} at column {error.colno}", excerpt(text.rstrip()))
    except RecursionError:
        return Fault(number, "broken JSON: nested too deeply", excerpt(text))
    except ValueError:
        return Fault(number, f"broken JSON: {_LONG}", excerpt(text))
    if _ESCAPED_SURROGATE.search(line) and _has_surrogate(value):
        return Fault(number, _HALF, excerpt(text.rstrip()))
    return value


_ESCAPED_SURROGATE = re.compile(rb"\\u[dD]")
"Looked for in bytes, which takes half of the time that it takes in text."
_LONG = f"an integer has more than {sys.get_int_max_str_digits()} digits"
_HALF = "broken JSON: half of a surrogate pair (\\ud800 to \\udfff) is no character"


def _has_surrogate(value: object) -> bool:
    """Tell whether an unpaired surrogate remains; json joins the pairs."""
    return bool(SURROGATE.search(json.dumps(value, ensure_ascii=False)))


def _read_text(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    if source.unit is TextUnit.line:
        yield from read_lines_as(lambda line, _: line.rstrip(b"\r\n").decode(source.encoding), lines, source)
    else:
        yield from _read_blocks(lines, source)


def _read_blocks(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Join lines up to a separator, or up to the end; a line that cannot be decoded is taken out of its block."""
    block: list[str] = []
    first, start, name = 1, 0, lines.file_range.name
    for number, offset, line in lines:
        text = decode(line, source.encoding, number)
        if isinstance(text, Fault):
            yield text
            continue
        if source.unit is TextUnit.block and text.strip() == source.separator:
            if block:
                yield Row(f"{name}:{start}", first, "\n".join(block))
            block = []
            continue
        if not block:
            first, start = number, offset
        block.append(text)
    if block:
        yield Row(f"{name}:{start}", first, "\n".join(block))


def _read_json(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Read one JSON array, or the array under `data`; such a file is one unit and is refused whole when broken."""
    path, name = lines.file_range.path, lines.file_range.name
    with open_file(path) as stream:
        data = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(data.decode(source.encoding))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid {source.encoding} at byte {error.start}; convert it") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}; for one object a line use format=jsonl"
        ) from error
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else _LONG
        raise DataError(f"{path} cannot be read as JSON: {what}; correct it, or use format=jsonl") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        kind = type(value).__name__
        raise DataError(f"{path} must hold a JSON array of objects, or one under `data`, got {kind}")
    for index, row in enumerate(rows):
        is_broken = isinstance(row, dict | list | str) and _has_surrogate(row)
        yield Fault(index + 1, _HALF, excerpt(json.dumps(row))) if is_broken else Row(f"{name}:{index}", index + 1, row)


def _read_aligned(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Read two files line by line as {first, second}; DataError when one is longer."""
    file_range = lines.file_range
    others = Lines(FileRange(file_range.pair_path, file_range.name))
    number, pairs = 0, zip_longest(lines, others)
    for number, (one, other) in enumerate(pairs, 1):
        if one is None or other is None:
            break
        sides = [decode(side[2], source.encoding, number) for side in (one, other)]
        fault = next((side for side in sides if isinstance(side, Fault)), None)
        yield fault or Row(f"{file_range.name}:{one[1]}", number, {"first": sides[0], "second": sides[1]})
    else:
        return
    shorter, longer = (
        (file_range.path, file_range.pair_path) if one is None else (file_range.pair_path, file_range.path)
    )
    if not lines.damage and not others.damage:
        raise DataError(f"{longer} has more lines than {shorter} ({number - 1}); they must be aligned")
    lines.damage = lines.damage or others.damage


READERS: dict[SourceFormat, Callable[[Lines, SourceConfig], Iterator[Item]]] = {
    SourceFormat.jsonl: _read_jsonl,
    SourceFormat.text: _read_text,
    SourceFormat.tsv: read_tsv,
    SourceFormat.csv: read_csv,
    SourceFormat.json: _read_json,
    SourceFormat.parquet: read_parquet,
    SourceFormat.aligned: _read_aligned,
}
