"""A corpus in blocks: what one task encodes.

In: a corpus, a kind, a source, a split. Out: `Block`s, and the table of each. Always: where a block begins and ends depends on
the corpus alone, so that rows are the same whatever the number of workers.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
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
    """Return what the files of a corpus say of themselves, in order."""

    def read(path: str) -> pq.FileMetaData:
        file = corpus / path
        try:
            return pq.read_metadata(file.full_path, filesystem=file.file_system)
        except (OSError, pa.ArrowException):
            with open_file(corpus, path) as whole:  # whose hash says what is wrong
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
