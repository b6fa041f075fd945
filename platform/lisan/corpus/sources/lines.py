"""Lines of a file range, and the results of reading them: a row, a fault, or the end of the range.

A line belongs whole to the range in which it starts.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lisan.corpus.config import SourceConfig
from lisan.corpus.sources.compressed import DamageError, open_file, read_lines
from lisan.corpus.sources.read_tasks import FileRange


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    "Unique in the source: file and position."
    line: int
    "From 1, counted from the start of the range."
    value: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used; it goes to quarantine."""

    line: int
    reason: str
    text: str
    is_damage: bool = False
    "True for a damaged file: an unknown number of rows cannot be decompressed."


class BadRowError(Exception):
    """A row that does not fit its layout; the message is the reason in quarantine."""


class DroppedRowError(Exception):
    """A well-formed row without use; the message is the reason counted in the manifest."""


@dataclass(frozen=True, slots=True)
class RangeEnd:
    """Number of lines of a range; later ranges of the same file add it to their line numbers."""

    num_lines: int


Item = Row | Fault | RangeEnd
SURROGATE = re.compile("[\ud800-\udfff]")


class Lines:
    """Iterates over (number from 1, byte offset, line); drops a byte order mark; sets `damage` for a damaged file."""

    def __init__(self, file_range: FileRange) -> None:
        self.file_range = file_range
        self.damage: Fault | None = None

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        file_range = self.file_range
        with open_file(file_range.path) as stream:
            offset = number = 0
            if file_range.start:
                stream.seek(file_range.start - 1)
                offset = file_range.start - 1 + len(stream.readline())
            if file_range.end is not None and offset >= file_range.end:
                return
            try:
                for line in read_lines(stream, file_range.path, offset):
                    number += 1
                    yield number, offset, line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
                    offset += len(line)
                    if file_range.end is not None and offset >= file_range.end:
                        return
            except DamageError as error:
                self.damage = Fault(number + 1, f"{error}; the {number:,} lines before are read", "", is_damage=True)


def decode(line: bytes, encoding: str, number: int) -> str | Fault:
    """Return the line as text without its end, or a fault if it is not in this encoding."""
    try:
        return line.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError as error:
        return _undecodable(line, encoding, number, error)


def _undecodable(line: bytes, encoding: str, number: int, error: UnicodeDecodeError) -> Fault:
    return Fault(number, f"not valid {encoding} at byte {error.start} of the line", excerpt(line))


def excerpt(value: bytes | str) -> str:
    """Return the first 2,000 characters of a row for quarantine."""
    text = value[:2000].decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else value[:2000]
    return SURROGATE.sub("?", text)


def read_lines_as(parse: Callable[[bytes, int], object], lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Yield `parse(line, line number)` of every line that is not blank: a value, or a Fault."""
    number, name = 0, lines.file_range.name
    for number, offset, line in lines:
        if line.isspace():
            continue
        try:
            value = parse(line, number)
        except UnicodeDecodeError as error:
            value = _undecodable(line, source.encoding, number, error)
        yield value if isinstance(value, Fault) else Row(f"{name}:{offset}", number, value)
    yield RangeEnd(number)
