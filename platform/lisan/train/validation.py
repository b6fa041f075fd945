"""Validation: losses on held-out rows during training.

The rows are those of another tokens artifact, usually encoded with `split=validation`: the same rows every time, shared by the
ranks. Training stops for a forward pass over `num_rows` rows; it changes no weight, no random number and no row order. With
`asynchronous` a process of its own measures instead (`checkpoint_validation.py`).
"""

from collections.abc import Mapping

import numpy as np
import torch

from lisan.cluster.worker import Worker
from lisan.core.errors import DataError
from lisan.data.rows import RowReader
from lisan.model.score import Scorer, collate, reshard
from lisan.train.metrics.run_log import RunLog
from lisan.train.objectives import causal_lm

VALIDATION_LOSS = "validation/loss"


@torch.no_grad()
def measure_losses(
    scorer: Scorer, reader: RowReader, num_rows: int, micro_rows: int, worker: Worker
) -> dict[str, float]:
    """Return `validation/loss`, and the same per source and language; a collective, with the same result on every rank."""
    row_ids = np.unique(np.linspace(0, len(reader) - 1, min(num_rows, len(reader))).round().astype(np.int64))
    sums = torch.zeros(2, len(reader.sources), dtype=torch.float64)
    scorer.eval()
    for places, is_own in worker.deal(len(row_ids), micro_rows):
        rows = reader.read(row_ids[places])
        batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
        nll = causal_lm(scorer, batch.to(worker.device)).row_nll.double().cpu()
        counted = torch.from_numpy(is_own)
        source = torch.from_numpy(reader.source_of(rows.row_ids))[counted]
        sums[0].index_add_(0, source, nll[counted])
        sums[1].index_add_(0, source, (batch.labels[:, 1:] >= 0).sum(1).double()[counted])
    reshard(scorer)
    scorer.train()
    return _name_losses(reader, *worker.sum_over_data(sums).numpy())


def log_losses(log: RunLog | None, step: int, losses: Mapping[str, float]) -> None:
    """Log and print validation losses."""
    of_steps = ""
    if log is not None:
        log.log_metrics(losses, step)
        of_steps = f"/{log.num_steps}"
    print(f"  step {step}{of_steps} validation loss {losses[VALIDATION_LOSS]:.4f}", flush=True)


def _name_losses(reader: RowReader, nll: np.ndarray, num_targets: np.ndarray) -> dict[str, float]:
    if not num_targets.sum():
        raise DataError("the held-out rows have no trained token; raise validation.num_rows or encode other ones")
    languages = np.array([reader.languages[source] for source in reader.sources])
    groups = {
        VALIDATION_LOSS: np.ones(len(languages), bool),
        **{f"{VALIDATION_LOSS}/{source}": np.arange(len(languages)) == i for i, source in enumerate(reader.sources)},
        **{f"validation/language_loss/{name}": languages == name for name in sorted(set(languages))},
    }
    counted = {name: members for name, members in groups.items() if num_targets[members].sum()}
    return {name: float(nll[members].sum() / num_targets[members].sum()) for name, members in counted.items()}
