"""Weights over workers: FSDP2, one code path from one process to many nodes.

In: a `Scorer` with fp32 weights, or with none yet. Out: the same module, sharded; compute in `precision`, master weights and
gradient reductions in fp32. Always: with one worker the arithmetic is that of many; recomputing changes no bit.
"""

import shutil
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lisan.cluster.config import Precision
from lisan.core.errors import ConfigError
from lisan.model.config import Recompute, ShardingConfig
from lisan.model.load import decoder_layers
from lisan.model.parallel.tensor_parallel import split_blocks
from lisan.model.score import Scorer

DEFAULT = ShardingConfig()


def check_sharding(config: ShardingConfig, num_workers: int, num_nodes: int = 1) -> None:
    """Refuse groups that the workers cannot form, before any of them starts."""
    group = config.shard_workers or max(1, num_workers // num_nodes)
    if num_workers % group:
        raise ConfigError(
            f"sharding.shard_workers ({group}) must divide the number of workers ({num_workers}); "
            "0 takes the workers of one node"
        )
    if group % config.tensor_workers:
        raise ConfigError(
            f"sharding.tensor_workers ({config.tensor_workers}) must divide the workers that hold a copy of the weights ({group}); "
            "change it, or sharding.shard_workers"
        )


def check_compiler(config: ShardingConfig, device: str) -> None:
    """Refuse to compile where this machine cannot."""
    if config.compile and device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError(
            "sharding.compile=true needs a C++ compiler on every worker and there is none here; install g++, or leave it out"
        )


def make_mesh(device: str, config: ShardingConfig, num_nodes: int = 1) -> DeviceMesh:
    """Lay the ranks out: groups that hold a copy of the weights together, ranks of a group next to each other.

    Worked example: 4 workers with shard_workers=2 give the groups 0, 1 and 2, 3; gradients are summed over 0, 2 and 1, 3 too.
    """
    kind, num_workers = device.split(":", maxsplit=1)[0], dist.get_world_size()
    group = config.shard_workers or max(1, num_workers // num_nodes)
    if group == num_workers:
        return init_device_mesh(kind, (group,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (num_workers // group, group), mesh_dim_names=("replicate", "shard"))


def make_meshes_of_blocks(mesh: DeviceMesh, tensor_workers: int) -> tuple[DeviceMesh, DeviceMesh]:
    """Return the mesh that the weights of blocks are sharded over, rows being dealt along it, and the one that splits products.

    Worked example: ranks 0 to 3 with tensor_workers=2: 0, 1 and 2, 3 split products; 0, 2 and 1, 3 shard what each has of them.
    """
    names = mesh.mesh_dim_names
    assert names is not None
    shape = (*mesh.shape[:-1], mesh.shape[-1] // tensor_workers, tensor_workers)
    whole = init_device_mesh(mesh.device_type, shape, mesh_dim_names=(*names, "tensor"))
    return whole[names], whole["tensor"]


def shard(
    scorer: Scorer,
    device: str,
    precision: Precision,
    config: ShardingConfig = DEFAULT,
    num_nodes: int = 1,
) -> Scorer:
    """Shard every block and then what is left over the ranks of the process group; weights may come later, from `fill`."""
    mesh = inner = make_mesh(device, config, num_nodes)
    if config.tensor_workers > 1:
        inner, split = make_meshes_of_blocks(mesh, config.tensor_workers)
        split_blocks(scorer.model, split)
    policy = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    for layer in decoder_layers(scorer.model):
        prepare_block(layer, config)
        fully_shard(layer, mesh=inner, mp_policy=policy)
    # What is not split has the same gradient on the workers that split the rest: the mean over all is that over the rows.
    fully_shard(scorer, mesh=mesh, mp_policy=policy)
    return scorer


def prepare_block(layer: Any, config: ShardingConfig) -> None:
    """Make a block recompute and compile as configured.

    The forward function is replaced and no module put around it: names of weights stay, and FSDP's hooks stay outside, so that
    weights are gathered once for the recomputation and the backward pass.
    """
    if config.recompute is not Recompute.none:
        layer.forward = _recomputing(layer.forward, config.recompute)
    if config.compile:
        # Shapes are few and known: a kernel for each is faster than one for all.
        layer.forward = torch.compile(layer.forward, dynamic=False)


def _recomputing(forward: Any, recompute: Recompute) -> Any:
    """Return a forward function that keeps its inputs, and what is worth keeping, instead of all it computes."""
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute is Recompute.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def forward_again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **kwargs, **options)

    return forward_again


KEPT = {
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "bmm",
        "addmm",
        "_scaled_mm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
}
"What recompute=selective keeps: products and attention, whose results cost more to compute than to keep."


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def reshard(scorer: nn.Module) -> None:
    """Give back the whole weights that a forward pass without a backward pass leaves behind; nothing where none are sharded."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
