"""What a source is, where its files are, and how they are cut into pieces of work.

In: a `SourceConfig`. Out: `Piece`s, each a run of files or byte ranges that one task reads (`rows`), the same on every
machine and for any number of workers. Always: what can be known to be wrong before reading (a pattern without a file, a
file in another encoding) is one DataError here. `build` is the caller.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import DataError
from lisan.corpus.compressed import compression_of
from lisan.corpus.files import file_size, find_files, plain_path, shared_folder
from lisan.corpus.records import RecordKind

PIECE_BYTES = 32 << 20
"Large enough that a task costs more than its start, small enough that one file keeps every worker busy."


class SourceFormat(StrEnum):
    """How rows lie in a file. All but parquet may be compressed: gzip, bz2, xz, zstd, lz4."""

    jsonl = "jsonl"
    parquet = "parquet"
    csv = "csv"
    tsv = "tsv"
    text = "text"
    json = "json"
    aligned = "aligned"
    microworld = "microworld"


class TextUnit(StrEnum):
    """What one row of a text file is."""

    line = "line"
    block = "block"
    file = "file"


class Layout(StrEnum):
    """How a row becomes records; `lisan.corpus.layouts` has one function for each."""

    text = "text"
    markdown = "markdown"
    gutenberg = "gutenberg"
    headline = "headline"
    parallel = "parallel"
    prompt = "prompt"
    alpaca = "alpaca"
    seed_task = "seed_task"
    messages = "messages"
    tree = "tree"
    squad = "squad"
    preference = "preference"
    dialogue_preference = "dialogue_preference"
    letters = "letters"
    arabicmmlu = "arabicmmlu"
    true_false = "true_false"
    choices = "choices"
    belebele = "belebele"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    format: SourceFormat = SourceFormat.jsonl
    path: tuple[str, ...] = ()
    "Files, folders or glob patterns, local or URIs; read in the order of their names."
    pair_path: tuple[str, ...] = ()
    "The same number of files in `pair_language`, line for line (format aligned)."
    kind: RecordKind = RecordKind.documents
    layout: Layout = Layout.text
    "How a row becomes records."
    fields: dict[str, str] = field(default_factory=dict)
    "Names that the layout's fields have in these files, where they differ: {text: body}."
    columns: tuple[str, ...] = ()
    "Column names of a csv or tsv file without a header; empty: the first line has them."
    unit: TextUnit = TextUnit.line
    "What one document of a text file is: a line, a block, the whole file."
    separator: str = ""
    "The line that stands between two blocks; empty: a blank line."
    language: str = ""
    "BCP 47-like label of what is inside: en, ar, ary, arz, ary-Latn; of `first` in layout parallel."
    pair_language: str = ""
    "Label of `second` in layout parallel."
    contrast: bool = False
    "Make preferences of conversations: chosen is the real answer, rejected the answer of another conversation."
    world: str = ""
    "Which source of the micro-world (format microworld)."
    encoding: str = "utf-8"
    split: str | None = None
    "Put every record in this split; null: train or validation by hash, and validation for questions."
    max_records: int | None = None
    "Stop after so many rows."
    licence: str = ""
    "Under which the text may be used; kept in the manifest."


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
