"""A trained model to a folder that anybody can load: gathered and written one tensor at a time.

In: a sharded model, with adapters in place or not. Out: config.json and safetensors, in files of bounded size with an index
where there is more than one. Always: every rank takes part in gathering; the first one holds the tensors of one file and one
in fp32, never the model.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.model.adapter import iter_merged
from lisan.model.embeddings import gather

MAX_FILE_BYTES = 4 * 2**30


def write_weights(model: nn.Module, folder: Path | None, dtype: torch.dtype, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the weights of a causal LM in `dtype`, adapters merged; a rank without a folder only takes part in gathering."""
    plan = _plan_files({name: shape.numel() * dtype.itemsize for name, shape, _ in iter_merged(model)}, max_bytes)
    names = [_file_name(number, len(plan)) for number in range(len(plan))]
    pending: dict[str, torch.Tensor] = {}
    written: dict[str, dict[str, int]] = {}
    files = iter(zip(names, plan, strict=True))
    name, wanted = next(files)
    for tensor_name, _, make in iter_merged(model):
        whole = make(gather)
        if folder is None:
            continue
        pending[tensor_name] = (whole.to(dtype) if whole.is_floating_point() else whole).contiguous()
        if len(pending) == len(wanted):
            written[name] = _write_file(model, pending, folder / name)
            pending = {}
            name, wanted = next(files, (name, wanted))
    if folder is not None and len(plan) > 1:
        _write_index(folder, written)


def _plan_files(sizes: dict[str, int], max_bytes: int) -> list[dict[str, int]]:
    """Return the tensors of each file with their sizes, in order."""
    plan: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if plan[-1] and sum(plan[-1].values()) + size > max_bytes:
            plan.append({})
        plan[-1][name] = size
    return plan


def _file_name(number: int, num_files: int) -> str:
    """Return the name that transformers, vLLM and llama.cpp know."""
    return "model.safetensors" if num_files == 1 else f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"


def _write_file(model: Any, tensors: dict[str, torch.Tensor], place: Path) -> dict[str, int]:
    """Write tensors under the names that files of such a model have, others where transformers fuses; return bytes by name."""
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    named = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, tensors).items()}
    save_file(named, place, metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in named.items()}


def _write_index(folder: Path, plan: dict[str, dict[str, int]]) -> None:
    index = {
        "metadata": {"total_size": sum(sum(sizes.values()) for sizes in plan.values())},
        "weight_map": {name: file for file, sizes in plan.items() for name in sizes},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))


def write_config(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json as transformers' save_pretrained does."""
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
