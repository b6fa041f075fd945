"""A base tokenizer, opened for expansion.

In: a folder with `tokenizer.json` or `tokenizer.model`. Out: a `Base`. Always: a kind that cannot grow is refused by name, before
a text is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lisan.tokenizer import tokenizer
from lisan.tokenizer.expand.append_pieces import claim_piece
from lisan.tokenizer.expand.tokenizer_families import TokenizerFamily, find_family
from lisan.tokenizer.tokenizer_json import Definition, vocabulary


@dataclass(frozen=True, slots=True)
class Base:
    """An opened base tokenizer."""

    name: str
    folder: Path
    definition: Definition
    hash: str
    "sha256 of its tokenizer.json, or of the one that its tokenizer.model becomes."
    family: TokenizerFamily


def open_base(name: str, place: Path | str) -> Base:
    folder = tokenizer.tokenizer_folder(place)
    data = tokenizer.read_definition(folder)
    definition = json.loads(data)
    return Base(name, folder, definition, tokenizer.digest(data), find_family(definition, name))


def claim_tokens(base: Base, wanted: Sequence[str], eos_token: str, pad_token: str) -> tuple[Definition, list[str]]:
    """Return the base with rows that it reserved for wanted tokens declared as such, and the tokens it lacks altogether.

    A role that the base fills itself needs no second token.
    """
    definition, lacking = base.definition, []
    roles = tokenizer.read_roles(base.folder)
    filled = {eos_token: "eos_token", pad_token: "pad_token"}
    added = {token["content"] for token in definition["added_tokens"]}
    for content in wanted:
        if content in added or filled.get(content) in roles:
            continue
        if content in vocabulary(definition):
            definition = claim_piece(definition, content, base.name)
        else:
            lacking.append(content)
    return definition, lacking
