"""SentencePiece BPE as `tokenizer.json` states it (Llama-2, Mistral, OpenLLaMA, Gemma): count with, grow.

In: the parsed `tokenizer.json` of a base. Out: a grown one. Always: ids of the base never move, its merges keep their
priority, and a new piece holds characters of the target scripts only, with or without `▁` before them. Such a base cuts
no words and spells what it has no piece for in bytes or not at all, so that characters become pieces first and words are
cut here. A `Family` of `vocabulary/families.py`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.script import SPACE, Script
from lisan.tokenizer.tokenizer_json import (
    Parts,
    Spec,
    append_pieces,
    append_special_tokens,
    first_free_id,
    iter_steps,
    open_spec,
    segment,
    texts_by_id,
    vocabulary,
)

METHOD = "continued_sentencepiece_bpe"
CHUNK = re.compile(r"\s*\S+")
"A run of visible characters with the space before it: distinct ones are few, and each is normalised once."


def recognises(spec: Spec) -> bool:
    model = spec.get("model") or {}
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model.get("type") == "BPE" and plain and writes_spaces(spec)


def writes_spaces(spec: Spec) -> bool:
    """Tell whether a space is written as `▁`, by a normaliser or a pre-tokenizer."""
    replaced = any(step.get("content") == SPACE for step in iter_steps(spec.get("normalizer")))
    return replaced or any(step.get("replacement") == SPACE for step in iter_steps(spec.get("pre_tokenizer")))


def count_words(spec: Spec, texts: Iterable[str], script: Script) -> Counter[str]:
    """Count runs of letters of the target scripts with the `▁` before them, and their digits and signs one by one."""
    prepended = " " * any(step["type"] == "Prepend" for step in iter_steps(spec.get("normalizer")))
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(CHUNK.findall(prepended + text))
    tokenizer = open_spec(_without_prefix(spec))
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


def _without_prefix(spec: Spec) -> Spec:
    """Return the tokenizer without the normaliser that puts `▁` before a text: a chunk is no text."""
    steps = [step for step in iter_steps(spec.get("normalizer")) if step["type"] != "Prepend"]
    return {**spec, "normalizer": {"type": "Sequence", "normalizers": steps}}


def missing_characters(spec: Spec, words: Mapping[str, int], script: Script) -> Counter[str]:
    """Count the characters of the target scripts for which the base has no piece."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    known = vocabulary(spec)
    return Counter({c: count for c, count in counts.items() if c not in known and c in script.characters})


def with_characters(spec: Spec, characters: Sequence[str]) -> Spec:
    """Return the base with pieces of one character, as `grow` numbers them."""
    first = first_free_id(spec)
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    pieces = spec["model"]["vocab"] | added | {character: index for index, character in enumerate(characters, first)}
    return {**spec, "model": {**spec["model"], "vocab": pieces}}


def pieces_by_id(spec: Spec) -> list[str]:
    return texts_by_id(spec)


def owns(script: Script, piece: str) -> bool:
    return script.owns_text(piece)


def grow(spec: Spec, learned: Learned, special_tokens: Sequence[str], words: Mapping[str, int]) -> tuple[Spec, Parts]:  # noqa: ARG001
    """Append characters, merges and special tokens; also return the old pieces, or bytes, of every new id."""
    grown, pieces = append_pieces(spec, learned)
    append_special_tokens(grown, special_tokens)
    old = segment(spec, [*pieces, *special_tokens])
    return grown, {index: tuple(ids) for index, ids in enumerate(old, first_free_id(spec))}


def show_piece(piece: str) -> str:
    return piece
