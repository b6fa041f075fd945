"""A model to train that has no weights yet: its outline, and where they will come from.

In: the folder or hub id of a causal LM. Out: the model on the device `meta` and the files of its weights, from which `fill`
reads each rank's shards; or the whole model where its files name their tensors otherwise than the model does. Always: what
is trained is what transformers would have loaded. `outcome` is the caller.
"""

from pathlib import Path
from typing import Any

import torch

from lisan.core.errors import DataError
from lisan.model.files import WEIGHTS, list_weights, locate_tensors
from lisan.model.fill import Files, Source, fill
from lisan.model.load import load_model, quiet_transformers


def outline_model(place: str) -> tuple[Any, tuple[Source, ...]]:
    """Return a model in fp32 whose weights are yet to be read, and what reads them; no source where it is whole already."""
    folder = _weights_folder(place) if _is_plain(place) else None
    if folder is None or not list_weights(folder):
        return load_model(place), ()
    found = locate_tensors(folder)
    model = _outline(place)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if wanted != {name: shape for name, (_, shape) in found.items()}:
        # Fused, renamed or left out: transformers knows how to convert them.
        print(
            f"  {place} names its weights otherwise than {type(model).__name__} does: every worker loads it whole",
            flush=True,
        )
        return load_model(place), ()
    return model, (Files({name: file for name, (file, _) in found.items()}),)


def load_vocabulary(model: Any, sources: tuple[Source, ...]) -> None:
    """Give an outline the matrices of its vocabulary, whole: all that new rows are made from."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    fill(model, sources, only={id(layer.weight) for layer in layers})


def _outline(place: str) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    config = AutoConfig.from_pretrained(place)
    with init_empty_weights(include_buffers=False):  # positions and the like are computed, not stored
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model.eval()


def _is_plain(place: str) -> bool:
    """Tell whether transformers reads the weights as they are: its own code, nothing quantised, nothing but parameters."""
    from transformers import AutoConfig

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError):
        return False  # load_model says why
    return getattr(config, "quantization_config", None) is None and not getattr(config, "auto_map", None)


def _weights_folder(place: str) -> Path:
    """Return a local folder with the weights of a local folder or hub id; of a hub id's files those that transformers reads."""
    if Path(place).is_dir():
        return Path(place)
    folder = _fetch(place, ["*.json", WEIGHTS])
    shards = [name for name in list_weights(folder) if not (folder / name).exists()]
    return _fetch(place, shards) if shards else folder


def _fetch(place: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{place} is not a model that transformers can load: {reason}") from error
