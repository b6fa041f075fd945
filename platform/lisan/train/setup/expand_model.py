"""Expands the embedding matrices for the new pieces of a tokenizer and writes the manifest of their rows.

A missing requirement of the initialisation (neighbours beside the tokenizer, a donor) is refused before a worker starts.
"""

from dataclasses import replace
from typing import Any

from lisan.core.errors import ConfigError
from lisan.model.config import InitMethod, RowInitConfig
from lisan.model.embeddings.donor import project_donor
from lisan.model.embeddings.new_rows import NewRows, init_new_rows
from lisan.model.meta_model import load_embeddings, make_meta_model
from lisan.tokenizer.expand.neighbours import match_pieces, read_neighbours
from lisan.tokenizer.tokenizer import Expansion, open_tokenizer


def check_init(config: RowInitConfig, expansion: Expansion | None, tokenizer: str, donor: str) -> None:
    """Refuse an initialisation without new rows, or without its requirements."""
    if expansion is None and config != RowInitConfig():
        raise ConfigError(
            f"model.new_rows.method={config.method} has no effect: {tokenizer} has no piece that the model lacks; drop it, "
            "or name an expanded tokenizer in model.tokenizer"
        )
    if expansion is not None and config.method is InitMethod.similarity:
        read_neighbours(tokenizer, expansion.hash)
    if config.method is InitMethod.donor:
        open_tokenizer(donor)


def grow_vocabulary(model: Any, config: RowInitConfig, expansion: Expansion, tokenizer: str, donor: str) -> NewRows:
    """Give the model rows for the pieces of an expansion and return how they began."""
    recipe = NewRows(
        method=config.method,
        seed=config.seed,
        donor=config.donor,
        tokenizer_hash=expansion.hash,
        base_tokenizer_hash=expansion.base_hash,
        rows_after=expansion.size,
        num_old=expansion.base_size,
        pieces=expansion.pieces,
    )
    if config.method is InitMethod.similarity:
        neighbours = read_neighbours(tokenizer, expansion.hash)
        recipe = replace(recipe, neighbours=neighbours, num_fallbacks=len(recipe.pieces) - len(neighbours))
    if config.method is InitMethod.donor:
        matches = match_pieces(open_tokenizer(tokenizer), open_tokenizer(donor))
        giver, sources = make_meta_model(donor)
        load_embeddings(giver, sources)
        recipe = project_donor(model, giver, matches, recipe)
    return init_new_rows(model, recipe)
