"""Tensor parallelism: neighbouring workers split the products of every block between them.

Applied before FSDP, to a model with weights or on `meta`. Each worker computes a share of the heads and of the MLP's inner
width. Inputs and outputs of a block are whole and equal on all workers, so that norms, vocabulary and loss stay as they are.

A block sums partial results twice in the forward pass (after attention, after the MLP), and in the backward pass once for
each product split by columns: five in a Llama. transformers' `base_model_tp_plan` says how each product is split.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from lisan.core.errors import ConfigError
from lisan.model.load import decoder_layers

BLOCKS = "layers.*."
"Prefix of the plan's names inside a block; other names belong to the vocabulary, which is not split."
SUMMED = "_lisan_summed"
"Attribute of weights that already have the hook that sums their gradients."


class SummedGradient(ParallelStyle):
    """Style of a norm of queries or keys: each worker has all its weights, but the gradient of its own heads only."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(partial(_sum_gradients, group=device_mesh.get_group()))
        return module


def _sum_gradients(module: nn.Module, _: Any, group: dist.ProcessGroup) -> None:
    """Sum the gradients of a module's weights before FSDP takes them; FSDP replaces the weights in each forward pass."""
    for weight in module.parameters(recurse=False):
        if weight.requires_grad and not hasattr(weight, SUMMED):
            weight.register_hook(partial(_sum, group=group))
            setattr(weight, SUMMED, True)


def _sum(gradient: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    total = gradient.clone()
    dist.all_reduce(total, group=group)
    return total


STYLES: dict[str, type[ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": SummedGradient,
}
"By their names in transformers' plans."


def check_sizes(sizes: Mapping[str, int], tensor_parallel_size: int) -> None:
    """Refuse numbers of heads and widths that `tensor_parallel_size` does not divide."""
    for name, size in sizes.items():
        if size % tensor_parallel_size:
            raise ConfigError(
                f"sharding.tensor_parallel_size ({tensor_parallel_size}) must divide the model's {name} ({size}); choose a "
                "divisor of it, or 1"
            )


def check_tensor_parallel(model: Any, tensor_parallel_size: int) -> None:
    """Refuse a model whose blocks cannot be split over that many workers; its weights may be on `meta`."""
    config = model.config.get_text_config()
    _read_plan(model)
    heads = config.num_attention_heads
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "intermediate_size": config.intermediate_size,
    }
    check_sizes(sizes, tensor_parallel_size)
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ConfigError(
            f"sharding.tensor_parallel_size={tensor_parallel_size} with the model's attention_dropout={dropout} would drop the "
            "same positions "
            "in different heads; choose a model without it, or tensor_parallel_size=1"
        )


def _read_plan(model: Any) -> dict[str, str]:
    """Return the split of each product of a block, by its name in the block; ConfigError for an incomplete or unknown plan."""
    name, [block, *_] = type(model).__name__, decoder_layers(model)
    plan = {
        inner.removeprefix(BLOCKS): style
        for inner, style in (model.config.get_text_config().base_model_tp_plan or {}).items()
        if inner.startswith(BLOCKS)
    }
    modules = dict(block.named_modules())
    odd = [inner for inner, style in plan.items() if not _is_known(modules.get(inner), style)]
    if odd:
        raise ConfigError(
            f"sharding.tensor_parallel_size splits linear layers by columns and rows, and {name} wants {odd[0]} "
            f"{plan[odd[0]]}; take "
            "tensor_parallel_size=1, or another model class"
        )
    if not plan:
        raise ConfigError(f"{name} does not say how its blocks are split; take sharding.tensor_parallel_size=1")
    owners = {inner.rpartition(".")[0] for inner, style in plan.items() if STYLES.get(style) is not SummedGradient}
    # A weight between split products sees one worker's share only, and nothing sums its gradient.
    weights = (weight.rpartition(".")[0] for weight, _ in block.named_parameters())
    between = [inner for inner in weights if inner not in plan and any(f"{inner}.".startswith(f"{o}.") for o in owners)]
    if between:
        raise ConfigError(
            f"sharding.tensor_parallel_size splits the products of a block, and {name} does not define the split of "
            f"{between[0]} between them; take tensor_parallel_size=1, or another model class"
        )
    return plan


def _is_known(module: nn.Module | None, style: str) -> bool:
    if STYLES.get(style) is SummedGradient:
        return module is not None and all(weight.ndim == 1 for weight in module.parameters())
    return style in STYLES and isinstance(module, nn.Linear)


def parallelize_blocks(model: Any, mesh: DeviceMesh) -> None:
    """Make every worker of a mesh hold and compute its share of the products of each block.

    Workers have equal weights, or none yet, so that none are sent.
    """
    check_tensor_parallel(model, mesh.size())
    plan = _read_plan(model)
    for layer in decoder_layers(model):
        styles = {name: STYLES[style]() for name, style in plan.items()}
        parallelize_module(layer, mesh, styles, src_data_rank=None)
