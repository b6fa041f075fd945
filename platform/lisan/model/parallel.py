"""Weights over workers: FSDP2, one code path from one process to many nodes.

In: a `Scorer` with fp32 weights. Out: the same module, sharded; compute in `precision`, master weights and gradient
reductions in fp32. Always: with one worker the arithmetic is that of many.
"""

from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lisan.model.load import decoder_layers
from lisan.model.score import Scorer


class Precision(StrEnum):
    bfloat16 = "bfloat16"
    float32 = "float32"

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


def shard(scorer: Scorer, device: str, precision: Precision) -> Scorer:
    """Shard every block and then what is left over all ranks of the process group."""
    mesh = init_device_mesh(device.split(":", maxsplit=1)[0], (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    scorer.to(device)
    for layer in decoder_layers(scorer.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(scorer, mesh=mesh, mp_policy=policy)
    return scorer


def reshard(scorer: nn.Module) -> None:
    """Give back the whole weights that a forward pass without a backward pass leaves behind; nothing where none are sharded."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_state(scorer: Scorer) -> dict[str, Any]:
    """Return the whole fp32 state of the inner model on rank 0's CPU; empty elsewhere."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(scorer, options=options)
    return {name.removeprefix("model."): value for name, value in state.items()}
