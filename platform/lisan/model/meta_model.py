"""Makes the model of a folder or hub id on `meta`, and the source from which each rank loads its shards.

A folder whose files name their tensors differently from the model is loaded whole instead.
"""

from typing import Any

import torch

from lisan.model.folder import open_folder
from lisan.model.load import load_model
from lisan.model.weights.load_shards import FileSource, Source, load_shards


def make_meta_model(name_or_path: str) -> tuple[Any, tuple[Source, ...]]:
    """Return an fp32 model on `meta` and the source of its weights; no source for a model that was loaded whole.

    DataError when the files are not the complete model of their config.
    """
    folder = open_folder(name_or_path)
    if not folder.tensors or getattr(folder.config, "auto_map", None):
        return load_model(name_or_path), ()
    model = _build_on_meta(folder.config)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if wanted != {name: stored.shape for name, stored in folder.tensors.items()}:
        # Fused, renamed or buffers: transformers knows how to convert them.
        print(
            f"  {name_or_path} names its weights differently from {type(model).__name__}: every worker loads the whole model",
            flush=True,
        )
        return load_model(name_or_path), ()
    return model, (FileSource({name: (stored.file, stored.name) for name, stored in folder.tensors.items()}),)


def load_embeddings(model: Any, sources: tuple[Source, ...]) -> None:
    """Load the whole input and output embeddings of a model on `meta`; new rows are made from them."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    load_shards(model, sources, only={id(layer.weight) for layer in layers})


def _build_on_meta(config: Any) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):  # buffers such as rotary frequencies are computed, not stored
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model.eval()
