"""The reference pass of preference training: log-probabilities of every reply under the untrained policy, computed once.

They are saved as a table beside the checkpoints or, by `score_preferences`, in an artifact. Both use `score_rows` on the batches
of `Worker.deal`. The loss needs no second model in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from lisan.cluster.config import Precision
from lisan.cluster.worker import Worker
from lisan.core.artifact import Artifact
from lisan.core.errors import DataError
from lisan.core.integrity import open_file
from lisan.core.storage import Location
from lisan.data.rows import RowBatch, RowReader
from lisan.model.score import Scorer, collate, reshard, sum_by_document

RowIds = npt.NDArray[np.int64]

REFERENCE = "reference.parquet"
MISMATCHED = "mismatched"
"Folder of the pass over the same rows with exchanged replies, which KTO needs."
SCHEMA = pa.schema([("row_id", pa.int64()), ("logps", pa.list_(pa.float32()))])
PROBED_ROWS = 4
AWAY_RATIO, AWAY_NATS = 0.02, 0.5
"""How far a reply's log-probability may be from what was stored: bfloat16 and another kernel move it by some thousandths,
another model by whole nats."""


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of documents, rows in the order of their ids. R rows, D documents."""

    starts: RowIds
    "[R + 1]; row r has documents starts[r] to starts[r + 1]"
    logps: npt.NDArray[np.float32]
    "[D]"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, row_id: int) -> npt.NDArray[np.float32]:
        return self.logps[self.starts[row_id] : self.starts[row_id + 1]]


def score_reference(scorer: Scorer, reader: RowReader, micro_rows: int, folder: Location, worker: Worker) -> Reference:
    """Return the log-probability of every document of every row and keep it in `folder`; all ranks return the same."""
    place = folder / REFERENCE
    # A run that goes on on other machines may compute in another precision; the model has not moved yet and scores again.
    known = place.exists() and _read_mark(place) == _mark(worker)
    dist.barrier()
    if known:
        return read_reference(folder, REFERENCE)
    if worker.is_first:
        print(f"  scoring {len(reader):,} rows with the reference model", flush=True)
    batches = [row_ids for row_ids, _ in worker.deal(len(reader), micro_rows)]
    mine = score_rows(scorer, reader, batches, worker.device)
    shares: list[pa.Table] = [mine] * worker.world_size
    dist.all_gather_object(shares, mine)
    table = join_scores(shares)
    if worker.is_first:
        write_scores(table.replace_schema_metadata(_mark(worker)), place)
    return make_reference(table)


def _mark(worker: Worker) -> dict[bytes, bytes]:
    return {b"precision": worker.precision.encode()}


def _read_mark(place: Location) -> Any:
    return pq.read_schema(place.full_path, filesystem=place.file_system).metadata


@torch.no_grad()
def score_rows(scorer: Scorer, reader: RowReader, batches: Iterable[RowIds], device: str) -> pa.Table:
    """Return the log-probabilities of the documents of these rows, in `SCHEMA`."""
    scorer.eval()
    row_ids: list[int] = []
    found: list[npt.NDArray[np.float32]] = []
    for batch_ids in batches:
        rows = reader.read(batch_ids)
        batch = collate(rows.input_ids, rows.labels, rows.doc_lens).to(device)
        ends = np.cumsum([len(lens) for lens in rows.doc_lens])[:-1]
        logps = sum_by_document(scorer(batch), batch).float().cpu().numpy()
        row_ids += rows.row_ids.tolist()
        found += np.split(logps, ends)
    reshard(scorer)
    return pa.table({"row_id": row_ids, "logps": found}, SCHEMA)


def join_scores(shares: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of several tables by row id, each once."""
    table = pa.concat_tables(shares)
    _, first = np.unique(table["row_id"].to_numpy(), return_index=True)
    return table.take(pa.array(first))


def write_scores(table: pa.Table, place: Location) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    place.write_bytes(sink.getvalue().to_pybytes())


def read_scores(place: Location) -> pa.Table:
    return pq.read_table(place.full_path, filesystem=place.file_system)


def read_reference(folder: Location, path: str) -> Reference:
    with open_file(folder, path) as file:
        return make_reference(pq.read_table(file))


def make_reference(table: pa.Table) -> Reference:
    """Index a table that holds every row once, in order."""
    assert np.array_equal(table["row_id"].to_numpy(), np.arange(table.num_rows))
    logps = table["logps"].combine_chunks()
    return Reference(logps.offsets.to_numpy().astype(np.int64), logps.flatten().to_numpy())


def attach_reference(rows: RowBatch, reference: Reference) -> torch.Tensor:
    """Return the reference's log-probabilities of the documents of these rows, in order."""
    return torch.from_numpy(np.concatenate([reference.of(row_id) for row_id in rows.row_ids.tolist()]))


def check_precision(scores: Artifact, precision: Precision) -> None:
    """Refuse scores that were computed in another precision than the one given; DataError."""
    scored = scores.facts.get("precision", scores.config["precision"])  # before there was auto, the config said it
    if scored != precision:
        raise DataError(
            f"reference={scores.ref} was scored in {scored} and this run computes in {precision}; set precision={scored}, "
            "score_preferences again, or leave reference out"
        )


def check_reference(scorer: Scorer, reader: RowReader, reference: Reference, scores: Artifact, device: str) -> None:
    """Refuse scores that this model, before its first step, does not confirm on the first rows.

    Refs are checked by their manifests before a worker starts; this finds a folder or hub id whose weights have changed.
    """
    probed = np.arange(min(PROBED_ROWS, len(reader)))
    table = score_rows(scorer, reader, [probed], device)
    ours = np.concatenate(table["logps"].to_numpy())
    theirs = np.concatenate([reference.of(row_id) for row_id in probed.tolist()])
    if len(reference) != len(reader) or ours.shape != theirs.shape:
        raise DataError(f"{scores.ref} scores other rows than there are now; score them again with another version")
    far = np.abs(ours - theirs) > AWAY_NATS + AWAY_RATIO * np.abs(theirs)
    if far.any():
        worst = int(far.argmax())
        raise DataError(
            f"{scores.ref} holds a log-probability of {theirs[worst]:.2f} where the model to be trained gives {ours[worst]:.2f}: "
            "another model scored them; score again with this one, or leave reference out"
        )
