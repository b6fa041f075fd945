"""A base tokenizer, opened for expansion.

In: a folder with `tokenizer.json` or `tokenizer.model`. Out: a `Base`. Always: a kind that cannot grow is refused by name, before
a text is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lisan.tokenizer import tokenizer
from lisan.tokenizer.expand.tokenizer_families import Family, find_family
from lisan.tokenizer.tokenizer_json import Spec, claim_piece, vocabulary


@dataclass(frozen=True, slots=True)
class Base:
    """An opened base tokenizer."""

    name: str
    folder: Path
    spec: Spec
    hash: str
    "sha256 of its tokenizer.json, or of the one that its tokenizer.model becomes."
    family: Family


def open_base(name: str, place: Path | str) -> Base:
    folder = tokenizer.tokenizer_folder(place)
    data = tokenizer.read_definition(folder)
    spec = json.loads(data)
    return Base(name, folder, spec, tokenizer.digest(data), find_family(spec, name))


def claim_tokens(base: Base, wanted: Sequence[str], eos_token: str, pad_token: str) -> tuple[Spec, list[str]]:
    """Return the base with rows that it reserved for wanted tokens declared as such, and the tokens it lacks altogether.

    A role that the base fills itself needs no second token.
    """
    spec, lacking = base.spec, []
    roles = tokenizer.read_roles(base.folder)
    filled = {eos_token: "eos_token", pad_token: "pad_token"}
    added = {token["content"] for token in spec["added_tokens"]}
    for content in wanted:
        if content in added or filled.get(content) in roles:
            continue
        if content in vocabulary(spec):
            spec = claim_piece(spec, content, base.name)
        else:
            lacking.append(content)
    return spec, lacking
