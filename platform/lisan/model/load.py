"""Loads causal language models, or makes them from a shape.

Returns transformers models in fp32 on the CPU, or on `meta` with the source of their weights. The same seed makes the same
weights.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError, DataError, first_line
from lisan.model.config import ModelConfig
from lisan.model.folder import ModelFolder, model_class, open_folder, read_config
from lisan.model.load_report import refuse_report
from lisan.model.model_files import CONFIG, GENERATION
from lisan.model.quiet import quiet_transformers
from lisan.model.weights.finite import check_finite
from lisan.model.weights.random_weights import RandomWeights, record_random_weights
from lisan.model.weights.safetensors_files import open_weights


def make_random_model(
    config: ModelConfig, vocabulary_size: int, special_ids: dict[str, int | None], seed: int
) -> tuple[Any, RandomWeights]:
    """Return a Llama of `config.shape` on `meta`, and its seeded random weights.

    Weights are normal; output projections are scaled by 1 / sqrt(2 x layers).
    """
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
    with record_random_weights(seed) as drawn:
        model = LlamaForCausalLM(llama)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(scale)
    model.tie_weights()  # on `meta` the constructor makes two parameters of a tied one
    drawn.name_parameters(model)
    return model, drawn


def load_model(name_or_path: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a causal LM from a folder or hub id; of a multimodal model, its text part.

    DataError when it is not a causal LM, or when weights are missing, of another model or not finite.
    """
    folder = open_folder(name_or_path)
    model = _load_files(folder, dtype) if folder.tensors else _load_by_transformers(folder, name_or_path, dtype)
    if folder.path.joinpath(GENERATION).exists():
        model.generation_config = type(model.generation_config).from_pretrained(str(folder.path))
    check_finite(model, name_or_path)
    return model


def _load_files(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """Load the tensors of a complete folder."""
    kind = model_class(folder.config, folder.path)
    with ExitStack() as stack:
        opened = {stored.file: None for stored in folder.tensors.values()}
        files = {file: stack.enter_context(open_weights(file)) for file in opened}
        state = {name: files[stored.file].get_slice(stored.name) for name, stored in folder.tensors.items()}
        return kind.from_pretrained(None, config=folder.config, state_dict=state, dtype=dtype)


def _load_by_transformers(folder: ModelFolder, name_or_path: str, dtype: torch.dtype) -> Any:
    """Load weights that only transformers can read: quantised ones, and other formats than safetensors."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(str(folder.path), dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = first_line(error)
        raise DataError(f"{name_or_path} is not a model that transformers can load: {reason}") from error
    refuse_report(report, list(model.state_dict()), type(model).__name__, name_or_path)
    return model


def read_vocabulary_size(name_or_path: str) -> int | None:
    """Return the `vocab_size` of a local model folder; None for a hub id."""
    return _read_size(name_or_path, "vocab_size")


def read_max_positions(name_or_path: str) -> int | None:
    """Return the longest context of a local model folder; None if its config has none."""
    return _read_size(name_or_path, "max_position_embeddings")


def _read_size(name_or_path: str, key: str) -> int | None:
    size: int | None = getattr(read_config(name_or_path), key, None) if (Path(name_or_path) / CONFIG).exists() else None
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
