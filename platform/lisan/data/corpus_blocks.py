"""Blocks of a corpus, one for each encoding task.

In: a corpus, a kind, a source, a split. Out: `Block`s, and the table of each. Always: where a block begins and ends depends on
the corpus alone, so that rows are the same for any number of workers.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.artifact import Artifact
from lisan.core.integrity import open_file
from lisan.core.storage import Location
from lisan.corpus.reader import shard_paths
from lisan.records.kinds import RecordKind

BLOCK_BYTES = 16 << 20
"Of a corpus file before compression: some seconds of one core."


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring records of the corpus, to become one shard of rows."""

    source: str
    index: int
    "Among the blocks of its source."
    path: str
    "Of a parquet file, below the corpus."
    group: int
    "Row group of the file, of which the block takes rows start..stop."
    start: int
    stop: int
    num_bytes: int
    "About, before compression."

    @property
    def shard(self) -> str:
        return f"shard-{self.index:05d}.arrow"


def plan_blocks(corpus: Artifact, kind: RecordKind, source: str, split: str) -> list[Block]:
    """Cut a source into blocks of about `BLOCK_BYTES`, by what its files say of themselves."""
    paths = shard_paths(corpus, kind, source, split)
    spans = (
        (path, group, *span)
        for path, footer in zip(paths, read_footers(corpus.location, paths), strict=True)
        for group in range(footer.num_row_groups)
        for span in _spans(footer.row_group(group))
    )
    return [Block(source, index, *span) for index, span in enumerate(spans)]


def read_footers(corpus: Location, paths: Iterable[str]) -> list[pq.FileMetaData]:
    """Return the facts of the files of a corpus, in order."""

    def read(path: str) -> pq.FileMetaData:
        file = corpus / path
        try:
            return pq.read_metadata(file.full_path, filesystem=file.file_system)
        except (OSError, pa.ArrowException):
            with open_file(corpus, path) as whole:  # checks its hash
                return pq.read_metadata(whole)

    with ThreadPoolExecutor(16) as threads:  # on an object store a footer is a journey
        return list(threads.map(read, paths))


def _spans(group: Any) -> Iterator[tuple[int, int, int]]:
    """Cut the rows of a row group into equal parts: (start, stop, bytes) of each."""
    num_parts = min(group.num_rows, -(-group.total_byte_size // BLOCK_BYTES))
    bounds = [group.num_rows * part // num_parts for part in range(num_parts + 1)] if num_parts else []
    for start, stop in pairwise(bounds):
        yield start, stop, group.total_byte_size // num_parts


def columns_of(kind: RecordKind) -> list[str] | None:
    """Return the columns that encoding needs: of documents the text alone."""
    return ["text"] if kind is RecordKind.documents else None


def read_block(corpus: Location, block: Block, kind: RecordKind) -> pa.Table:
    """Read the records of a block; of documents the text alone."""
    with pq.ParquetFile(open_file(corpus, block.path)) as parquet:
        table = parquet.read_row_group(block.group, columns=columns_of(kind), use_threads=False)
    return table.slice(block.start, block.stop - block.start)


CACHE_BYTES = 256 << 20
"Decoded row groups that a process keeps; blocks of one group come up again and again."

ShardSizes = Mapping[str, tuple[tuple[str, int], ...]]
"Files and their numbers of records, by source."


def list_shards(corpus: Artifact, kind: RecordKind, sources: Iterable[str], split: str) -> ShardSizes:
    """Return the files of the sources with their numbers of records."""
    paths = {source: shard_paths(corpus, kind, source, split) for source in sources}
    return {
        source: tuple(
            (path, footer.num_rows) for path, footer in zip(own, read_footers(corpus.location, own), strict=True)
        )
        for source, own in paths.items()
    }


@dataclass(frozen=True)
class RecordBlocks:
    """Random access to the records of a corpus, `block_records` neighbours at a time."""

    corpus: Location
    kind: RecordKind
    parts: ShardSizes
    block_records: int

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted(self.parts))

    @property
    def num_blocks(self) -> dict[str, int]:
        """Return the number of blocks of each source, alphabetically."""
        return {source: sum(self._blocks_of(size) for _, size in self.parts[source]) for source in self.sources}

    def num_records(self, source: str) -> int:
        return sum(size for _, size in self.parts[source])

    def reader(self) -> "BlockReader":
        return BlockReader(self)

    def _blocks_of(self, num_records: int) -> int:
        return -(-num_records // self.block_records)


class BlockReader:
    """Opens the files and caches the last decoded row group; one a process."""

    def __init__(self, blocks: RecordBlocks) -> None:
        self.blocks = blocks
        self._files = [(index, *part) for index, source in enumerate(blocks.sources) for part in blocks.parts[source]]
        self._starts = [0, *accumulate(blocks._blocks_of(size) for _, _, size in self._files)]
        self._open: dict[str, tuple[pq.ParquetFile, list[int]]] = {}
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def read(self, number: int) -> tuple[int, pa.Table]:
        """Return the index of the block's source and its records as a table."""
        file = bisect_right(self._starts, number) - 1
        source, path, size = self._files[file]
        start = (number - self._starts[file]) * self.blocks.block_records
        return source, self._slice(path, start, min(size, start + self.blocks.block_records))

    def _slice(self, path: str, start: int, stop: int) -> pa.Table:
        """Return records start..stop of a file, from the row groups they lie in."""
        starts = self._file(path)[1]
        found = []
        for group in range(bisect_right(starts, start) - 1, bisect_right(starts, stop - 1)):
            offset = starts[group]
            found.append(self._group(path, group).slice(max(0, start - offset), stop - max(start, offset)))
        return pa.concat_tables(found)

    def _file(self, path: str) -> tuple[pq.ParquetFile, list[int]]:
        if path not in self._open:
            file = pq.ParquetFile(open_file(self.blocks.corpus, path))
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._open[path] = file, [0, *accumulate(sizes)][:-1]
        return self._open[path]

    def _group(self, path: str, group: int) -> pa.Table:
        key = path, group
        if key not in self._groups:
            columns = columns_of(self.blocks.kind)
            table = self._file(path)[0].read_row_group(group, columns=columns, use_threads=False)
            self._groups[key] = table
            self._cached_bytes += table.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._groups) > 1:
                self._cached_bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]
