"""SentencePiece BPE as `tokenizer.json` states it (Llama-2, Mistral, OpenLLaMA, Gemma): count with, grow.

In: the parsed `tokenizer.json` of a base. Out: a expanded one. Always: ids of the base never move, its merges keep their
priority, and a new piece holds characters of the target scripts only, with or without `▁` before them. Such a base cuts
no words and spells unknown characters in bytes or not at all, so that characters become pieces first and words are
cut here. A `TokenizerFamily` of `vocabulary/families.py`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lisan.tokenizer.expand.append_pieces import OldPieces, append_pieces, append_special_tokens
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.script import SPACE, Script
from lisan.tokenizer.tokenizer_json import (
    Definition,
    first_free_id,
    iter_steps,
    open_definition,
    texts_by_id,
    tokenize_words,
    vocabulary,
)

METHOD = "continued_sentencepiece_bpe"
CHUNK = re.compile(r"\s*\S+")
"A run of visible characters with the space before it: distinct ones are few, and each is normalised once."


def recognises(definition: Definition) -> bool:
    model = definition.get("model") or {}
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model.get("type") == "BPE" and plain and writes_spaces(definition)


def writes_spaces(definition: Definition) -> bool:
    """Tell whether a space is written as `▁`, by a normaliser or a pre-tokenizer."""
    replaced = any(step.get("content") == SPACE for step in iter_steps(definition.get("normalizer")))
    return replaced or any(step.get("replacement") == SPACE for step in iter_steps(definition.get("pre_tokenizer")))


def count_words(definition: Definition, texts: Iterable[str], script: Script) -> Counter[str]:
    """Count runs of letters of the target scripts with the `▁` before them, and their digits and signs one by one."""
    prepended = " " * any(step["type"] == "Prepend" for step in iter_steps(definition.get("normalizer")))
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(CHUNK.findall(prepended + text))
    tokenizer = open_definition(_without_prefix(definition))
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    cut = tokenizer.pre_tokenizer.pre_tokenize_str if tokenizer.pre_tokenizer else lambda text: [(text, None)]
    pattern = script.word_pattern
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        if not chunk.isascii():
            for part, _ in cut(normalise(chunk)):
                for word in pattern.findall(part):
                    words[word] += count
    return words


def _without_prefix(definition: Definition) -> Definition:
    """Return the tokenizer without the normaliser that puts `▁` before a text: a chunk is no text."""
    steps = [step for step in iter_steps(definition.get("normalizer")) if step["type"] != "Prepend"]
    return {**definition, "normalizer": {"type": "Sequence", "normalizers": steps}}


def missing_characters(definition: Definition, words: Mapping[str, int], script: Script) -> Counter[str]:
    """Count the characters of the target scripts for which the base has no piece."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    known = vocabulary(definition)
    return Counter({c: count for c, count in counts.items() if c not in known and c in script.characters})


def with_characters(definition: Definition, characters: Sequence[str]) -> Definition:
    """Return the base with pieces of one character, as `append_learned` numbers them."""
    first = first_free_id(definition)
    added = {token["content"]: token["id"] for token in definition["added_tokens"]}
    pieces = (
        definition["model"]["vocab"] | added | {character: index for index, character in enumerate(characters, first)}
    )
    return {**definition, "model": {**definition["model"], "vocab": pieces}}


def pieces_by_id(definition: Definition) -> list[str]:
    return texts_by_id(definition)


def owns(script: Script, piece: str) -> bool:
    return script.owns_text(piece)


def append_learned(
    definition: Definition,
    learned: Learned,
    special_tokens: Sequence[str],
    words: Mapping[str, int],  # noqa: ARG001
) -> tuple[Definition, OldPieces]:
    """Append characters, merges and special tokens; also return the old pieces, or bytes, of every new id."""
    expanded, pieces = append_pieces(definition, learned)
    append_special_tokens(expanded, special_tokens)
    old = tokenize_words(definition, [*pieces, *special_tokens])
    return expanded, {index: tuple(ids) for index, ids in enumerate(old, first_free_id(definition))}


def show_piece(piece: str) -> str:
    return piece
