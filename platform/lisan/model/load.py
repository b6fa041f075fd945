"""Models by shape or from a folder: the one place that makes a causal language model.

In: a `ModelConfig` and the folder it names. Out: a transformers causal LM in fp32 on the CPU, ready to be sharded.
Always: the same seed makes the same weights; text never enters this room, only vocabulary sizes and ids.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError, DataError
from lisan.model.config import ModelConfig
from lisan.model.draw import Drawing, drawing
from lisan.model.files import locate_tensors
from lisan.model.fill import fill


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
    """Load a causal LM from a folder or hub id; DataError in one sentence when it is none."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        return AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{place} is not a model that transformers can load: {reason}") from error
    except SafetensorError as error:
        if Path(place).is_dir():
            locate_tensors(Path(place))  # says which file it is
        raise DataError(f"{place} has a file of weights that is cut off ({error}); download it again") from error


def read_vocabulary_size(place: str) -> int | None:
    """Return the embedding rows that a local model folder declares; None for a hub id that is not on this machine."""
    return _read_size(place, "vocab_size")


def read_max_positions(place: str) -> int | None:
    """Return the longest context that a local model folder declares; None where it declares none."""
    return _read_size(place, "max_position_embeddings")


def _read_size(place: str, key: str) -> int | None:
    config = Path(place) / "config.json"
    size: int | None = json.loads(config.read_text()).get(key) if config.exists() else None
    return size


def quiet_transformers() -> None:
    """Keep bars and warnings of transformers out of job logs."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()


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
