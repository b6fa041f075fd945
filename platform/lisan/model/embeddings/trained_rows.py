"""Trains chosen embedding rows only, and stores trained rows beside an adapter.

All other rows get no gradient and no weight decay, and keep every bit with any optimizer and any number of workers.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from lisan.core.errors import DataError
from lisan.model.embeddings.new_rows import NewRows, check_base
from lisan.model.embeddings.resize import is_tied, read_matrices, resize_embeddings
from lisan.model.weights.safetensors_files import read_tensors

TRAINED_ROWS = "rows.trained"
"Safetensors format under another suffix, because engines load every `*.safetensors` of a folder as weights."
IDS = "ids"

FrozenRows = Mapping[nn.Parameter, torch.Tensor]
"For each partly trained matrix: whether each row of this process's shard [rows, 1] is frozen."


def vocabulary_matrices(model: Any) -> list[nn.Parameter]:
    """Return the input and output embedding matrices; one matrix if they are tied."""
    matrices = [model.get_input_embeddings().weight]
    return matrices if is_tied(model) else [*matrices, model.get_output_embeddings().weight]


def freeze_other_rows(model: Any, ids: Sequence[int]) -> FrozenRows:
    """Clear the gradients of all embedding rows but `ids`; does nothing when `ids` are none or all.

    Call it after sharding: every process masks its own rows. Gradients are cleared before clipping, so that the norm counts
    trained rows only.
    """
    frozen = {
        matrix: _frozen_share(matrix, ids) for matrix in vocabulary_matrices(model) if 0 < len(ids) < matrix.shape[0]
    }
    for matrix, share in frozen.items():
        matrix.register_post_accumulate_grad_hook(partial(_clear_gradient, frozen=share))
    return frozen


def _frozen_share(matrix: nn.Parameter, ids: Sequence[int]) -> torch.Tensor:
    frozen = torch.ones(matrix.shape[0], 1, dtype=torch.bool)
    frozen[list(ids)] = False
    if isinstance(matrix, DTensor):
        (num_rows, *_), (first, *_) = compute_local_shape_and_global_offset(
            matrix.shape, matrix.device_mesh, matrix.placements
        )
        frozen = frozen[first : first + num_rows]
    return frozen.to(matrix.device)


def _clear_gradient(matrix: nn.Parameter, frozen: torch.Tensor) -> None:
    assert matrix.grad is not None
    local(matrix.grad).masked_fill_(frozen, 0)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def decay_rows(optimizer: Optimizer, *_: Any, frozen: FrozenRows, weight_decay: float) -> None:
    """Apply AdamW's weight decay to trained rows before its step; the optimizer's own decay would reach all rows."""
    for group in optimizer.param_groups:
        for matrix in group["params"]:
            if matrix in frozen:
                share = frozen[matrix]
                factor = torch.where(share, 1.0, 1.0 - float(group["lr"]) * weight_decay)
                local(matrix.data).mul_(factor)


def write_trained_rows(model: Any, ids: Sequence[int], folder: Path | None) -> None:
    """Write the trained rows in fp32 with their ids, if any. A rank without a folder only gathers."""
    if not ids:
        return
    from safetensors.torch import save_file

    rows = {name: matrix[list(ids)].contiguous() for name, matrix in read_matrices(model).items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({IDS: torch.tensor(list(ids)), **rows}, folder / TRAINED_ROWS)


def load_trained_rows(model: Any, folder: Path, manifest: NewRows | None) -> None:
    """Load the trained rows of a folder into a base, expanded first if there is a manifest.

    DataError when the base is another one, or has one matrix where two were trained.
    """
    rows = read_tensors(folder / TRAINED_ROWS)
    ids = rows.pop(IDS).tolist()
    if set(rows) != set(read_matrices(model)):
        raise DataError(
            f"{folder / TRAINED_ROWS} has rows of {' and '.join(sorted(rows))}, the model matrices of "
            f"{' and '.join(sorted(read_matrices(model)))}; load the base that they were trained over"
        )
    if manifest is not None:
        check_base(model, manifest)
    has = manifest.rows_after if manifest else model.get_input_embeddings().weight.shape[0]
    if max(ids) >= has:
        raise DataError(
            f"{folder / TRAINED_ROWS} has row {max(ids):,} and the model {has:,} rows; load the base that it was trained over"
        )
    num_rows = max(model.get_input_embeddings().weight.shape[0], manifest.rows_after if manifest else 0)
    resize_embeddings(model, num_rows, ids, rows)
