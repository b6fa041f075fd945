"""Finds the files of a source and groups them into read tasks of files or byte ranges.

The tasks are the same on every machine and for any number of workers. A pattern without a file is a DataError.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.sources.compressed import compression_of
from lisan.corpus.sources.files import file_size, find_files, plain_path, shared_folder

TASK_BYTES = 32 << 20
"Large enough to outweigh the start of a task, small enough that one file keeps every worker busy."


@dataclass(frozen=True, slots=True)
class FileRange:
    """A file, or the lines of it that start in [start, end); for parquet the row groups."""

    path: str
    name: str
    "Path below the folder that all files of the source share: part of record ids, the same on every machine."
    start: int = 0
    end: int | None = None
    pair_path: str = ""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """File ranges of one source that one task reads."""

    source: str
    index: int
    ranges: tuple[FileRange, ...]


def plan_read_tasks(name: str, source: SourceConfig, task_bytes: int = TASK_BYTES) -> list[ReadTask]:
    """Plan tasks of about `task_bytes`; a source that is generated or capped by `max_records` is one task."""
    if source.format is SourceFormat.microworld:
        return [ReadTask(name, 0, ())]
    ranges = [
        file_range for whole, size in _list_ranges(name, source) for file_range in _cut(whole, size, source, task_bytes)
    ]
    limit = float("inf") if source.max_records is not None else task_bytes
    groups: list[list[FileRange]] = []
    room = 0.0
    for file_range, size in ranges:
        if not groups or room < size:
            groups.append([])
            room = limit
        groups[-1].append(file_range)
        room -= size
    return [ReadTask(name, index, tuple(group)) for index, group in enumerate(groups)]


def _list_ranges(name: str, source: SourceConfig) -> list[tuple[FileRange, int]]:
    paths = find_files(f"sources.{name}.path", source.path, source.format)
    pairs = find_files(f"sources.{name}.pair_path", source.pair_path, source.format) or [""] * len(paths)
    if len(pairs) != len(paths):
        raise DataError(
            f"sources.{name}: path matches {len(paths)} files and pair_path {len(pairs)}; each needs its counterpart"
        )
    folder = shared_folder(source.path)
    names = [posixpath.relpath(plain_path(path), folder) for path in paths]
    whole = [FileRange(path, below, pair_path=pair) for path, below, pair in zip(paths, names, pairs, strict=True)]
    return [(file_range, file_size(file_range.path)) for file_range in whole]


def _cut(file_range: FileRange, size: int, source: SourceConfig, task_bytes: int) -> Iterator[tuple[FileRange, int]]:
    lines = source.format in (SourceFormat.jsonl, SourceFormat.tsv) or (
        source.format is SourceFormat.text and source.unit is TextUnit.line
    )
    if not lines or source.max_records is not None or size <= task_bytes or compression_of(file_range.path):
        yield file_range, size
        return
    for start in range(0, size, task_bytes):
        end = min(start + task_bytes, size)
        yield FileRange(file_range.path, file_range.name, start, end if end < size else None), end - start
