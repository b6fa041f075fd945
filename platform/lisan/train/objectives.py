"""What training minimises: pure functions of a model and a batch.

In: a `Scorer`, a batch, for preferences also the reference's log-probabilities. Out: the *sum* of the loss, the
number of targets it is a sum over, and metrics. Always: the loop divides by the global number of targets, never by a
micro-batch's.

Shapes: B rows, T tokens, P preference pairs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from lisan.model.score import Batch, sum_by_document
from lisan.train.options import PreferenceLoss


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    "Scalar: the loss summed over targets."
    num_targets: int
    row_nll: torch.Tensor
    "[B]: negative log-likelihood of each row's labels, for the loss per source."
    metrics: dict[str, torch.Tensor]
    "Sums over targets; the loop divides them by the number of targets."


class Score(Protocol):
    """What the loss asks of a model; `Scorer` answers it."""

    def __call__(self, batch: Batch, /, with_log_z: bool = False) -> torch.Tensor: ...


def count_labels(batch: Batch) -> int:
    """Return the targets of a causal LM batch."""
    return int((batch.labels[:, 1:] >= 0).sum())


def count_pairs(batch: Batch) -> int:
    """Return the targets of a preference batch: documents come as chosen, rejected, chosen, rejected, ..."""
    return len(batch.doc_numbers) // 2


def causal_lm(score: Score, batch: Batch, z_loss: float = 0.0) -> Loss:
    """Cross-entropy of every labelled token; CPT and SFT differ only in their labels.

    `z_loss` weighs the square of log Z (PaLM, Chowdhery et al. 2022, section 5), which keeps logits from drifting.
    """
    if not z_loss:
        logps_BT = score(batch)
        row_nll = -logps_BT.sum(1)
        return Loss(row_nll.sum(), count_labels(batch), row_nll.detach(), {})
    logps_BT, log_z_BT = score(batch, with_log_z=True)
    row_nll = -logps_BT.sum(1)
    z_term = z_loss * log_z_BT.square().sum()
    metrics = {"z_loss": z_term.detach(), "log_z": log_z_BT.detach().sum()}
    return Loss(row_nll.sum() + z_term, count_labels(batch), row_nll.detach(), metrics)


@dataclass(frozen=True)
class Terms:
    """What a preference loss is computed with; `DpoConfig` has the same fields and their meaning."""

    loss: PreferenceLoss
    beta: float
    label_smoothing: float
    length_normalised: bool


def preference(score: Score, batch: Batch, reference: torch.Tensor, terms: Terms, kl: float = 0.0) -> Loss:
    """Learn preferences against a reference model.

    `reference` holds log-probabilities [2P] of the documents under it, `kl` is KTO's estimate (see `kto_anchor`).
    """
    logps_BT = score(batch)
    ratio = sum_by_document(logps_BT, batch) - reference
    is_scored = torch.zeros_like(logps_BT)
    is_scored[:, 1:] = batch.labels[:, 1:] >= 0
    per_token = (ratio / sum_by_document(is_scored, batch).clamp(min=1)).reshape(-1, 2)
    chosen_P, rejected_P = (per_token if terms.length_normalised else ratio.reshape(-1, 2)).unbind(1)
    metrics = {
        "accuracy": (chosen_P > rejected_P).float().sum(),
        "margin": terms.beta * (chosen_P - rejected_P).sum(),
        "chosen_reward": terms.beta * chosen_P.sum(),
        "rejected_reward": terms.beta * rejected_P.sum(),
        # Nats per token that the policy has moved from the reference. The replies are not the policy's own, so this
        # is the KL divergence only as long as the two are close, and may be negative.
        "chosen_kl": per_token[:, 0].sum(),
        "rejected_kl": per_token[:, 1].sum(),
    }
    if terms.loss is PreferenceLoss.kto:
        metrics["kl"] = chosen_P.new_tensor(kl * len(chosen_P))
    return Loss(
        _pair_losses(chosen_P, rejected_P, terms, kl).sum(),
        count_pairs(batch),
        -logps_BT.sum(1).detach(),
        {name: value.detach() for name, value in metrics.items()},
    )


def _pair_losses(chosen_P: torch.Tensor, rejected_P: torch.Tensor, terms: Terms, kl: float) -> torch.Tensor:
    """Return the loss of every pair, from the log-ratios of policy and reference."""
    match terms.loss:
        case PreferenceLoss.ipo:
            # Azar et al. 2023, eq. 17
            return (chosen_P - rejected_P - 1 / (2 * terms.beta)).square()
        case PreferenceLoss.kto:
            # Ethayarajh et al. 2024, eq. 8, both weights 1; the mean of the two examples of a pair
            gain, pain = terms.beta * (chosen_P - kl), terms.beta * (kl - rejected_P)
            return 1 - (gain.sigmoid() + pain.sigmoid()) / 2
        case PreferenceLoss.sigmoid:
            # Rafailov et al. 2023, eq. 7; smoothing after Mitchell 2023; by length as in Tulu 3, section 5.1.2
            margin_P = terms.beta * (chosen_P - rejected_P)
            smoothing = terms.label_smoothing
            return -F.logsigmoid(margin_P) * (1 - smoothing) - F.logsigmoid(-margin_P) * smoothing
