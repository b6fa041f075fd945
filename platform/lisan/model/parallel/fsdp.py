"""Shards a `Scorer` with FSDP2: one code path from one process to many nodes.

Compute is in `precision`; master weights and gradient reductions are in fp32. Weights may be on `meta`. Activation
checkpointing changes no bit.
"""

import shutil
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lisan.cluster.config import Precision
from lisan.core.errors import ConfigError
from lisan.model.config import ActivationCheckpointing, ShardingConfig
from lisan.model.load import decoder_layers
from lisan.model.parallel.tensor_parallel import parallelize_blocks
from lisan.model.score import Scorer

DEFAULT = ShardingConfig()


def check_sharding(config: ShardingConfig, num_workers: int, num_nodes: int = 1) -> None:
    """Refuse group sizes that do not divide the number of workers."""
    group = config.shard_workers or max(1, num_workers // num_nodes)
    if num_workers % group:
        raise ConfigError(
            f"sharding.shard_workers ({group}) must divide the number of workers ({num_workers}); "
            "0 takes the workers of one node"
        )
    if group % config.tensor_parallel_size:
        raise ConfigError(
            f"sharding.tensor_parallel_size ({config.tensor_parallel_size}) must divide the workers that hold a copy of the "
            f"weights ({group}); "
            "change it, or sharding.shard_workers"
        )


def check_compiler(config: ShardingConfig, device: str) -> None:
    """Refuse `compile` on a CPU without a C++ compiler."""
    if config.compile and device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ConfigError(
            "sharding.compile=true needs a C++ compiler on every worker and there is none here; install g++, or leave it out"
        )


def make_mesh(device: str, config: ShardingConfig, num_nodes: int = 1) -> DeviceMesh:
    """Return the device mesh of FSDP; the ranks of one group share a copy of the weights and are neighbours.

    Worked example: 4 workers with shard_workers=2 give the groups (0, 1) and (2, 3); gradients are
    also summed over (0, 2) and (1, 3).
    """
    kind, num_workers = device.split(":", maxsplit=1)[0], dist.get_world_size()
    group = config.shard_workers or max(1, num_workers // num_nodes)
    if group == num_workers:
        return init_device_mesh(kind, (group,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (num_workers // group, group), mesh_dim_names=("replicate", "shard"))


def make_block_meshes(mesh: DeviceMesh, tensor_parallel_size: int) -> tuple[DeviceMesh, DeviceMesh]:
    """Return the FSDP mesh of the blocks, along which rows are divided, and the tensor-parallel mesh.

    Worked example: ranks 0 to 3 with tensor_parallel_size=2: (0, 1) and (2, 3) split each product; (0, 2) and (1, 3) shard the
    weights that they have of it.
    """
    names = mesh.mesh_dim_names
    assert names is not None
    shape = (*mesh.shape[:-1], mesh.shape[-1] // tensor_parallel_size, tensor_parallel_size)
    whole = init_device_mesh(mesh.device_type, shape, mesh_dim_names=(*names, "tensor"))
    return whole[names], whole["tensor"]


def shard(
    scorer: Scorer,
    device: str,
    precision: Precision,
    config: ShardingConfig = DEFAULT,
    num_nodes: int = 1,
) -> Scorer:
    """Shard every block, then the rest of the model; `load_shards` can load the weights later."""
    mesh = inner = make_mesh(device, config, num_nodes)
    if config.tensor_parallel_size > 1:
        inner, tensor = make_block_meshes(mesh, config.tensor_parallel_size)
        parallelize_blocks(scorer.model, tensor)
    policy = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    for layer in decoder_layers(scorer.model):
        prepare_block(layer, config)
        fully_shard(layer, mesh=inner, mp_policy=policy)
    # Tensor-parallel workers have equal gradients of unsplit weights, so that the mean over all workers is the mean over rows.
    fully_shard(scorer, mesh=mesh, mp_policy=policy)
    return scorer


def prepare_block(layer: Any, config: ShardingConfig) -> None:
    """Apply activation checkpointing and torch.compile to a block.

    Replaces the forward function instead of wrapping the module: weights keep their names, and FSDP's hooks stay outside, so
    that weights are gathered once for the recomputation and the backward pass.
    """
    if config.activation_checkpointing is not ActivationCheckpointing.none:
        layer.forward = _checkpointed(layer.forward, config.activation_checkpointing)
    if config.compile:
        # There are few shapes, and a kernel for each is faster than a dynamic one.
        layer.forward = torch.compile(layer.forward, dynamic=False)


def _checkpointed(forward: Any, kind: ActivationCheckpointing) -> Any:
    """Return a forward function that keeps its inputs, and with `selective` also `KEPT`, instead of all activations."""
    options: dict[str, Any] = {"use_reentrant": False}
    if kind is ActivationCheckpointing.selective:
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
"What activation_checkpointing=selective keeps: products and attention, whose results cost more to compute than to keep."


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
