"""Builds the model at the start of a run from the folders of its parents.

The model has an expanded vocabulary and adapters, but no weights yet; their sources are returned beside it. The vocabulary of
tokens, tokenizer and model must be the same, or the run is refused before a worker starts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisan.core.artifact import Artifact, Kind, Ref
from lisan.core.errors import ConfigError, DataError
from lisan.core.integrity import fetch_folder
from lisan.data.rows import HIGHEST_ID
from lisan.model.config import RowInitConfig
from lisan.model.embeddings.new_rows import NewRows, replay_new_rows
from lisan.model.folder import check_folder
from lisan.model.load import make_random_model, read_max_positions, read_vocabulary_size
from lisan.model.meta_model import load_embeddings, make_meta_model
from lisan.model.weights.load_shards import Source, load_shards
from lisan.tokenizer.tokenizer import (
    EXPANSION,
    Expansion,
    check_ids,
    highest_id,
    load_expansion,
    open_tokenizer,
    tokenizer_hash,
)
from lisan.train.setup.expand_model import check_init, grow_vocabulary
from lisan.train.setup.trainable import apply_tuning, check_adapters, check_new_rows_exist, choose_rows


@dataclass(frozen=True)
class Places:
    """Local folders or hub ids of the run's base model, tokenizer and donor."""

    model: str
    "Empty when the model starts from random weights."
    tokenizer: str
    donor: str = ""
    "Empty when no donor gives rows."


@dataclass(frozen=True)
class Adapted:
    """A model as it is trained."""

    model: Any
    "The causal LM, with adapters in place where there are any."
    wrapper: Any
    "PEFT's wrapper around it, or None."
    new_rows: NewRows | None = None
    "How its new rows came to be; None when its vocabulary did not grow."
    rows: Sequence[int] = ()
    "Ids of the rows of its vocabulary that are trained."
    sources: tuple[Source, ...] = ()
    "Where the weights come from that it has not yet."


def open_places(config: Any, parents: Iterable[Artifact]) -> Places:
    """Fetch what lives on an object store and return where everything is."""
    folders = {
        str(parent.ref): str(fetch_folder(parent.location))
        for parent in parents
        if parent.ref.kind in (Kind.model, Kind.tokenizer)
    }
    model = config.model.path or ""
    tokenizer = config.model.tokenizer or model
    donor = config.model.new_rows.donor or ""
    return Places(*(folders.get(place, place) for place in (model, tokenizer, donor)))


def check_folders(config: Any, parents: Iterable[Artifact]) -> None:
    """Refuse a model or donor with missing weight files; those of a hub id are checked in the worker."""
    places = open_places(config, parents)
    for place in (places.model, places.donor):
        if place:
            check_folder(place)


def check_vocabulary(config: Any, tokens: Artifact, parents: Iterable[Artifact]) -> None:
    """Refuse tokens that were encoded with another tokenizer than the one the model will carry, and gaps between the two."""
    places = open_places(config, parents)
    tokenizer = open_tokenizer(places.tokenizer)
    if tokens.facts["tokenizer_hash"] != tokenizer_hash(places.tokenizer):
        raise DataError(
            f"{tokens.ref} was encoded with another tokenizer than {config.model.tokenizer or config.model.path} "
            f"({tokens.facts['vocabulary_size']:,} and {len(tokenizer):,} pieces); name the one it was encoded with in "
            "model.tokenizer, or encode again"
        )
    rows = read_vocabulary_size(places.model) if places.model else None
    if rows is not None:
        expansion = expansion_for(places, rows, tokens.ref)
        highest = tokens.facts.get(HIGHEST_ID, highest_id(tokenizer))
        check_ids(str(tokens.ref), highest, max(rows, expansion.size if expansion else 0), tokenizer)
        if expansion is not None and expansion.base_size > rows:
            print(
                f"  the ids {rows:,} to {expansion.base_size - 1:,} of the base's tokenizer have no row in {places.model}; they "
                "get the mean of all rows",
                flush=True,
            )
        check_init(config.model.new_rows, expansion, places.tokenizer, places.donor)
        check_new_rows_exist(config.tuning, expansion is not None, places.model)
        check_adapters(config.tuning, places.model)


def check_context(config: Any, tokens: Artifact, parents: Iterable[Artifact]) -> None:
    """Refuse rows that are longer than the model has positions for."""
    places, length = open_places(config, parents), tokens.facts["context_length"]
    longest = read_max_positions(places.model) if places.model else config.model.shape.max_positions
    if longest is not None and length > longest:
        raise ConfigError(
            f"{tokens.ref} has rows of {length:,} tokens and the model positions for {longest:,}; encode with "
            f"context_length={longest}, or choose a model with a longer context"
        )


def expansion_for(places: Places, num_rows: int, ref: Ref | str) -> Expansion | None:
    """Return the expansion that takes the model to the tokenizer, None when it is the model's own; DataError when neither.

    Ids that fit into the model's rows prove nothing: in another tokenizer they mean other text.
    """
    if tokenizer_hash(places.tokenizer) == tokenizer_hash(places.model):
        return None
    expansion = find_expansion(places.tokenizer)
    if expansion is None or not expansion.pieces:
        raise DataError(
            f"the tokenizer of {ref} is neither that of the model with {num_rows:,} embedding rows nor an expansion of it; "
            "expand the model's own tokenizer, or encode with the model's own"
        )
    if expansion.base_hash != tokenizer_hash(places.model):
        raise DataError(
            f"{places.tokenizer} expands a tokenizer of {expansion.base_size:,} pieces, not the one of the model with "
            f"{num_rows:,} rows; expand the model's own tokenizer"
        )
    return expansion


def find_expansion(place: str) -> Expansion | None:
    """Return what expansion added to a tokenizer; None for one that was not made by expand_tokenizer."""
    return load_expansion(place) if (Path(place) / EXPANSION).exists() else None


def prepare_model(config: Any, places: Places, manifest: NewRows | None = None) -> Adapted:
    """Return the model of `outline`, whole in this process."""
    adapted = outline(config, places, manifest)
    load_shards(adapted.model, adapted.sources)
    return adapted


def outline(config: Any, places: Places, manifest: NewRows | None = None) -> Adapted:
    """Make the model without its weights, grow its vocabulary where the tokenizer did, attach adapters. The same on every rank.

    With the manifest of a model that was prepared before, its new rows are replayed.
    """
    tokenizer = open_tokenizer(places.tokenizer)
    sources: tuple[Source, ...]
    if places.model:
        model, sources = make_meta_model(places.model)
        manifest = _grow(model, sources, config.model.new_rows, places, manifest)
    else:
        expansion = find_expansion(places.tokenizer)
        size = expansion.size if expansion else len(tokenizer)
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model, drawn = make_random_model(config.model, size, special, config.loop.seed)
        sources = (drawn,)
    rows = choose_rows(config.tuning, model, manifest, places.model)
    wrapper, sources = apply_tuning(config.tuning, model, sources, rows, config.loop.seed)
    return Adapted(wrapper.base_model.model if wrapper is not None else model, wrapper, manifest, rows, sources)


def _grow(
    model: Any, sources: tuple[Source, ...], config: RowInitConfig, places: Places, manifest: NewRows | None
) -> NewRows | None:
    """Give the model the rows that its tokenizer needs, as before or anew; None when it needs none."""
    if manifest is not None:
        load_embeddings(model, sources)
        replay_new_rows(model, manifest)
        return manifest
    expansion = expansion_for(places, model.get_input_embeddings().weight.shape[0], places.tokenizer)
    check_init(config, expansion, places.tokenizer, places.donor)
    if expansion is None:
        return None
    load_embeddings(model, sources)
    return grow_vocabulary(model, config, expansion, places.tokenizer, places.donor)
