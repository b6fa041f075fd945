"""Refuses a model with weights that are NaN or infinite.

Checks the minimum and maximum of every tensor, which takes a small part of the time of reading it from a file.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lisan.core.errors import DataError


@torch.no_grad()
def check_finite(model: nn.Module, name_or_path: str) -> None:
    """Raise DataError with the number of tensors with NaN or infinity and the first name; every rank calls it."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
    broken = torch.tensor([not _is_finite(weight) for _, weight in named], dtype=torch.int32)
    if any(isinstance(weight, DTensor) for _, weight in named):
        dist.all_reduce(broken, dist.ReduceOp.MAX)  # all ranks raise the same error
    names = [name for (name, _), is_broken in zip(named, broken.tolist(), strict=True) if is_broken]
    if names:
        raise DataError(
            f"{name_or_path}: {len(names)} of {len(named)} weights hold NaN or infinity, the first is {names[0]}; the run that "
            "wrote them diverged, or a file is damaged: take an earlier checkpoint, or copy the files again"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return local.numel() == 0 or bool(torch.stack(torch.aminmax(local)).isfinite().all())
