"""What training minimises: pure functions of a model and a batch.

In: a `Scorer`, a batch, for preferences also the reference's log-probabilities. Out: the *sum* of the loss, the
number of targets it is a sum over, and metrics. Always: the loop divides by the global number of targets, never by a
micro-batch's.

Shapes: B rows, T tokens, P preference pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lisan.model.score import Batch, sum_by_document


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    "Scalar: the loss summed over targets."
    num_targets: int
    row_nll: torch.Tensor
    "[B]: negative log-likelihood of each row's labels, for the loss per source."
    metrics: dict[str, torch.Tensor]
    "Sums over targets; the loop divides them by the number of targets."


Score = Callable[[Batch], torch.Tensor]


def count_labels(batch: Batch) -> int:
    """Return the targets of a causal LM batch."""
    return int((batch.labels[:, 1:] >= 0).sum())


def count_pairs(batch: Batch) -> int:
    """Return the targets of a preference batch: documents come as chosen, rejected, chosen, rejected, ..."""
    return len(batch.doc_numbers) // 2


def causal_lm(score: Score, batch: Batch) -> Loss:
    """Cross-entropy of every labelled token; CPT and SFT differ only in their labels."""
    logps_BT = score(batch)
    row_nll = -logps_BT.sum(1)
    return Loss(row_nll.sum(), count_labels(batch), row_nll.detach(), {})


def preference(score: Score, batch: Batch, reference: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> Loss:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7; smoothing after Mitchell 2023).

    `reference` holds log-probabilities [2P] of the documents under the reference model.
    """
    logps_BT = score(batch)
    policy = sum_by_document(logps_BT, batch)
    chosen, rejected = (policy - reference).reshape(-1, 2).unbind(1)
    margin_P = beta * (chosen - rejected)
    loss_P = -F.logsigmoid(margin_P) * (1 - label_smoothing) - F.logsigmoid(-margin_P) * label_smoothing
    metrics = {
        "accuracy": (margin_P > 0).float().sum(),
        "margin": margin_P.sum(),
        "chosen_reward": beta * chosen.sum(),
        "rejected_reward": beta * rejected.sum(),
    }
    return Loss(
        loss_P.sum(),
        count_pairs(batch),
        -logps_BT.sum(1).detach(),
        {name: value.detach() for name, value in metrics.items()},
    )
