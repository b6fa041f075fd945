"""Makes the model of a folder or hub id on the device `meta`, with the files from which `fill` reads each rank's shards.

Where the files name their tensors otherwise than the model does, the whole model is loaded instead. What is trained is what
`load_model` would have loaded.
"""

from typing import Any

import torch

from lisan.model.folder import open_folder
from lisan.model.load import load_model
from lisan.model.weights.load_shards import Files, Source, fill


def outline_model(place: str) -> tuple[Any, tuple[Source, ...]]:
    """Return a model in fp32 whose weights are yet to be read, and what reads them; no source where it is whole already.

    DataError when the files are not all of the model that their config describes.
    """
    folder = open_folder(place)
    if not folder.tensors or getattr(folder.config, "auto_map", None):
        return load_model(place), ()
    model = _outline(folder.config)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if wanted != {name: stored.shape for name, stored in folder.tensors.items()}:
        # Fused, renamed or buffers: transformers knows how to convert them.
        print(
            f"  {place} names its weights otherwise than {type(model).__name__} does: every worker loads it whole",
            flush=True,
        )
        return load_model(place), ()
    return model, (Files({name: (stored.file, stored.name) for name, stored in folder.tensors.items()}),)


def load_vocabulary(model: Any, sources: tuple[Source, ...]) -> None:
    """Give an outline the matrices of its vocabulary, whole: all that new rows are made from."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    fill(model, sources, only={id(layer.weight) for layer in layers})


def _outline(config: Any) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):  # positions and the like are computed, not stored
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model.eval()
