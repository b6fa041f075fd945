"""Reads the weights of a finished folder tensor by tensor, and assembles a model from such tensors.

At most one tensor is in memory beside those that the caller keeps.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import DataError
from lisan.model.load import decoder_layers
from lisan.model.quiet import quiet_transformers
from lisan.model.weights.safetensors_files import open_weights, weight_files


def iter_state(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor with its name, in the type it is stored in."""
    for file in weight_files(folder):
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                yield name, opened.get_tensor(name)


def make_empty(config: Any, device: str = "cpu") -> Any:
    """Return an fp32 model of a config with arbitrary weights; on device `meta` it takes no memory."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def linear_names(config: Any) -> tuple[str, ...]:
    """Return the names of all linear layers but the output layer."""
    model = make_empty(config, "meta")
    output = model.get_output_embeddings()
    return tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not output
    )


def block_names(config: Any) -> tuple[str, ...]:
    """Return the names of the transformer blocks."""
    model = make_empty(config, "meta")
    blocks = {id(block) for block in decoder_layers(model)}
    return tuple(name for name, module in model.named_modules() if id(module) in blocks)


def parameter_names(config: Any) -> set[str]:
    """Return the names of all parameters, tied ones included."""
    return {name for name, _ in make_empty(config, "meta").named_parameters(remove_duplicate=False)}


def assemble(
    config: Any, state: Iterable[tuple[str, torch.Tensor]] | Mapping[str, torch.Tensor], folder_name: str
) -> Any:
    """Return the fp32 model with exactly these weights; DataError for missing or unknown ones, which names `folder_name`."""
    model = make_empty(config)
    named = dict(model.named_parameters(remove_duplicate=False))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    seen = set(tied)
    with torch.no_grad():
        for name, tensor in state.items() if isinstance(state, Mapping) else state:
            if name not in named or named[name].shape != tensor.shape:
                wanted = f"{list(named[name].shape)}" if name in named else "none of that name"
                raise DataError(f"{folder_name} holds {name} {list(tensor.shape)}, {type(model).__name__} has {wanted}")
            named[name].copy_(tensor)
            seen.add(name)
    if missing := sorted(named.keys() - seen):
        raise DataError(f"{folder_name} lacks {missing[0]}, which {type(model).__name__} needs; export it again")
    model.tie_weights()
    return model.eval()
