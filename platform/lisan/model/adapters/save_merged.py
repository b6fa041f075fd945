"""Writes a model as config.json and safetensors, adapters merged, gathering one tensor at a time.

Every rank takes part in gathering. The first rank holds the tensors of one file and one tensor in fp32, never the model.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.model.adapters.lora import iter_merged
from lisan.model.embeddings.resize import gather
from lisan.model.weights.safetensors_files import MAX_FILE_BYTES, WeightWriter


def write_weights(model: nn.Module, folder: Path | None, dtype: torch.dtype, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the weights of a causal LM in `dtype`, adapters merged; a rank without a folder only gathers.

    Tensors get the names that transformers writes, which differ from the model's own where it fuses weights.
    """
    from transformers.core_model_loading import revert_weight_conversion

    writer = WeightWriter(folder, max_bytes, partial(revert_weight_conversion, model)) if folder else None
    for name, make in iter_merged(model):
        whole = make(gather)
        if writer:
            writer.add(name, whole.to(dtype) if whole.is_floating_point() else whole)
    if writer:
        writer.close()


def write_config(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json as transformers' save_pretrained does."""
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
