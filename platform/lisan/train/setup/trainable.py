"""Selects the trained weights of a model: blocks, adapters, rows of the vocabulary.

An option without effect is refused before a worker starts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lisan.core.errors import ConfigError
from lisan.model.adapters.lora import attach_adapter, attach_random_adapter, find_targets
from lisan.model.adapters.nf4 import check_installed, quantise_blocks
from lisan.model.embeddings.new_rows import MANIFEST, NewRows, read_new_rows
from lisan.model.embeddings.trained_rows import vocabulary_matrices
from lisan.model.folder import read_config
from lisan.model.folder_tensors import make_empty
from lisan.model.weights.load_shards import Source, load_shards
from lisan.train.options import Method, Quantisation, Rows, TuningConfig


def find_new_rows(manifest: NewRows | None, model: str) -> tuple[int, ...]:
    """Return the ids of this run's new rows, or of those that the model's own expansion added; ConfigError without any."""
    chain = (manifest,) if manifest else read_new_rows(model)
    if not chain:
        raise ConfigError(
            f"tuning.rows=new has no effect: no piece is new, and {model} has no {MANIFEST} of an expansion before; name an "
            "expanded tokenizer in model.tokenizer, or set rows=all"
        )
    return tuple(sorted(chain[-1].pieces))


def check_new_rows_exist(tuning: TuningConfig, grows: bool, model: str) -> None:
    """Refuse rows=new where nothing is new, before a worker starts."""
    if tuning.trained_rows is Rows.new and not grows and Path(model).exists():
        find_new_rows(None, model)


def check_adapters(tuning: TuningConfig, model: str) -> None:
    """Refuse adapters for layers that the model has not, and a base in 4 bits without the library for it, before a worker starts.

    The model of a hub id is checked in the worker.
    """
    if tuning.quantise_base is Quantisation.nf4:
        check_installed()
    if tuning.method is Method.lora and (Path(model) / "config.json").exists():
        find_targets(make_empty(read_config(Path(model)), "meta"), tuning.lora)


def choose_rows(tuning: TuningConfig, model: Any, manifest: NewRows | None, place: str) -> Sequence[int]:
    """Return the ids of the rows that are trained."""
    match tuning.trained_rows:
        case Rows.none:
            return ()
        case Rows.new:
            return find_new_rows(manifest, place)
        case Rows.all:
            return range(model.get_input_embeddings().weight.shape[0])


def apply_tuning(
    tuning: TuningConfig, model: Any, sources: Sequence[Source], rows: Sequence[int], seed: int
) -> tuple[Any, tuple[Source, ...]]:
    """Freeze untrained weights and attach adapters; returns PEFT's wrapper, or None, and the sources of missing weights.

    4 bits and the norms that DoRA begins with are made from the weights, which every worker then loads whole.
    """
    wrapper, left = None, tuple(sources)
    is_quantised = tuning.quantise_base is Quantisation.nf4
    if is_quantised or tuning.lora.use_dora:
        load_shards(model, sources)
        left = ()
    if is_quantised:
        quantise_blocks(model)
    if tuning.lora.use_dora:
        torch.manual_seed(seed)
        wrapper = attach_adapter(model, tuning.lora)
    elif tuning.method is Method.lora:
        # Adapters start from random weights: the same on every rank and in every run.
        wrapper, drawn = attach_random_adapter(model, tuning.lora, seed)
        left = (*left, drawn)
    elif tuning.method is Method.embeddings:
        model.requires_grad_(False)
    for matrix in vocabulary_matrices(model):
        matrix.requires_grad_(bool(rows))
    return wrapper, left
