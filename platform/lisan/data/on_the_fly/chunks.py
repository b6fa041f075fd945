"""Records by number: a corpus cut into chunks of neighbours, any of which can be read at any time.

In: the files of a corpus with their numbers of records. Out: the records of a chunk, as a table. Always: a chunk lies in one file;
its number is its place in the sources laid end to end in alphabetical order, so that a `Plan` can be made over chunks as
over rows. Neighbours are read together because a Parquet row group is decoded whole.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.artifact import Artifact
from lisan.core.integrity import open_file
from lisan.core.storage import Location
from lisan.corpus.reader import shard_paths
from lisan.data.corpus_blocks import columns_of, read_footers
from lisan.records.kinds import RecordKind

CACHE_BYTES = 256 << 20
"Decoded row groups that a process keeps; chunks of one group come up again and again."

Parts = Mapping[str, tuple[tuple[str, int], ...]]
"Files and their numbers of records, by source."


def list_parts(corpus: Artifact, kind: RecordKind, sources: Iterable[str], split: str) -> Parts:
    """Return the files of the sources with their numbers of records."""
    paths = {source: shard_paths(corpus, kind, source, split) for source in sources}
    return {
        source: tuple(
            (path, footer.num_rows) for path, footer in zip(own, read_footers(corpus.location, own), strict=True)
        )
        for source, own in paths.items()
    }


@dataclass(frozen=True)
class Chunks:
    """Random access to the records of a corpus, `chunk_records` neighbours at a time."""

    corpus: Location
    kind: RecordKind
    parts: Parts
    chunk_records: int

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted(self.parts))

    @property
    def num_chunks(self) -> dict[str, int]:
        """Return the number of chunks of each source, alphabetically."""
        return {source: sum(self._chunks_of(size) for _, size in self.parts[source]) for source in self.sources}

    def num_records(self, source: str) -> int:
        return sum(size for _, size in self.parts[source])

    def reader(self) -> "ChunkReader":
        return ChunkReader(self)

    def _chunks_of(self, num_records: int) -> int:
        return -(-num_records // self.chunk_records)


class ChunkReader:
    """Opens the files and keeps what was decoded last; one a process."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self._files = [(index, *part) for index, source in enumerate(chunks.sources) for part in chunks.parts[source]]
        self._starts = [0, *accumulate(chunks._chunks_of(size) for _, _, size in self._files)]
        self._open: dict[str, tuple[pq.ParquetFile, list[int]]] = {}
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def read(self, number: int) -> tuple[int, pa.Table]:
        """Return the index of the chunk's source and its records as a table."""
        file = bisect_right(self._starts, number) - 1
        source, path, size = self._files[file]
        start = (number - self._starts[file]) * self.chunks.chunk_records
        return source, self._slice(path, start, min(size, start + self.chunks.chunk_records))

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
            file = pq.ParquetFile(open_file(self.chunks.corpus, path))
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._open[path] = file, [0, *accumulate(sizes)][:-1]
        return self._open[path]

    def _group(self, path: str, group: int) -> pa.Table:
        key = path, group
        if key not in self._groups:
            columns = columns_of(self.chunks.kind)
            table = self._file(path)[0].read_row_group(group, columns=columns, use_threads=False)
            self._groups[key] = table
            self._cached_bytes += table.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._groups) > 1:
                self._cached_bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]
