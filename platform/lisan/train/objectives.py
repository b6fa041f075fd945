"""Objectives of training: CPT and SFT minimise cross-entropy, DPO, IPO and KTO a loss over preference pairs.

Every objective returns the *sum* of its loss and the number of targets of the sum; the loop divides by the global number of
targets over all ranks and micro batches. B rows, T tokens, P preference pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from lisan.data.rows import RowBatch
from lisan.model.score import Batch, Scorer, sum_by_document
from lisan.train.options import PreferenceLoss
from lisan.train.preference.reference import Reference, attach_reference


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    "Scalar: the loss summed over targets."
    num_targets: int
    row_nll: torch.Tensor
    "[B]: negative log-likelihood of each row's labels, for the loss per source."
    metrics: dict[str, torch.Tensor]
    "Sums over targets; the loop divides them by the number of targets."


class Objective(Protocol):
    """A loss over micro batches."""

    def count_targets(self, batch: Batch) -> int:
        """Return the targets of a micro batch."""

    def begin_step(self, scorer: Scorer, micro_batches: Sequence[RowBatch]) -> None:
        """Compute what the micro batches of a step share; a collective."""

    def process_batch(self, scorer: Scorer, batch: Batch, rows: RowBatch) -> Loss:
        """Return the loss of a micro batch: the tensors of `rows`, on the device of the model."""


@dataclass(frozen=True)
class CausalLm:
    """Cross-entropy of labelled tokens: CPT and SFT."""

    z_loss: float = 0.0

    def count_targets(self, batch: Batch) -> int:
        return count_labels(batch)

    def begin_step(self, scorer: Scorer, micro_batches: Sequence[RowBatch]) -> None:
        """Micro batches share nothing."""

    def process_batch(self, scorer: Scorer, batch: Batch, rows: RowBatch) -> Loss:  # noqa: ARG002
        return causal_lm(scorer, batch, self.z_loss)


@dataclass
class PreferencePairs:
    """A loss over preference pairs against the log-probabilities of a reference model: DPO, IPO and KTO."""

    reference: Reference
    terms: "Terms"
    estimate_kl: Callable[[Scorer, Sequence[RowBatch]], float] | None = None
    "For KTO."
    kl: float = 0.0
    "Of the current step."

    def count_targets(self, batch: Batch) -> int:
        return count_pairs(batch)

    def begin_step(self, scorer: Scorer, micro_batches: Sequence[RowBatch]) -> None:
        if self.estimate_kl is not None:
            self.kl = self.estimate_kl(scorer, micro_batches)

    def process_batch(self, scorer: Scorer, batch: Batch, rows: RowBatch) -> Loss:
        logps = attach_reference(rows, self.reference).to(batch.input_ids.device)
        return preference(scorer, batch, logps, self.terms, self.kl)


class Score(Protocol):
    """Log-probabilities of a batch, as `Scorer` returns them."""

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
    """Hyper-parameters of a preference loss, as in `DpoConfig`."""

    loss: PreferenceLoss
    beta: float
    label_smoothing: float
    length_normalised: bool


def preference(score: Score, batch: Batch, reference: torch.Tensor, terms: Terms, kl: float = 0.0) -> Loss:
    """Learn preferences against a reference model.

    `reference` holds log-probabilities [2P] of the documents under it, `kl` is KTO's estimate (see `preference/kto.py`).
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
