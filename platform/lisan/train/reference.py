"""The reference pass of preference training: what the untrained policy thinks of every reply, computed once.

In: the model before its first step. Out: log-probabilities per row, kept beside the checkpoints. Always: a resumed
run reads what the first one computed; the loss needs no second model in memory.
"""

import json

import numpy as np
import torch
import torch.distributed as dist

from lisan.core.storage import Location
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.tokens.rows import RowReader, Rows
from lisan.train.worker import Worker

Reference = dict[int, tuple[float, ...]]


def score_reference(scorer: Scorer, reader: RowReader, micro_rows: int, folder: Location, worker: Worker) -> Reference:
    """Return the log-probability of every document of every row, by row id; all ranks return the same."""
    place = folder / "reference.json"
    known = place.exists()
    dist.barrier()
    if known:
        return {int(row): tuple(logps) for row, logps in json.loads(place.read_bytes()).items()}
    if worker.is_first:
        print(f"  scoring {len(reader):,} rows with the reference model", flush=True)
    mine = _score_share(scorer, reader, micro_rows, worker)
    shares: list[Reference] = [{} for _ in range(worker.world_size)]
    dist.all_gather_object(shares, mine)
    reference = {row: logps for share in shares for row, logps in share.items()}
    if worker.is_first:
        place.write_json(reference)
    return reference


@torch.no_grad()
def _score_share(scorer: Scorer, reader: RowReader, micro_rows: int, worker: Worker) -> Reference:
    """Score rows rank, rank + n, ...; short ranks repeat their last rows, because sharded weights are gathered in step."""
    scorer.eval()
    batch_rows = micro_rows * worker.world_size
    reference: Reference = {}
    for start in range(0, len(reader), batch_rows):
        row_ids = np.minimum(np.arange(start + worker.rank, start + batch_rows, worker.world_size), len(reader) - 1)
        rows = reader.read(row_ids)
        batch = collate(rows.input_ids, rows.labels, rows.doc_lens).to(worker.device)
        logps = sum_by_document(scorer(batch), batch).tolist()
        for row_id, lens in zip(rows.row_ids.tolist(), rows.doc_lens, strict=True):
            reference[row_id], logps = tuple(logps[: len(lens)]), logps[len(lens) :]
    return reference


def attach_reference(rows: Rows, reference: Reference) -> torch.Tensor:
    """Return the reference's log-probabilities of the documents of these rows, in order."""
    return torch.tensor([logp for row_id in rows.row_ids.tolist() for logp in reference[row_id]], dtype=torch.float32)
