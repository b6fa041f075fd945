"""Finds the files of a source and cuts them into pieces of work.

In: a `SourceConfig`. Out: `Piece`s, each a run of files or byte ranges that one task reads (`rows`), the same on every machine
and for any number of workers. Always: what can be known to be wrong before reading (a pattern without a file, a file in another
encoding) is one DataError here.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.sources.compressed import compression_of
from lisan.corpus.sources.files import file_size, find_files, plain_path, shared_folder

PIECE_BYTES = 32 << 20
"Large enough that a task costs more than its start, small enough that one file keeps every worker busy."


@dataclass(frozen=True, slots=True)
class Span:
    """A file, or the lines of it that start in [start, end); for parquet the row groups."""

    path: str
    name: str
    "Path below the folder that all files of the source share: part of record ids, the same on every machine."
    start: int = 0
    end: int | None = None
    pair_path: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one task reads."""

    source: str
    index: int
    spans: tuple[Span, ...]


def plan_pieces(name: str, source: SourceConfig, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Cut a source into pieces of about `piece_bytes`; one piece when it is generated or capped by `max_records`."""
    if source.format is SourceFormat.microworld:
        return [Piece(name, 0, ())]
    spans = [span for whole, size in _list_spans(name, source) for span in _cut(whole, size, source, piece_bytes)]
    limit = float("inf") if source.max_records is not None else piece_bytes
    groups: list[list[Span]] = []
    room = 0.0
    for span, size in spans:
        if not groups or room < size:
            groups.append([])
            room = limit
        groups[-1].append(span)
        room -= size
    return [Piece(name, index, tuple(group)) for index, group in enumerate(groups)]


def _list_spans(name: str, source: SourceConfig) -> list[tuple[Span, int]]:
    paths = find_files(f"sources.{name}.path", source.path, source.format)
    pairs = find_files(f"sources.{name}.pair_path", source.pair_path, source.format) or [""] * len(paths)
    if len(pairs) != len(paths):
        raise DataError(
            f"sources.{name}: path matches {len(paths)} files and pair_path {len(pairs)}; each needs its counterpart"
        )
    folder = shared_folder(source.path)
    names = [posixpath.relpath(plain_path(path), folder) for path in paths]
    whole = [Span(path, below, pair_path=pair) for path, below, pair in zip(paths, names, pairs, strict=True)]
    return [(span, file_size(span.path)) for span in whole]


def _cut(span: Span, size: int, source: SourceConfig, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    lines = source.format in (SourceFormat.jsonl, SourceFormat.tsv) or (
        source.format is SourceFormat.text and source.unit is TextUnit.line
    )
    if not lines or source.max_records is not None or size <= piece_bytes or compression_of(span.path):
        yield span, size
        return
    for start in range(0, size, piece_bytes):
        end = min(start + piece_bytes, size)
        yield Span(span.path, span.name, start, end if end < size else None), end - start
