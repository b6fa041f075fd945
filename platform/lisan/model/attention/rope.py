"""Rotary positions with length-dependent frequencies (longrope, dynamic NTK), computed for each document.

Transformers chooses the frequencies of a whole batch by its largest position, so that one long document would change the scores
of all others.

Shapes: B rows, T tokens.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lisan.core.errors import ConfigError


def use_rope_by_document(model: nn.Module) -> None:
    """Make length-dependent rotary positions of a model follow each document; does nothing for other models.

    ConfigError when only some layers of a model have such positions.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict) and any(map(_depends_on_length, kind.values())):
            raise ConfigError(
                f"{type(model).__name__} has rotary positions ({', '.join(kind.values())}) that follow the longest document of a "
                "batch, in some of its layers only; choose another model"
            )
        if isinstance(kind, str) and _depends_on_length(kind) and not isinstance(module.forward, partial):
            module.forward = partial(_rotate_by_document, module, module.forward)


def _depends_on_length(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _rotate_by_document(
    module: Any, rotate: Any, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [B, T, head size], for every document as if it were alone."""
    longest_short = _original_length(module)
    rotate(x, torch.zeros_like(position_ids))  # resets the lengths of earlier batches
    cos, sin = rotate(x, position_ids.clamp(max=longest_short - 1))
    lengths = lengths_of_documents(position_ids)
    for length in lengths[lengths > longest_short].unique().tolist():
        # The extra column has the largest position, by which transformers chooses the frequencies.
        padded = F.pad(position_ids.clamp(max=length - 1), (0, 1), value=length - 1)
        its_own = (lengths == length)[..., None]
        long_cos, long_sin = (side[:, :-1] for side in rotate(x, padded))
        cos, sin = torch.where(its_own, long_cos, cos), torch.where(its_own, long_sin, sin)
    return cos, sin


def _original_length(module: Any) -> int:
    declared = module.config.rope_parameters.get("original_max_position_embeddings")
    is_longrope = module.rope_type == "longrope"
    return int(declared if is_longrope and declared is not None else module.original_max_seq_len)


def lengths_of_documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Return for every token [B, T] the length of its document: one more than its last position.

    Worked example: positions [0, 1, 2, 0, 1] give [3, 3, 3, 2, 2].
    """
    begins = F.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0), value=True)
    number = begins.flatten().cumsum(0) - 1
    last = position_ids.new_zeros(position_ids.numel()).index_reduce(0, number, position_ids.flatten(), "amax")
    return (last[number] + 1).view_as(position_ids)
