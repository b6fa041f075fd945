"""Weights over workers: FSDP2, one code path from one process to many nodes.

In: a `Scorer` with fp32 weights. Out: the same module, sharded; compute in `precision`, master weights and gradient
reductions in fp32. Always: with one worker the arithmetic is that of many.
"""

from enum import StrEnum

import torch
import torch.distributed as dist
from torch import nn
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
    for layer in decoder_layers(scorer.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(scorer, mesh=mesh, mp_policy=policy)
    return scorer


def reshard(scorer: nn.Module) -> None:
    """Give back the whole weights that a forward pass without a backward pass leaves behind; nothing where none are sharded."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
