"""Models by shape or from a folder: the one place that makes a causal language model.

In: a `ModelConfig` and the folder it names. Out: a transformers causal LM in fp32 on the CPU, ready to be sharded.
Always: the same seed makes the same weights; text never enters this room, only vocabulary sizes and ids.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError, DataError, first_line
from lisan.model.config import ModelConfig
from lisan.model.folder import (
    CONFIG,
    GENERATION,
    Folder,
    model_class,
    open_folder,
    quiet_transformers,
    read_config,
    refuse_report,
)
from lisan.model.weights.finite import check_finite
from lisan.model.weights.load_shards import fill
from lisan.model.weights.random_weights import Drawing, drawing
from lisan.model.weights.safetensors_files import open_weights


def make_model(config: ModelConfig, vocabulary_size: int, special_ids: dict[str, int | None], seed: int) -> Any:
    """Make a model of `config.shape` with seeded random weights (normal, output projections scaled by depth)."""
    model, drawn = draw_model(config, vocabulary_size, special_ids, seed)
    fill(model, [drawn])
    return model


def draw_model(
    config: ModelConfig, vocabulary_size: int, special_ids: dict[str, int | None], seed: int
) -> tuple[Any, Drawing]:
    """Return the same model with weights that are yet to be drawn, and what draws them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.shape
    assert shape is not None
    llama = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=config.init_std,
        attention_dropout=0.0,
        dtype="float32",
        **special_ids,
    )
    scale = (2 * shape.num_layers) ** -0.5
    with drawing(seed) as drawn:
        model = LlamaForCausalLM(llama)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(scale)
    model.tie_weights()  # what ties in there makes two parameters of one
    drawn.keep(model)
    return model, drawn


def load_model(place: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a causal LM from a folder or hub id, of a model with images or sound its text part.

    DataError in one sentence when it is none, or when weights are missing, of another model or not finite.
    """
    folder = open_folder(place)
    model = _load_files(folder, dtype) if folder.tensors else _load_by_transformers(folder, place, dtype)
    if folder.path.joinpath(GENERATION).exists():
        model.generation_config = type(model.generation_config).from_pretrained(str(folder.path))
    check_finite(model, place)
    return model


def _load_files(folder: Folder, dtype: torch.dtype) -> Any:
    """Load the tensors of a folder that was seen to be whole."""
    kind = model_class(folder.config, folder.path)
    with ExitStack() as stack:
        opened = {stored.file: None for stored in folder.tensors.values()}
        files = {file: stack.enter_context(open_weights(file)) for file in opened}
        state = {name: files[stored.file].get_slice(stored.name) for name, stored in folder.tensors.items()}
        return kind.from_pretrained(None, config=folder.config, state_dict=state, dtype=dtype)


def _load_by_transformers(folder: Folder, place: str, dtype: torch.dtype) -> Any:
    """Load what transformers alone can read: quantised weights, and files that are not safetensors."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(str(folder.path), dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = first_line(error)
        raise DataError(f"{place} is not a model that transformers can load: {reason}") from error
    refuse_report(report, list(model.state_dict()), type(model).__name__, place)
    return model


def read_vocabulary_size(place: str) -> int | None:
    """Return the embedding rows that a local model folder declares; None for a hub id that is not on this machine."""
    return _read_size(place, "vocab_size")


def read_max_positions(place: str) -> int | None:
    """Return the longest context that a local model folder declares; None where it declares none."""
    return _read_size(place, "max_position_embeddings")


def _read_size(place: str, key: str) -> int | None:
    size: int | None = getattr(read_config(place), key, None) if (Path(place) / CONFIG).exists() else None
    return size


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks, the units of sharding."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(f"{type(model).__name__} names no blocks to shard (_no_split_modules is empty)")
    return layers


def block_linears(model: nn.Module) -> list[str]:
    """Return the names of the linear layers inside the transformer blocks."""
    blocks = {id(inner) for block in decoder_layers(model) for inner in block.modules()}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in blocks and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    ]
