"""Rows of csv and tsv files.

A quoted csv cell may hold line ends. A stray opening quote would take all lines up to the next quote into its cell, so the
reader keeps the lines of a row until it is complete. If the row is broken, only its first line becomes a fault and the
lines after it are read again.
"""

import csv
import sys
from collections import deque
from collections.abc import Iterator, Sequence

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig
from lisan.corpus.sources.lines import SURROGATE, Fault, Item, Lines, Row, excerpt, read_lines_as
from lisan.corpus.sources.read_tasks import FileRange

MAX_ROW_CHARS = 16 << 20
"Limit of a row over several lines; a longer one has an unclosed quote."
MAX_ALIKE = 20
"Lines of a cell that may all look like rows."
_OPEN = "a quote opens a cell in this line and nothing closes it; the lines after it are read as rows"
_HEADER = "the line repeats the names in `columns`; leave `columns` out where files have a header"


class _RowLines:
    """Iterates over lines for csv.reader and keeps those of the current row."""

    def __init__(self, lines: Lines, encoding: str) -> None:
        self.lines, self.encoding = iter(lines), encoding
        self.waiting: deque[str] = deque()
        self.taken: list[str] = []
        self.num_chars = self.num_before = 0
        self.is_broken = False
        "True after a line that could not be decoded."

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.num_chars > MAX_ROW_CHARS:
            raise csv.Error(_OPEN)
        if self.waiting:
            line = self.waiting.popleft()
        else:
            line = self._decode(next(self.lines)[2])
        self.taken.append(line)
        self.num_chars += len(line)
        return line

    def _decode(self, line: bytes) -> str:
        """Return a line as text; undecodable bytes become surrogates, and only their row is a fault."""
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError:
            self.is_broken = True
            return line.decode(self.encoding, errors="surrogateescape")

    def accept(self) -> None:
        """Begin the next row."""
        self.num_before += len(self.taken)
        self.num_chars = 0
        self.taken.clear()

    def put_back(self) -> str:
        """Begin the next row at the second line of this one; return the first."""
        first, *others = self.taken
        self.waiting.extendleft(reversed(others))
        self.taken = [first]
        self.accept()
        return first


def read_csv(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Read quoted cells over several lines."""
    csv.field_size_limit(sys.maxsize)
    taken = _RowLines(lines, source.encoding)
    reader = csv.reader(taken, strict=True)
    columns = list(source.columns)
    index = 0
    while True:
        first = taken.num_before + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not columns:
                raise DataError(
                    f"{lines.file_range.path} has no line of column names: {error} in line {first}"
                ) from error
            yield _fault_of(taken, first, str(error))
            continue
        if _swallows_rows(cells, columns, taken.taken):
            yield _fault_of(taken, first, _OPEN)
            continue
        taken.accept()
        if not columns:
            columns = cells
        elif taken.is_broken and SURROGATE.search(text := ",".join(cells)):
            yield Fault(first, f"not valid {source.encoding}", excerpt(text))
            index += 1
        elif cells:
            yield _item_of(cells, source, columns, f"{lines.file_range.name}:{index}", first)
            index += 1


def _fault_of(taken: _RowLines, first: int, error: str) -> Fault:
    reason = _OPEN if len(taken.taken) > 1 else f"broken CSV: {error}"
    return Fault(first, reason, excerpt(taken.put_back()))


def _swallows_rows(cells: list[str], columns: list[str], taken: list[str]) -> bool:
    """Tell whether a cell contains lines that are rows of their own.

    True if the row has another number of columns than the file and its second line has the right one, or if each of more than
    `MAX_ALIKE` inner lines has the right one: text in a cell does not do that by chance.
    """
    if len(taken) < 2 or len(columns) < 2:
        return False
    if len(cells) != len(columns):
        return _num_cells(taken[1]) == len(columns)
    return len(taken) - 2 > MAX_ALIKE and all(_num_cells(line) == len(columns) for line in taken[1:-1])


def _num_cells(line: str) -> int:
    try:
        return len(next(csv.reader([line], strict=True)))
    except csv.Error:
        return 0


def _item_of(cells: list[str], source: SourceConfig, columns: list[str], key: str, line: int) -> Item:
    reason = ""
    if len(cells) != len(columns):
        reason = f"expected {len(columns)} columns, got {len(cells)}"
    elif line == 1 and _is_header(cells, source.columns):
        reason = _HEADER
    return (
        Fault(line, reason, excerpt(",".join(cells)))
        if reason
        else Row(key, line, dict(zip(columns, cells, strict=True)))
    )


def _is_header(cells: Sequence[str], columns: Sequence[str]) -> bool:
    return [cell.strip().lower() for cell in cells] == [name.strip().lower() for name in columns]


def read_tsv(lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Split at tabs and nothing else: quotes in a tsv are text."""
    file_range = lines.file_range
    columns = list(source.columns) or _first_line(file_range, source).split("\t")

    def parse(line: bytes, number: int) -> object:
        text = line.rstrip(b"\r\n").decode(source.encoding)
        cells = text.split("\t")
        if len(cells) != len(columns):
            return Fault(number, f"expected {len(columns)} columns, got {len(cells)}", excerpt(text))
        if number == 1 and file_range.start == 0 and _is_header(cells, source.columns):
            return Fault(number, _HEADER, excerpt(text))
        return dict(zip(columns, cells, strict=True))

    header = not source.columns and file_range.start == 0
    for item in read_lines_as(parse, lines, source):
        if header and isinstance(item, Row):
            header = False
            continue
        yield item


def _first_line(file_range: FileRange, source: SourceConfig) -> str:
    for _, _, line in Lines(FileRange(file_range.path, file_range.name)):
        return line.rstrip(b"\r\n").decode(source.encoding, errors="replace")
    return ""
