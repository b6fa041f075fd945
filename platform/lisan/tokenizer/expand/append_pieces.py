"""Adds pieces and special tokens to a `tokenizer.json`, in the ways that every family of tokenizers shares.

Ids in use keep their meaning; new ids follow the highest, added tokens included.
"""

import copy
from collections.abc import Sequence

from lisan.core.errors import DataError
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.tokenizer_json import Definition, first_free_id, special_token, tokenize_words, vocabulary

OldPieces = dict[int, tuple[int, ...]]
"The base's pieces of every new id."


def append_pieces(definition: Definition, learned: Learned) -> tuple[Definition, list[str]]:
    """Append characters and merges to a BPE model; also return the new pieces in the order of their ids.

    Added tokens enter the vocabulary under the ids they have: the library numbers those that it does not find there by
    the size of the vocabulary, which has just changed.
    """
    expanded = copy.deepcopy(definition)
    pieces, rules = expanded["model"]["vocab"], expanded["model"]["merges"]
    as_text = bool(rules) and isinstance(rules[0], str)
    names = {index: piece for piece, index in pieces.items()}
    pieces.update({token["content"]: token["id"] for token in expanded["added_tokens"]})
    first = first_free_id(definition)
    names |= dict(enumerate(learned.characters, first))
    for index, (left, right) in enumerate(learned.merges, first + len(learned.characters)):
        names[index] = names[left] + names[right]
        rules.append(f"{names[left]} {names[right]}" if as_text else [names[left], names[right]])
    new = [names[index] for index in range(first, first + len(learned))]
    pieces.update({piece: index for index, piece in enumerate(new, first)})
    return expanded, new


def append_special_tokens(definition: Definition, contents: Sequence[str], score: float | None = None) -> None:
    """Give each content the next id, in place; `score` is its score in a Unigram model."""
    for content in contents:
        assert content not in vocabulary(definition), content
        index = first_free_id(definition)
        if score is None:
            definition["model"]["vocab"][content] = index
        else:
            definition["model"]["vocab"].append([content, score])
        definition["added_tokens"].append(special_token(content, index))


def claim_piece(definition: Definition, content: str, place: str) -> Definition:
    """Declare a piece that the vocabulary holds and no text reaches (a reserved row) as a special token."""
    index = vocabulary(definition)[content]
    if tokenize_words(definition, [content]) == [[index]]:
        raise DataError(
            f"special_tokens: {content!r} is an ordinary piece of base {place}, which text may hold; choose a content that "
            "no text has"
        )
    return {**definition, "added_tokens": [*definition["added_tokens"], special_token(content, index)]}
