"""The weights of a finished folder, tensor by tensor, and a model put together from such tensors.

In: a folder with config.json and safetensors. Out: names and tensors as they lie there, or a model in fp32. Always: no more than
one tensor is held beside what the caller keeps, and a model is complete or refused.
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
    """Return a model of that config in fp32 with weights that mean nothing; on device `meta` it takes no memory."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def linear_names(config: Any) -> tuple[str, ...]:
    """Return the names of the linear layers inside the blocks: all but the one that gives the logits."""
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
    """Return every name under which the model has a parameter, tied ones too."""
    return {name for name, _ in make_empty(config, "meta").named_parameters(remove_duplicate=False)}


def assemble(config: Any, state: Iterable[tuple[str, torch.Tensor]] | Mapping[str, torch.Tensor], place: str) -> Any:
    """Return the model that has exactly these weights, in fp32; DataError when some are missing or belong nowhere."""
    model = make_empty(config)
    named = dict(model.named_parameters(remove_duplicate=False))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    seen = set(tied)
    with torch.no_grad():
        for name, tensor in state.items() if isinstance(state, Mapping) else state:
            if name not in named or named[name].shape != tensor.shape:
                wanted = f"{list(named[name].shape)}" if name in named else "none of that name"
                raise DataError(f"{place} holds {name} {list(tensor.shape)}, {type(model).__name__} has {wanted}")
            named[name].copy_(tensor)
            seen.add(name)
    if missing := sorted(named.keys() - seen):
        raise DataError(f"{place} lacks {missing[0]}, which {type(model).__name__} needs; export it again")
    model.tie_weights()
    return model.eval()
