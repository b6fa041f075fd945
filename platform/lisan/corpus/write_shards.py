"""From read pieces to the finished files of a corpus.

In: staged tables and the rows that duplicate another document. Out: parquet under `<kind>/<source>/<split>/` and counts
by split. Always: rows keep the order of their source, row groups stay small enough to stream, and what a part holds
depends on the data alone. `chain` stages with `open_writer`, `build` runs `write_part` in this process or as Ray tasks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lisan.core.storage import Location
from lisan.corpus.dedup.exact import KEYS, find_removals
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS

SLICE_ROWS = 1024
ROW_GROUP_BYTES = 8 << 20
"In memory. Rows made while training read documents at random places, and every read decodes a whole group (8 MB: 10-20 ms)."

EXTRA = [
    ("_split", pa.string()),
    ("_bytes", pa.int64()),
    ("_words", pa.int64()),
    ("_length", pa.int64()),
    ("_key_high", pa.uint64()),
    ("_key_low", pa.uint64()),
]
"Columns that read pieces have beside their schema, until parts are written."


def open_writer(place: Location, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        place.full_path,
        schema,
        filesystem=place.file_system,
        compression="zstd",
        use_dictionary=["source", "language"] if "source" in schema.names else False,
    )


def read_keys(staging: Location, source: str, index: int, number: int) -> pa.Table:
    """Return the keys of a read piece; `number` is what the piece is called among all pieces."""
    place = staging / source / f"{index:05d}.parquet"
    table = pq.read_table(
        place.full_path,
        filesystem=place.file_system,
        use_threads=False,
        columns=["_key_high", "_key_low", "_length", "id"],
    )
    rows = np.arange(table.num_rows, dtype=np.int64)
    columns = [*table.columns, pa.array(np.full(table.num_rows, number, np.int32)), pa.array(rows)]
    return pa.table(columns, schema=KEYS)


@dataclass(frozen=True, slots=True)
class Part:
    """One file a split of the finished corpus, made of pieces that stand next to each other."""

    source: str
    kind: RecordKind
    index: int
    pieces: tuple[int, ...]
    removed: Mapping[int, np.ndarray]
    "Rows of each piece that another document of the corpus duplicates."


def write_part(part: Part, dedup: bool, staging: Location, target: Location) -> dict[str, Any]:
    """Write what is left of some pieces to `<kind>/<source>/<split>/part-<index>.parquet`; return its counts."""
    schema = SCHEMAS[part.kind]
    counts: dict[str, Counter[str]] = {}
    writers: dict[str, PartWriter] = {}
    duplicates = 0
    for index in part.pieces:
        kept, lost = _keep_rows(part, index, dedup, staging)
        duplicates += lost
        for split in sorted(set(kept["_split"].to_pylist())):
            table = kept.filter(pc.equal(kept["_split"], split))
            place = target / part.kind / part.source / split / f"part-{part.index:05d}.parquet"
            if split not in writers:
                writers[split] = PartWriter(place, schema)
            writers[split].write(table.select(schema.names))
            counts.setdefault(split, Counter()).update(
                records=table.num_rows, bytes=pc.sum(table["_bytes"]).as_py(), words=pc.sum(table["_words"]).as_py()
            )
    for writer in writers.values():
        writer.close()
    return {"source": part.source, "duplicates": duplicates, "splits": {split: dict(counts[split]) for split in counts}}


def _keep_rows(part: Part, index: int, dedup: bool, staging: Location) -> tuple[pa.Table, int]:
    place = staging / part.source / f"{index:05d}.parquet"
    table = pq.read_table(place.full_path, filesystem=place.file_system, use_threads=False)
    keep = np.ones(table.num_rows, bool)
    if dedup and part.kind is RecordKind.documents:
        keep[find_removals(read_keys(staging, part.source, index, 0))["row"].to_numpy()] = False
        keep[part.removed.get(index, np.zeros(0, np.int64))] = False
    return table.filter(pa.array(keep)), int((~keep).sum())


class PartWriter:
    """Gathers tables into row groups of `ROW_GROUP_BYTES`."""

    def __init__(self, place: Location, schema: pa.Schema) -> None:
        place.parent.make()
        self.writer = open_writer(place, schema)
        self.waiting: list[pa.Table] = []
        self.num_bytes = 0

    def write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, SLICE_ROWS):
            rows = table.slice(start, SLICE_ROWS)
            if self.num_bytes + rows.nbytes > ROW_GROUP_BYTES:
                self._flush()
            self.waiting.append(rows)
            self.num_bytes += rows.nbytes

    def _flush(self) -> None:
        if self.waiting:
            table = pa.concat_tables(self.waiting)
            self.writer.write_table(table, row_group_size=table.num_rows)
        self.waiting, self.num_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self.writer.close()
