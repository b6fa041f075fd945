"""Lines of a span, and the three things that readers make of them.

In: a `Span`. Out: lines with their number and offset. Always: a line that starts in the span is in it, whole.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lisan.corpus.config import SourceConfig
from lisan.corpus.sources.compressed import DamageError, open_file, read_lines
from lisan.corpus.sources.find import Span


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
    is_damage: bool = False
    "Whether it stands for an unknown number of rows that cannot be decompressed."


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """How many lines a span had: what a later span of the same file adds to its line numbers."""

    num_lines: int


Item = Row | Fault | SpanEnd
SURROGATE = re.compile("[\ud800-\udfff]")


class Lines:
    """Iterates over (number from 1, byte offset, line); a byte order mark is dropped. `damage` is set where a file ends badly."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.damage: Fault | None = None

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        span = self.span
        with open_file(span.path) as stream:
            offset = number = 0
            if span.start:
                stream.seek(span.start - 1)
                offset = span.start - 1 + len(stream.readline())
            if span.end is not None and offset >= span.end:
                return
            try:
                for line in read_lines(stream, span.path, offset):
                    number += 1
                    yield number, offset, line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
                    offset += len(line)
                    if span.end is not None and offset >= span.end:
                        return
            except DamageError as error:
                self.damage = Fault(number + 1, f"{error}; the {number:,} lines before are read", "", is_damage=True)


def decode(line: bytes, encoding: str, number: int) -> str | Fault:
    """Return the line as text without its end, or the fault that it is not in this encoding."""
    try:
        return line.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError as error:
        return _undecodable(line, encoding, number, error)


def _undecodable(line: bytes, encoding: str, number: int, error: UnicodeDecodeError) -> Fault:
    return Fault(number, f"not valid {encoding} at byte {error.start} of the line", excerpt(line))


def excerpt(value: bytes | str) -> str:
    """Return what quarantine keeps of a row: enough to find it again."""
    text = value[:2000].decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else value[:2000]
    return SURROGATE.sub("?", text)


def read_lines_as(parse: Callable[[bytes, int], Any], lines: Lines, source: SourceConfig) -> Iterator[Item]:
    """Yield what `parse(line, line number)` makes of every line that is not blank: a value, or a Fault."""
    number, name = 0, lines.span.name
    for number, offset, line in lines:
        if line.isspace():
            continue
        try:
            value = parse(line, number)
        except UnicodeDecodeError as error:
            value = _undecodable(line, source.encoding, number, error)
        yield value if isinstance(value, Fault) else Row(f"{name}:{offset}", number, value)
    yield SpanEnd(number)
