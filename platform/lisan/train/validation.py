"""Validation: the loss on held-out rows while a model trains.

In: a model in training and the rows of another tokens artifact, usually encoded with `split=validation`. Out: the mean loss
per token, of each source and of each language. Always: the same rows every time, shared by the ranks; training does not
notice: no weight, no random number and no row of it changes. Training stops meanwhile, for a forward pass of `num_rows` rows,
unless `asynchronous` lets `Validator` do it in a process of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch

from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import Run
from lisan.model.parallel import reshard
from lisan.model.score import Scorer, collate
from lisan.tokens.rows import RowReader
from lisan.train.objectives import causal_lm
from lisan.train.worker import Worker

VALIDATION_LOSS = "validation/loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    tokens: str | None = None
    "tokens/name@version of held-out rows, encoded with split=validation; null validates nothing."
    num_rows: int = 256
    "Rows, spread evenly over the artifact; all of them when it has fewer."
    every: int = 0
    "Steps between validations, the last step always; 0 validates with every checkpoint."
    asynchronous: bool = False
    """Whether a process beside the workers validates every checkpoint while they train on. It holds the whole model, on a GPU of
    its own where the workers have GPUs (not yet run on one); the next checkpoint waits where it is slower than they are."""

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.every < 0:
            raise ConfigError(f"validation needs num_rows >= 1 and every >= 0, got {self.num_rows} and {self.every}")
        if self.tokens is None and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ConfigError(
                "validation.num_rows, every and asynchronous have no effect without validation.tokens; set it"
            )
        if self.asynchronous and self.every:
            raise ConfigError(
                f"validation.every={self.every} has no effect with asynchronous=true, which validates every checkpoint; set it to "
                "0 and loop.checkpoint_every to what you want"
            )


@torch.no_grad()
def measure_losses(
    scorer: Scorer, reader: RowReader, num_rows: int, micro_rows: int, worker: Worker
) -> dict[str, float]:
    """Return `validation/loss`, and the same per source and language; every rank calls it and gets all of them."""
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


def log_losses(run: Run, step: int, num_steps: int, losses: Mapping[str, float]) -> None:
    run.log_metrics(losses, step)
    print(f"  step {step}/{num_steps} validation loss {losses[VALIDATION_LOSS]:.4f}", flush=True)


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
