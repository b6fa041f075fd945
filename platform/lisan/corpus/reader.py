"""Reads a corpus: records, Arrow tables or the paths of its shards by kind, source and split.

Sources come in the order requested, rows in the order of their source. A source or split that is not in the corpus is a
DataError that lists the existing ones.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.artifact import Artifact
from lisan.core.errors import DataError
from lisan.core.integrity import open_file
from lisan.core.storage import Location
from lisan.records.kinds import RecordKind
from lisan.records.records import from_table

BATCH_ROWS = 1024


def list_sources(artifact: Artifact, kind: RecordKind) -> dict[str, str]:
    """Return the sources of a kind by name, each with its language label."""
    names = sorted({source for found, source, _, _ in _files(artifact) if found == kind})
    return {name: artifact.facts["sources"][name]["language"] for name in names}


def list_splits(artifact: Artifact, kind: RecordKind, source: str) -> tuple[str, ...]:
    """Return the splits that a source has, sorted."""
    return tuple(sorted({split for found, name, split, _ in _files(artifact) if (found, name) == (kind, source)}))


def shard_paths(artifact: Artifact, kind: RecordKind, source: str, split: str) -> list[str]:
    """Return the parquet files of a source and split in row order, as paths below the artifact."""
    paths = [path for found, name, part, path in _files(artifact) if (found, name, part) == (kind, source, split)]
    if not paths:
        _refuse(artifact, kind, source, split)
    return paths


def read_table(corpus: Location, path: str) -> pa.Table:
    """Read one file that `shard_paths` named, whole; `corpus` is the artifact's location."""
    with open_file(corpus, path) as file:
        return pq.read_table(file, partitioning=None, use_threads=False)


def read_tables(
    artifact: Artifact, kind: RecordKind, split: str = "train", sources: Iterable[str] | None = None
) -> Iterator[pa.Table]:
    """Yield tables of at most `BATCH_ROWS` rows in the schema of the kind."""
    for source in _choose_sources(artifact, kind, split, sources):
        for path in shard_paths(artifact, kind, source, split):
            with pq.ParquetFile(open_file(artifact.location, path)) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    yield pa.Table.from_batches([batch])


def read_records(
    artifact: Artifact, kind: RecordKind, split: str = "train", sources: Iterable[str] | None = None
) -> Iterator[Any]:
    """Yield records of a kind; `sources` null reads all that have the split."""
    for table in read_tables(artifact, kind, split, sources):
        yield from from_table(table, kind)


def _files(artifact: Artifact) -> Iterator[tuple[str, str, str, str]]:
    """Yield (kind, source, split, path) of every part that the manifest lists."""
    for path in sorted(artifact.manifest["files"]):
        parts = path.split("/")
        if len(parts) == 4 and parts[3].startswith("part-"):
            yield parts[0], parts[1], parts[2], path


def _choose_sources(artifact: Artifact, kind: RecordKind, split: str, sources: Iterable[str] | None) -> tuple[str, ...]:
    """Check every name before the first row is read."""
    if sources is None:
        chosen = tuple(name for name in list_sources(artifact, kind) if split in list_splits(artifact, kind, name))
        if not chosen:
            known = sorted({part for found, _, part, _ in _files(artifact) if found == kind})
            raise DataError(f"{artifact.ref} has no {kind} in split {split}; splits: {', '.join(known) or 'none'}")
        return chosen
    chosen = tuple(sources)
    for name in chosen:
        if split not in list_splits(artifact, kind, name):
            _refuse(artifact, kind, name, split)
    return chosen


def _refuse(artifact: Artifact, kind: RecordKind, source: str, split: str) -> None:
    splits = list_splits(artifact, kind, source)
    if splits:
        raise DataError(
            f"{artifact.ref} has no split {split} of {kind}/{source}; splits: {', '.join(splits)}; name one of them, leave "
            f"{source} out, or build the corpus with more validation_ratio or sources.{source}.split={split}"
        )
    names = ", ".join(list_sources(artifact, kind)) or "none"
    raise DataError(f"{artifact.ref} has no source {source} of {kind}; sources: {names}")
