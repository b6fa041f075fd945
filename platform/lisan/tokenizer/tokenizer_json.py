"""A `tokenizer.json` as plain data, and the two ways to add to one that every family shares.

In: the parsed file. Out: a changed copy, or the `tokenizers` object it describes. Always: ids that are in use keep their meaning,
and new ones go on after the highest, added tokens included.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lisan.core.errors import DataError
from lisan.tokenizer.expand.merges import Learned

Spec = dict[str, Any]
Parts = dict[int, tuple[int, ...]]
"The base's pieces of every new id."


def open_spec(spec: Spec) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(spec))


def iter_steps(part: Spec | None) -> Iterator[Spec]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, which may be a sequence of them."""
    if part:
        inner = part.get("normalizers", part.get("pretokenizers", part.get("decoders")))
        for step in inner or ():
            yield from iter_steps(step)
        if inner is None:
            yield part


def vocabulary(spec: Spec) -> dict[str, int]:
    """Return the model's pieces with their ids; a Unigram model lists them in order, with scores."""
    pieces = spec["model"]["vocab"]
    return pieces if isinstance(pieces, dict) else {piece: index for index, (piece, _) in enumerate(pieces)}


def first_free_id(spec: Spec) -> int:
    used: list[int] = [*vocabulary(spec).values(), *(token["id"] for token in spec["added_tokens"])]
    return max(used) + 1


def unknown_id(spec: Spec) -> int | None:
    """Return the id for what the model cannot spell; None for one that never needs it."""
    model = spec["model"]
    if model["type"] == "Unigram":
        return None if model.get("unk_id") is None else int(model["unk_id"])
    return vocabulary(spec).get(model.get("unk_token") or "")


def segment(spec: Spec, words: Iterable[str]) -> list[list[int]]:
    """Return the ids of words in the model's own letters, without normaliser, pre-tokenizer or added tokens."""
    model = open_spec(spec).model
    return [[token.id for token in model.tokenize(word)] for word in words]


def texts_by_id(spec: Spec) -> list[str]:
    """Return the model's pieces by id, empty where an id belongs to an added token alone."""
    pieces = [""] * first_free_id(spec)
    for piece, index in vocabulary(spec).items():
        pieces[index] = piece
    return pieces


def append_pieces(spec: Spec, learned: Learned) -> tuple[Spec, list[str]]:
    """Append characters and merges to a BPE model; also return the new pieces in the order of their ids.

    Added tokens enter the vocabulary under the ids they have: the library numbers those that it does not find there by
    the size of the vocabulary, which has just changed.
    """
    grown = copy.deepcopy(spec)
    pieces, rules = grown["model"]["vocab"], grown["model"]["merges"]
    as_text = bool(rules) and isinstance(rules[0], str)
    names = {index: piece for piece, index in pieces.items()}
    pieces.update({token["content"]: token["id"] for token in grown["added_tokens"]})
    first = first_free_id(spec)
    names |= dict(enumerate(learned.characters, first))
    for index, (left, right) in enumerate(learned.merges, first + len(learned.characters)):
        names[index] = names[left] + names[right]
        rules.append(f"{names[left]} {names[right]}" if as_text else [names[left], names[right]])
    new = [names[index] for index in range(first, first + len(learned))]
    pieces.update({piece: index for index, piece in enumerate(new, first)})
    return grown, new


def append_special_tokens(spec: Spec, contents: Sequence[str], score: float | None = None) -> None:
    """Give each content the next id, in place; `score` is what a Unigram model lists beside it."""
    for content in contents:
        assert content not in vocabulary(spec), content
        index = first_free_id(spec)
        if score is None:
            spec["model"]["vocab"][content] = index
        else:
            spec["model"]["vocab"].append([content, score])
        spec["added_tokens"].append(special_token(content, index))


def special_token(content: str, index: int) -> Spec:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **switches, "special": True}


def claim_piece(spec: Spec, content: str, place: str) -> Spec:
    """Declare a piece that the vocabulary holds and no text reaches (a reserved row) as a special token."""
    index = vocabulary(spec)[content]
    if segment(spec, [content]) == [[index]]:
        raise DataError(
            f"special_tokens: {content!r} is an ordinary piece of base {place}, which text may hold; choose a content that "
            "no text has"
        )
    return {**spec, "added_tokens": [*spec["added_tokens"], special_token(content, index)]}
