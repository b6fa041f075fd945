"""Writes the shards of a corpus: staged tables without duplicates, to parquet under `<kind>/<source>/<split>/`.

Rows keep the order of their source, row groups stay small enough to stream, and a shard depends on the data alone.
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
"Columns of staged tables beside their schema."


def open_writer(location: Location, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        location.full_path,
        schema,
        filesystem=location.file_system,
        compression="zstd",
        use_dictionary=["source", "language"] if "source" in schema.names else False,
    )


def read_keys(staging: Location, source: str, index: int, number: int) -> pa.Table:
    """Return the keys of a read task; `number` is its number among all tasks."""
    location = staging / source / f"{index:05d}.parquet"
    table = pq.read_table(
        location.full_path,
        filesystem=location.file_system,
        use_threads=False,
        columns=["_key_high", "_key_low", "_length", "id"],
    )
    rows = np.arange(table.num_rows, dtype=np.int64)
    columns = [*table.columns, pa.array(np.full(table.num_rows, number, np.int32)), pa.array(rows)]
    return pa.table(columns, schema=KEYS)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file per split, made of adjacent read tasks of a source."""

    source: str
    kind: RecordKind
    index: int
    tasks: tuple[int, ...]
    removed: Mapping[int, np.ndarray]
    "Rows of each task that another document of the corpus duplicates."


def write_shard(shard: Shard, dedup: bool, staging: Location, target: Location) -> dict[str, Any]:
    """Write the surviving rows of some read tasks to `<kind>/<source>/<split>/part-<index>.parquet`; return its counts."""
    schema = SCHEMAS[shard.kind]
    counts: dict[str, Counter[str]] = {}
    writers: dict[str, ShardWriter] = {}
    duplicates = 0
    for index in shard.tasks:
        kept, lost = _keep_rows(shard, index, dedup, staging)
        duplicates += lost
        for split in sorted(set(kept["_split"].to_pylist())):
            table = kept.filter(pc.equal(kept["_split"], split))
            location = target / shard.kind / shard.source / split / f"part-{shard.index:05d}.parquet"
            if split not in writers:
                writers[split] = ShardWriter(location, schema)
            writers[split].write(table.select(schema.names))
            counts.setdefault(split, Counter()).update(
                records=table.num_rows, bytes=pc.sum(table["_bytes"]).as_py(), words=pc.sum(table["_words"]).as_py()
            )
    for writer in writers.values():
        writer.close()
    return {
        "source": shard.source,
        "duplicates": duplicates,
        "splits": {split: dict(counts[split]) for split in counts},
    }


def _keep_rows(shard: Shard, index: int, dedup: bool, staging: Location) -> tuple[pa.Table, int]:
    location = staging / shard.source / f"{index:05d}.parquet"
    table = pq.read_table(location.full_path, filesystem=location.file_system, use_threads=False)
    keep = np.ones(table.num_rows, bool)
    if dedup and shard.kind is RecordKind.documents:
        keep[find_removals(read_keys(staging, shard.source, index, 0))["row"].to_numpy()] = False
        keep[shard.removed.get(index, np.zeros(0, np.int64))] = False
    return table.filter(pa.array(keep)), int((~keep).sum())


class ShardWriter:
    """Gathers tables into row groups of `ROW_GROUP_BYTES`."""

    def __init__(self, location: Location, schema: pa.Schema) -> None:
        location.parent.make()
        self.writer = open_writer(location, schema)
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
