"""Rows on storage: fixed length, grouped by source, read by arithmetic.

In: packed rows. Out: Arrow files `rows/<source>/shard-00000.arrow` and, for any set of row ids, a `Rows` batch.
Always: a row id is its place in the sources laid end to end in alphabetical order, so it means the same on every
machine.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lisan.core.artifact import Artifact
from lisan.core.storage import Location
from lisan.tokens.labels import Ids
from lisan.tokens.packing import Row, lay_out


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of rows in plan order. R rows of T tokens."""

    row_ids: npt.NDArray[np.int64]
    "[R]"
    input_ids: Ids
    "[R, T]"
    labels: Ids
    "[R, T], IGNORE_INDEX where nothing is trained"
    doc_lens: tuple[tuple[int, ...], ...]
    "Lengths of the documents of each row; what they leave of T is padding."

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> "Rows":
        """Return rows start..stop, a micro batch."""
        return Rows(
            self.row_ids[start:stop],
            self.input_ids[start:stop],
            self.labels[start:stop],
            self.doc_lens[start:stop],
        )


def row_schema(context_length: int) -> pa.Schema:
    fixed = pa.list_(pa.int32(), context_length)
    return pa.schema(
        [
            ("input_ids", fixed),
            ("labels", fixed),
            ("doc_lens", pa.list_(pa.int32())),
        ]
    )


def write_rows(location: Location, rows: Iterable[Row], context_length: int, pad_id: int) -> dict[str, int]:
    """Write rows as one Arrow file of batches of 64; return counts of rows, tokens and targets."""
    schema = row_schema(context_length)
    counts = {"rows": 0, "tokens": 0, "targets": 0, "documents": 0}
    location.file_system.create_dir(location.full_path.rpartition("/")[0], recursive=True)
    with location.file_system.open_output_stream(location.full_path) as sink, pa.ipc.new_file(sink, schema) as writer:
        for group in _groups(rows, 64):
            laid = [lay_out(row, context_length, pad_id) for row in group]
            labels = np.stack([labels for _, labels in laid])
            writer.write_batch(
                _batch(np.stack([ids for ids, _ in laid]), labels, [row.doc_lens for row in group], schema)
            )
            counts["rows"] += len(group)
            counts["tokens"] += sum(sum(row.doc_lens) for row in group)
            counts["targets"] += int((labels >= 0).sum())
            counts["documents"] += sum(len(row.examples) for row in group)
    return counts


def _batch(input_ids: Ids, labels: Ids, doc_lens: list[list[int]], schema: pa.Schema) -> pa.RecordBatch:
    size = input_ids.shape[1]
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(input_ids.ravel()), size),
        pa.FixedSizeListArray.from_arrays(pa.array(labels.ravel()), size),
        pa.array(doc_lens, schema.field("doc_lens").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class RowReader:
    """Random access to the rows of a `tokens` artifact; shards on an object store are fetched once, then mapped."""

    def __init__(self, artifact: Artifact) -> None:
        facts = artifact.facts
        self.context_length: int = facts["context_length"]
        self.sources: tuple[str, ...] = tuple(sorted(facts["sources"]))
        self.languages = {source: facts["sources"][source]["language"] for source in self.sources}
        self.num_rows = {source: int(facts["sources"][source]["rows"]) for source in self.sources}
        shards = [
            (source, name, rows) for source in self.sources for name, rows in facts["sources"][source]["shards"].items()
        ]
        self._names = [f"rows/{source}/{name}" for source, name, _ in shards]
        self._starts = [0, *accumulate(rows for _, _, rows in shards)]
        self._location = artifact.location
        self._tables: dict[int, pa.Table] = {}
        self._source_ends = list(accumulate(self.num_rows[source] for source in self.sources))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def first_row(self, source: str) -> int:
        index = self.sources.index(source)
        return self._source_ends[index] - self.num_rows[source]

    def source_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index into `sources` of each row."""
        return np.searchsorted(self._source_ends, row_ids, side="right").astype(np.int64)

    def read_table(self, row_ids: Sequence[int] | npt.NDArray[np.int64]) -> pa.Table:
        """Return the rows with their ids as an Arrow table, in the order asked for."""
        slices = []
        for row_id in row_ids:
            shard = bisect_right(self._starts, row_id) - 1
            slices.append(self._shard(shard).slice(int(row_id) - self._starts[shard], 1))
        table = pa.concat_tables(slices).combine_chunks()
        return table.append_column("row_id", pa.array(np.asarray(row_ids, np.int64)))

    def read(self, row_ids: Sequence[int] | npt.NDArray[np.int64]) -> Rows:
        return rows_from_table(self.read_table(row_ids))

    def _shard(self, index: int) -> pa.Table:
        if index not in self._tables:
            place = self._location / self._names[index]
            if place.is_local:
                source: Any = pa.memory_map(place.full_path)
            else:
                source = pa.BufferReader(place.read_bytes())
            self._tables[index] = pa.ipc.open_file(source).read_all()
        return self._tables[index]


def rows_from_table(table: pa.Table) -> Rows:
    """Turn the Arrow form that travels into arrays."""
    length = table.schema.field("input_ids").type.list_size
    return Rows(
        row_ids=table["row_id"].to_numpy(),
        input_ids=_matrix(table["input_ids"], length),
        labels=_matrix(table["labels"], length),
        doc_lens=tuple(map(tuple, table["doc_lens"].to_pylist())),
    )


def _matrix(column: pa.ChunkedArray, length: int) -> Ids:
    array = column.combine_chunks()
    values = array.flatten() if not isinstance(array, pa.ChunkedArray) else pa.concat_arrays(array.chunks).flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), np.int32).reshape(-1, length)
