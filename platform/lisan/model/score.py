"""`score`, one of the two verbs of a model: the log-probability of every labelled token.

In: a `Batch` of packed rows. Out: logps_BT, natural log, 0 where nothing is labelled. Always: documents of one row do
not see each other, positions restart with each document, and the logits of the vocabulary exist for a tile of tokens and
pieces at a time; only those below `KEPT_BYTES` stay for the backward pass. Training, evaluation and the DPO reference pass
all use it.

Shapes: B rows, T tokens, N labelled tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.attention.by_document import DocumentLayout, lay_side_by_side
from lisan.model.attention.packed import attention_inputs, use_attention
from lisan.model.attention.rope import use_rope_by_document
from lisan.model.config import Attention

CHUNK_TOKENS = 2048
"Labelled tokens whose logits exist at a time."
ROUND_TOKENS = 64
"Their number is filled up to a multiple of this."
CHUNK_PIECES = {"cpu": 2048, "cuda": 65_536}
"""Pieces of the vocabulary whose logits exist at a time, by device: on a CPU 2048 x 2048 x 4 bytes = 16 MB stay in the
cache, where the softmax costs half of what it does through memory; a GPU wants few large products, 512 MB."""


KEPT_BYTES = 64 * 2**20
"Up to which the logits stay for the backward pass, which computes larger ones again."


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
    layout: DocumentLayout
    "Where attention finds the documents."

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


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
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        documents=torch.from_numpy(documents),
        positions=torch.from_numpy(positions),
        doc_numbers=torch.tensor(doc_numbers),
        layout=lay_side_by_side(doc_lens, length),
    )


class Scorer(nn.Module):
    """A causal LM that answers with log-probabilities; the unit that is sharded, trained and evaluated."""

    def __init__(self, model: Any, attention: Attention = Attention.sdpa, exact_logits: bool = False) -> None:
        """With `exact_logits` the output product is computed in fp32 whatever the type of the weights.

        In bf16 a logit of 20 is rounded to a multiple of 0.125, and different answers come out equal. Training goes without: its
        mean over many tokens loses nothing.

        Raises ConfigError when the model cannot use this attention, or keep its positions apart.
        """
        super().__init__()
        use_attention(model, attention)
        use_rope_by_document(model)
        self.model = model
        self.exact_logits = exact_logits
        self._scale, self._softcap = read_head(model)

    def forward(self, batch: Batch, with_log_z: bool = False) -> torch.Tensor:
        """Return logps_BT: the log-probability of each labelled token given those before it in its document.

        With `with_log_z` return [2, B, T]: also log Z, the logarithm of the sum that the softmax divides by.
        """
        hidden_BTD = self.model.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            **attention_inputs(self.model, batch.documents, batch.layout),
        ).last_hidden_state
        is_scored = batch.labels[:, 1:] >= 0
        targets_N = batch.labels[:, 1:][is_scored]
        weight_VD = self.model.get_output_embeddings().weight
        hidden_ND = hidden_BTD[:, :-1][is_scored]
        if self.exact_logits:
            hidden_ND = hidden_ND.float()
        if self._scale != 1:
            hidden_ND = hidden_ND * self._scale
        logps_N, log_z_N = linear_logps(hidden_ND, weight_VD, targets_N, self._softcap)
        if with_log_z:
            return torch.stack([_spread(logps_N, is_scored), _spread(log_z_N, is_scored)])
        return _spread(logps_N, is_scored)


def read_head(model: Any) -> tuple[float, float]:
    """Return what the logits are multiplied by and their soft cap, 0 for none; ConfigError for an output layer with a bias."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(f"the output layer of {type(model).__name__} has a bias; choose a model without one")
    config = model.config.get_text_config()
    # Cohere's models multiply, Granite's divide.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None) or 0.0


def _spread(values_N: torch.Tensor, is_scored: torch.Tensor) -> torch.Tensor:
    """Put the values of labelled tokens back to their places [B, T]; the first place of a row is never scored."""
    values_BT = values_N.new_zeros(len(is_scored), is_scored.shape[1] + 1)
    values_BT[:, 1:] = values_BT[:, 1:].masked_scatter(is_scored, values_N)
    return values_BT


def sum_by_document(logps_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the summed log-probability of each document of the batch, in order."""
    sums = logps_BT.new_zeros(int(batch.documents.max()) + 1)
    return sums.index_add(0, batch.documents.flatten(), logps_BT.flatten())[batch.doc_numbers]


class _LinearLogps(torch.autograd.Function):
    """log softmax(hidden W^T)[target] and log Z, tile by tile; many logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, softcap: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logps_N, log_z_N = hidden_ND.new_empty(2, len(targets_N), dtype=torch.float32)
        num_bytes = len(hidden_ND) * len(weight_VD) * hidden_ND.element_size()
        keeps = num_bytes <= KEPT_BYTES and any(ctx.needs_input_grad)
        kept: list[torch.Tensor] | None = [] if keeps else None
        ctx.logits = kept
        for part in _parts(len(targets_N)):
            logps_N[part], log_z_N[part] = _score_part(hidden_ND[part], weight_VD, targets_N[part], softcap, kept)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, logps_N, log_z_N)
        ctx.softcap = softcap
        return logps_N, log_z_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden_ND, weight_VD, targets_N, logps_N, log_z_N = ctx.saved_tensors
        # d logp / d logits = onehot(target) - softmax, d log Z / d logits = softmax
        of_softmax_N = grads[1] - grads[0]
        of_target_N = (of_softmax_N * logps_N.exp() + grads[0]).to(hidden_ND.dtype)
        grad_hidden = torch.zeros_like(hidden_ND, dtype=torch.float32)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        kept = iter(ctx.logits or ())
        for part in _parts(len(targets_N)):
            hidden, targets = hidden_ND[part], targets_N[part]
            scratch = _make_scratch(hidden, weight_VD)
            for first, weight in _tiles(weight_VD, hidden.dtype):
                logits = _cap(hidden @ weight.T, ctx.softcap) if ctx.logits is None else next(kept)
                softmax = torch.sub(logits, log_z_N[part, None], out=_take(scratch, logits)).exp_()
                grad_logits = softmax.mul_(of_softmax_N[part, None]).to(hidden.dtype)
                rows = ((targets >= first) & (targets < first + len(weight))).nonzero()[:, 0]
                grad_logits[rows, targets[rows] - first] = of_target_N[part][rows]
                if ctx.softcap:  # d (c tanh(x / c)) / dx = 1 - tanh(x / c)^2
                    grad_logits *= 1 - (logits / ctx.softcap).square()
                grad_hidden[part] += grad_logits @ weight
                if grad_weight is not None:
                    grad_weight[first : first + len(weight)] += grad_logits.T @ hidden
        of_weight = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        return grad_hidden.to(hidden_ND.dtype), of_weight, None, None


def _cap(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _parts(num: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK_TOKENS) for start in range(0, num, CHUNK_TOKENS))


def _tiles(weight_VD: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first piece and the rows of each part of the output matrix, in a type."""
    size = CHUNK_PIECES[weight_VD.device.type]
    return ((first, weight_VD[first : first + size].to(dtype)) for first in range(0, len(weight_VD), size))


def _make_scratch(hidden: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """Return memory for a tile in fp32: new memory for every one costs a CPU as much as what is computed in it."""
    size = min(CHUNK_PIECES[hidden.device.type], len(weight_VD))
    return hidden.new_empty(len(hidden) * size, dtype=torch.float32)


def _take(scratch: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return scratch[: logits.numel()].view(logits.shape)


def _score_part(
    hidden: torch.Tensor,
    weight_VD: torch.Tensor,
    targets: torch.Tensor,
    softcap: float,
    kept: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logps and log Z of tokens, one part of the vocabulary after the other; add its logits to `kept`."""
    target_logits = hidden.new_empty(len(hidden), dtype=torch.float32)
    log_z = torch.full_like(target_logits, -torch.inf)
    scratch = _make_scratch(hidden, weight_VD)
    for first, weight in _tiles(weight_VD, hidden.dtype):
        logits = _cap(hidden @ weight.T, softcap)
        if kept is not None:
            kept.append(logits)
        largest = logits.amax(1).float()
        log_z = torch.logaddexp(
            log_z, torch.sub(logits, largest[:, None], out=_take(scratch, logits)).exp_().sum(1).log_() + largest
        )
        rows = ((targets >= first) & (targets < first + len(weight))).nonzero()[:, 0]
        target_logits[rows] = logits[rows, targets[rows] - first].float()
    return target_logits - log_z, log_z


def linear_logps(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, softcap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(target) and log Z for each of N hidden states, fp32; memory is one tile of logits, or all below KEPT_BYTES.

    With `softcap` c the logits are c tanh(x / c), as Gemma 2 has them.
    """
    # oneDNN compiles and keeps a kernel for every shape that it meets in bf16, some megabytes each: few shapes, little memory.
    num = len(targets_N)
    rest = -num % ROUND_TOKENS
    padded = nn.functional.pad(hidden_ND, (0, 0, 0, rest)), weight_VD, nn.functional.pad(targets_N, (0, rest)), softcap
    logps_N, log_z_N = _LinearLogps.apply(*padded)
    return logps_N[:num], log_z_N[:num]
