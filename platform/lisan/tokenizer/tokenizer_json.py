"""A `tokenizer.json` as plain data, and the two ways to add to one that every family shares.

In: the parsed file. Out: a changed copy, or the `tokenizers` object it describes. Always: ids that are in use keep their meaning,
and new ones go on after the highest, added tokens included.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

Definition = dict[str, Any]


def open_definition(definition: Definition) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(definition))


def iter_steps(part: Definition | None) -> Iterator[Definition]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, which may be a sequence of them."""
    if part:
        inner = part.get("normalizers", part.get("pretokenizers", part.get("decoders")))
        for step in inner or ():
            yield from iter_steps(step)
        if inner is None:
            yield part


def vocabulary(definition: Definition) -> dict[str, int]:
    """Return the model's pieces with their ids; a Unigram model lists them in order, with scores."""
    pieces = definition["model"]["vocab"]
    return pieces if isinstance(pieces, dict) else {piece: index for index, (piece, _) in enumerate(pieces)}


def first_free_id(definition: Definition) -> int:
    used: list[int] = [*vocabulary(definition).values(), *(token["id"] for token in definition["added_tokens"])]
    return max(used) + 1


def unknown_id(definition: Definition) -> int | None:
    """Return the id of unknown text; None for a model that spells everything."""
    model = definition["model"]
    if model["type"] == "Unigram":
        return None if model.get("unk_id") is None else int(model["unk_id"])
    return vocabulary(definition).get(model.get("unk_token") or "")


def tokenize_words(definition: Definition, words: Iterable[str]) -> list[list[int]]:
    """Return the ids of words in the model's own letters, without normaliser, pre-tokenizer or added tokens."""
    model = open_definition(definition).model
    return [[token.id for token in model.tokenize(word)] for word in words]


def texts_by_id(definition: Definition) -> list[str]:
    """Return the model's pieces by id, empty where an id belongs to an added token alone."""
    pieces = [""] * first_free_id(definition)
    for piece, index in vocabulary(definition).items():
        pieces[index] = piece
    return pieces


def special_token(content: str, index: int) -> Definition:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **switches, "special": True}
