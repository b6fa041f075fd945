"""Tensor parallelism: neighbouring workers split the products of every block between them.

In: a causal LM, with weights or without, before FSDP. Out: the same model, whose blocks compute a share of their heads and of
their inner width on each worker. Always: what goes into a block and comes out of it is whole and the same on every one of them,
so that all else (norms, vocabulary, loss) is computed as if there were one.

A block adds up its partial results twice going forward, after the attention and after the MLP, and going backward the gradients
of the input of every product that is split by columns: of a Llama's five. Which product is split how, the model's own class
knows: transformers' `base_model_tp_plan`.
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
"What the names of a plan begin with that lie in a block; others are of the vocabulary, which is not split."
SUMMED = "_lisan_summed"
"Marks weights whose gradients are summed already."


class SummedGradient(ParallelStyle):
    """For a norm of queries or keys: each worker has the whole of its weights, and the gradient of its own heads only."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(partial(_sum_gradients, group=device_mesh.get_group()))
        return module


def _sum_gradients(module: nn.Module, _: Any, group: dist.ProcessGroup) -> None:
    """Have the gradients of a module's weights summed before FSDP takes them; the weights that it computes with come with FSDP."""
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
"By the names that transformers gives them."


def check_sizes(sizes: Mapping[str, int], tensor_workers: int) -> None:
    """Refuse heads and widths that the workers cannot share evenly."""
    for name, size in sizes.items():
        if size % tensor_workers:
            raise ConfigError(
                f"sharding.tensor_workers ({tensor_workers}) must divide the model's {name} ({size}); choose a divisor of it, or 1"
            )


def check_split(model: Any, tensor_workers: int) -> None:
    """Refuse a model whose blocks so many workers cannot split; its weights are not looked at."""
    config = model.config.get_text_config()
    _read_plan(model)
    heads = config.num_attention_heads
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "intermediate_size": config.intermediate_size,
    }
    check_sizes(sizes, tensor_workers)
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ConfigError(
            f"sharding.tensor_workers={tensor_workers} with the model's attention_dropout={dropout} would drop the same places in "
            "different heads; take a model without it, or tensor_workers=1"
        )


def _read_plan(model: Any) -> dict[str, str]:
    """Return how each product of a block is split, by its name in the block; ConfigError where that is not all that is needed."""
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
            f"sharding.tensor_workers splits linear layers by columns and rows, and {name} wants {odd[0]} {plan[odd[0]]}; take "
            "tensor_workers=1, or another model class"
        )
    if not plan:
        raise ConfigError(f"{name} does not say how its blocks are split; take sharding.tensor_workers=1")
    owners = {inner.rpartition(".")[0] for inner, style in plan.items() if STYLES.get(style) is not SummedGradient}
    # A weight that lies between split products would see its own worker's share only, and nobody would add up its gradient.
    weights = (weight.rpartition(".")[0] for weight, _ in block.named_parameters())
    between = [inner for inner in weights if inner not in plan and any(f"{inner}.".startswith(f"{o}.") for o in owners)]
    if between:
        raise ConfigError(
            f"sharding.tensor_workers splits the products of a block, and {name} does not say what becomes of {between[0]} between "
            "them; take tensor_workers=1, or another model class"
        )
    return plan


def _is_known(module: nn.Module | None, style: str) -> bool:
    if STYLES.get(style) is SummedGradient:
        return module is not None and all(weight.ndim == 1 for weight in module.parameters())
    return style in STYLES and isinstance(module, nn.Linear)


def split_blocks(model: Any, mesh: DeviceMesh) -> None:
    """Make every worker of a mesh hold and compute its share of the products of each block.

    Every worker has the same weights, or none yet, so none are sent.
    """
    check_split(model, mesh.size())
    plan = _read_plan(model)
    for layer in decoder_layers(model):
        styles = {name: STYLES[style]() for name, style in plan.items()}
        parallelize_module(layer, mesh, styles, src_data_rank=None)
