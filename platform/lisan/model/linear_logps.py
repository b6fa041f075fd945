"""Computes the output layer and its log softmax tile by tile, so that the logits of all tokens never exist together.

A tile has `CHUNK_TOKENS` tokens and `CHUNK_PIECES` pieces. Logits of up to `KEPT_BYTES` are kept for the backward pass;
larger ones are computed again.

Shapes: N labelled tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

CHUNK_TOKENS = 2048
"Labelled tokens of a tile."
ROUND_TOKENS = 64
"The number of labelled tokens is padded to a multiple of this."
CHUNK_PIECES = {"cpu": 2048, "cuda": 65_536}
"""Pieces of a tile by device: on a CPU 2048 x 2048 x 4 bytes = 16 MB stay in the cache, where the softmax takes half the
time; a GPU is faster with few large products, 512 MB."""


KEPT_BYTES = 64 * 2**20
"Logits of up to this size are kept for the backward pass; larger ones are computed again."


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
    """Yield the first piece and the rows of each tile of the output matrix, in `dtype`."""
    size = CHUNK_PIECES[weight_VD.device.type]
    return ((first, weight_VD[first : first + size].to(dtype)) for first in range(0, len(weight_VD), size))


def _make_scratch(hidden: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """Return fp32 memory for a tile; allocating it anew for each tile takes a CPU as long as the computation."""
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
    """Return logps and log Z of tokens, tile by tile over the vocabulary; append the logits to `kept`."""
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
    """Return log p(target) and log Z for each of N hidden states, fp32; holds one tile, or all logits up to KEPT_BYTES.

    With `softcap` c the logits are c tanh(x / c), as Gemma 2 has them.
    """
    # oneDNN caches a bf16 kernel of some megabytes for every shape: padding keeps the number of shapes small.
    num = len(targets_N)
    rest = -num % ROUND_TOKENS
    padded = nn.functional.pad(hidden_ND, (0, 0, 0, rest)), weight_VD, nn.functional.pad(targets_N, (0, rest)), softcap
    logps_N, log_z_N = _LinearLogps.apply(*padded)
    return logps_N[:num], log_z_N[:num]
