"""`score`, one of the two verbs of a model: the log-probability of every labelled token.

In: a `Batch` of packed rows. Out: logps_BT, natural log, 0 where nothing is labelled. Always: documents of one row do
not see each other, positions restart with each document, and the logits of the vocabulary never exist for all tokens
at once. Training, evaluation and the DPO reference pass all use it.

Shapes: B rows, T tokens, N labelled tokens, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CHUNK_TOKENS = 2048
"Labelled tokens whose logits exist at a time: 2048 x 128k x 4 bytes = 1 GB."


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors."""

    input_ids: torch.Tensor
    "[B, T]"
    labels: torch.Tensor
    "[B, T]; negative where nothing is labelled"
    documents: torch.Tensor
    "[B, T]; number of the document within the batch, padding of a row has one of its own"
    positions: torch.Tensor
    "[B, T]; place within the document"
    doc_numbers: torch.Tensor
    "[documents]; the numbers of real documents, row by row"

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(
            *(
                tensor.to(device, non_blocking=True)
                for tensor in (self.input_ids, self.labels, self.documents, self.positions, self.doc_numbers)
            )
        )


def collate(input_ids: Any, labels: Any, doc_lens: Sequence[Sequence[int]]) -> Batch:
    """Make a batch from arrays [B, T] and the lengths of the documents of each row.

    Worked example: T = 5, doc_lens = [[2, 2]] gives documents [[0, 0, 1, 1, 2]] and positions [[0, 1, 0, 1, 0]].
    """
    num_rows, length = input_ids.shape
    documents = np.empty((num_rows, length), np.int64)
    positions = np.empty((num_rows, length), np.int64)
    doc_numbers: list[int] = []
    number = 0
    for row, lens in enumerate(doc_lens):
        sizes = [*lens, length - sum(lens)]
        documents[row] = np.repeat(np.arange(number, number + len(sizes)), sizes)
        positions[row] = np.concatenate([np.arange(size) for size in sizes])
        doc_numbers += range(number, number + len(lens))
        number += len(sizes)
    arrays = (
        input_ids.astype(np.int64),
        labels.astype(np.int64),
        documents,
        positions,
        np.array(doc_numbers, np.int64),
    )
    return Batch(*map(torch.from_numpy, arrays))


class Scorer(nn.Module):
    """A causal LM that answers with log-probabilities; the unit that is sharded, trained and evaluated."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logps_BT: the log-probability of each labelled token given those before it in its document."""
        mask = document_mask(batch.documents)
        hidden_BTD = self.model.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        is_scored = batch.labels[:, 1:] >= 0
        targets_N = batch.labels[:, 1:][is_scored]
        logps_N = linear_logps(hidden_BTD[:, :-1][is_scored], self.model.get_output_embeddings().weight, targets_N)
        logps_BT = logps_N.new_zeros(batch.labels.shape)
        logps_BT[:, 1:] = logps_BT[:, 1:].masked_scatter(is_scored, logps_N)
        return logps_BT


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """Return the mask [B, 1, T, T], true where a query may look at a key: same document, not later."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


def sum_by_document(logps_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the summed log-probability of each document of the batch, in order."""
    sums = logps_BT.new_zeros(int(batch.documents.max()) + 1)
    return sums.index_add(0, batch.documents.flatten(), logps_BT.flatten())[batch.doc_numbers]


class _LinearLogps(torch.autograd.Function):
    """log softmax(hidden W^T)[target], chunk by chunk, with the logits computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        if not len(targets_N):
            return hidden_ND.new_zeros(0, dtype=torch.float32)
        return torch.cat(
            [
                -F.cross_entropy((hidden @ weight_VD.T).float(), targets, reduction="none")
                for hidden, targets in zip(hidden_ND.split(CHUNK_TOKENS), targets_N.split(CHUNK_TOKENS), strict=True)
            ]
        )

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = (
            torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
            if ctx.needs_input_grad[1]
            else None
        )
        start = 0
        for hidden, targets, grad in zip(
            *(tensor.split(CHUNK_TOKENS) for tensor in (hidden_ND, targets_N, grads[0])), strict=True
        ):
            # d logp / d logits = onehot(target) - softmax
            grad_logits = (hidden @ weight_VD.T).float().softmax(-1).mul_(-grad[:, None])
            grad_logits[torch.arange(len(targets), device=targets.device), targets] += grad
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[start : start + len(targets)] = grad_logits @ weight_VD
            if grad_weight is not None:
                grad_weight += (grad_logits.T @ hidden).float()
            start += len(targets)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None


def linear_logps(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return log p(target) for each of N hidden states, fp32; memory is one chunk of logits, not N x V."""
    result: torch.Tensor = _LinearLogps.apply(hidden_ND, weight_VD, targets_N)
    return result
