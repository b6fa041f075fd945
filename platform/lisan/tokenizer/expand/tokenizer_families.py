"""The kinds of tokenizer that can be expanded, behind one set of functions.

In: the parsed `tokenizer.json` of a base. Out: the module that knows how to count with it and grow it. Always: a kind that no
module knows is refused by name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from lisan.core.errors import DataError
from lisan.tokenizer.expand import bpe, metaspace, unigram
from lisan.tokenizer.expand.append_pieces import OldPieces
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.script import Script
from lisan.tokenizer.tokenizer_json import Definition, first_free_id, texts_by_id, vocabulary


class TokenizerFamily(Protocol):
    """What `bpe`, `metaspace` and `unigram` have in common; words are in the letters of the model's own pieces."""

    METHOD: str

    def recognises(self, definition: Definition) -> bool: ...
    def count_words(self, definition: Definition, texts: Iterable[str], script: Script) -> Counter[str]: ...
    def missing_characters(self, definition: Definition, words: Mapping[str, int], script: Script) -> Counter[str]: ...
    def with_characters(self, definition: Definition, characters: Sequence[str]) -> Definition: ...
    def pieces_by_id(self, definition: Definition) -> Sequence[Any]: ...
    def owns(self, script: Script, piece: Any) -> bool: ...
    def append_learned(
        self, definition: Definition, learned: Learned, special_tokens: Sequence[str], words: Mapping[str, int]
    ) -> tuple[Definition, OldPieces]: ...
    def show_piece(self, piece: str) -> str: ...


FAMILIES: tuple[TokenizerFamily, ...] = (bpe, metaspace, unigram)


def find_family(definition: Definition, place: str) -> TokenizerFamily:
    """Return the module for a base; DataError for a kind whose expansion would change existing ids."""
    model = definition.get("model") or {}
    found = next((family for family in FAMILIES if family.recognises(definition)), None)
    if found is None:
        marks = [name for name in ("end_of_word_suffix", "continuing_subword_prefix") if model.get(name)]
        kind = f"{model.get('type') or 'nameless'} tokenizer" + "".join(f" with {mark}" for mark in marks)
        raise DataError(
            f"base {place} is a {kind}, expected byte-level BPE (GPT-2, Llama-3, Qwen), SentencePiece BPE (Llama-2, Mistral) or "
            "SentencePiece Unigram (T5, XLM-R); choose such a base, or base=null to learn a new tokenizer"
        )
    used = {*vocabulary(definition).values(), *(token["id"] for token in definition["added_tokens"])}
    if isinstance(model["vocab"], list) and len(used) != first_free_id(definition):
        gap = min(set(range(first_free_id(definition))) - used)
        raise DataError(
            f"base {place} is a Unigram tokenizer without a piece for id {gap}, but its pieces are numbered by their place in a "
            "list; save it again with a token for every id, or choose another base"
        )
    return found


def list_pieces(family: TokenizerFamily, definition: Definition, ids: Iterable[int]) -> str:
    """Return new pieces for a human reader, one a line."""
    pieces = texts_by_id(definition)
    return "".join(f"{index}\t{family.show_piece(pieces[index])!r}\n" for index in ids)
