"""Rows on storage: fixed length, grouped by source, read by arithmetic.

In: packed rows. Out: Arrow files `rows/<source>/shard-00000.arrow` and, for any set of row ids, a `Rows` batch.
Always: a row id is its place in the sources laid end to end in alphabetical order, so it means the same on every
machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lisan.core.artifact import Artifact
from lisan.core.integrity import fetch_file
from lisan.core.storage import Location
from lisan.data.packing import PackedRow, lay_out_rows
from lisan.tokenizer.labels import Ids

BATCH_ROWS = 64
"Rows of a batch on storage, all but the last."
HIGHEST_ID = "highest_id"
"Fact of a tokens artifact, and of each source: the highest token id in its rows; a model needs a row for it."
KNOWN_BATCHES = 4096
"Batches a reader keeps open: some megabytes, for the rows themselves stay in the mapped file."


@dataclass(frozen=True, slots=True)
class RowBatch:
    """A batch of rows in plan order. R rows of T tokens."""

    row_ids: npt.NDArray[np.int64]
    "[R]"
    input_ids: Ids
    "[R, T]"
    labels: Ids
    "[R, T], IGNORE_INDEX where nothing is trained"
    doc_lens: tuple[tuple[int, ...], ...]
    "Lengths of the documents of each row; the rest of T is padding."

    def __len__(self) -> int:
        return len(self.row_ids)

    def part(self, start: int, stop: int) -> "RowBatch":
        """Return rows start..stop, a micro batch."""
        return RowBatch(
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


def write_rows(location: Location, rows: Iterable[PackedRow], context_length: int) -> dict[str, int]:
    """Write rows as one Arrow file of batches; return counts of rows, tokens and targets, and the highest id."""
    schema = row_schema(context_length)
    counts = {"rows": 0, "tokens": 0, "targets": 0, "documents": 0, HIGHEST_ID: 0}
    location.parent.make()
    waiting = iter(rows)
    with location.file_system.open_output_stream(location.full_path) as sink, pa.ipc.new_file(sink, schema) as writer:
        while group := list(islice(waiting, BATCH_ROWS)):
            input_ids, labels = lay_out_rows(group, context_length)
            doc_lens = [row.doc_lens for row in group]
            writer.write_batch(_batch(input_ids, labels, doc_lens, schema))
            counts["rows"] += len(group)
            counts["tokens"] += sum(map(sum, doc_lens))
            counts["targets"] += int((labels >= 0).sum())
            counts["documents"] += sum(map(len, doc_lens))
            counts[HIGHEST_ID] = max(counts[HIGHEST_ID], int(input_ids.max()))
    return counts


def lay_out_table(rows: Sequence[PackedRow], row_ids: Sequence[int], context_length: int) -> pa.Table:
    """Return rows that lie nowhere in the form that travels, with their ids."""
    input_ids, labels = lay_out_rows(rows, context_length)
    batch = _batch(input_ids, labels, [row.doc_lens for row in rows], row_schema(context_length))
    return pa.Table.from_batches([batch]).append_column("row_id", pa.array(row_ids, pa.int64()))


def _batch(input_ids: Ids, labels: Ids, doc_lens: list[list[int]], schema: pa.Schema) -> pa.RecordBatch:
    size = input_ids.shape[1]
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(input_ids.ravel()), size),
        pa.FixedSizeListArray.from_arrays(pa.array(labels.ravel()), size),
        pa.array(doc_lens, schema.field("doc_lens").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class RowReader:
    """Random access to the rows of a `tokens` artifact; shards on an object store are fetched once, then mapped."""

    def __init__(self, artifact: Artifact) -> None:
        facts = artifact.facts
        self.context_length: int = facts["context_length"]
        self.sources: tuple[str, ...] = tuple(sorted(facts["sources"]))
        self.languages = {source: facts["sources"][source]["language"] for source in self.sources}
        self.num_rows = {source: int(facts["sources"][source]["rows"]) for source in self.sources}
        self.num_tokens = {source: int(facts["sources"][source]["tokens"]) for source in self.sources}
        shards = [
            (source, name, rows) for source in self.sources for name, rows in facts["sources"][source]["shards"].items()
        ]
        self._names = [f"rows/{source}/{name}" for source, name, _ in shards]
        self._starts = [0, *accumulate(rows for _, _, rows in shards)]
        self._artifact, self._location = artifact, artifact.location
        self._shard = cache(self._open_shard)
        self._batch = lru_cache(maxsize=KNOWN_BATCHES)(self._read_batch)
        self._source_ends = list(accumulate(self.num_rows[source] for source in self.sources))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type["RowReader"], tuple[Artifact]]:
        """Travel as the artifact; the files are opened where they are read."""
        return type(self), (self._artifact,)

    def first_row(self, source: str) -> int:
        index = self.sources.index(source)
        return self._source_ends[index] - self.num_rows[source]

    def source_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index into `sources` of each row."""
        return np.searchsorted(self._source_ends, row_ids, side="right").astype(np.int64)

    def read_table(self, row_ids: Sequence[int] | npt.NDArray[np.int64]) -> pa.Table:
        """Return the rows with their ids as an Arrow table, in the order asked for."""
        wanted = np.asarray(row_ids, np.int64)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        places = wanted - np.asarray(self._starts)[shards]
        rows = [self._row(*place) for place in zip(shards.tolist(), places.tolist(), strict=True)]
        table = pa.Table.from_batches([pa.concat_batches(rows)])
        return table.append_column("row_id", pa.array(wanted))

    def read(self, row_ids: Sequence[int] | npt.NDArray[np.int64]) -> RowBatch:
        return rows_from_table(self.read_table(row_ids))

    def _row(self, shard: int, place: int) -> pa.RecordBatch:
        """Return one row of a shard without a copy. A slice of the whole shard would look through all of its batches."""
        number, offset = divmod(place, self._batch(shard, 0).num_rows)
        return self._batch(shard, number).slice(offset, 1)

    def _read_batch(self, shard: int, number: int) -> pa.RecordBatch:
        """Return a batch of a shard; all but the last have as many rows as the first."""
        return self._shard(shard).get_batch(number)

    def _open_shard(self, index: int) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(fetch_file(self._location, self._names[index]))))


def rows_from_table(table: pa.Table) -> RowBatch:
    """Turn the Arrow form that travels into arrays."""
    length = table.schema.field("input_ids").type.list_size
    return RowBatch(
        row_ids=table["row_id"].to_numpy(),
        input_ids=_matrix(table["input_ids"], length),
        labels=_matrix(table["labels"], length),
        doc_lens=tuple(map(tuple, table["doc_lens"].to_pylist())),
    )


def _matrix(column: pa.ChunkedArray, length: int) -> Ids:
    array = column.combine_chunks()
    values = array.flatten() if not isinstance(array, pa.ChunkedArray) else pa.concat_arrays(array.blocks).flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), np.int32).reshape(-1, length)
