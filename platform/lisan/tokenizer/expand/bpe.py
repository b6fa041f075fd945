"""Byte-level BPE as `tokenizer.json` states it (GPT-2, GPT-NeoX, Llama-3, Qwen): read, count with, learn, grow.

In: the parsed `tokenizer.json` of a base, or texts to learn one from. Out: a parsed `tokenizer.json`. Always: ids of
the base never move, and its merges keep their priority over every new one. A `TokenizerFamily` of `vocabulary/families.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lisan.tokenizer.expand.append_pieces import OldPieces, append_pieces, append_special_tokens
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.pieces import BYTE_CHARACTERS
from lisan.tokenizer.script import Script
from lisan.tokenizer.tokenizer_json import (
    Definition,
    first_free_id,
    iter_steps,
    open_definition,
    texts_by_id,
    tokenize_words,
)

METHOD = "continued_bpe"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"Words of a new tokenizer. Marks belong to words, else every Arabic diacritic would cut one; digits stand alone."
CHUNK = re.compile(r"[^\S\r\n]?\S+[\r\n]*")
"""A unit that no usual pre-tokenizer joins to its neighbours: a run of visible characters, one space before, line ends after.

Distinct chunks are few: cutting each once takes a fifth of the time of cutting the text."""


BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def to_bytes(piece: str) -> bytes:
    """Return the bytes a piece stands for; an added token, which is no byte-level piece, counts as its own text."""
    try:
        return bytes(BYTES[character] for character in piece)
    except KeyError:
        return piece.encode()


def to_piece(data: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in data)


def recognises(definition: Definition) -> bool:
    model = definition.get("model") or {}
    steps = {step.get("type") for part in ("pre_tokenizer", "decoder") for step in iter_steps(definition.get(part))}
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model.get("type") == "BPE" and plain and not model.get("byte_fallback") and "ByteLevel" in steps


def count_words(definition: Definition, texts: Iterable[str], script: Script) -> Counter[str]:
    """Count the words of the target scripts, cut and normalised as the base does it, in byte-level letters."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(CHUNK.findall(text))
    tokenizer = open_definition(_without_prefix(definition))
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        if script.occurs_in(chunk) or not chunk.isascii():
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalise(chunk)):
                counts[word] += count
    texts_of = {word: to_bytes(word).decode("utf-8", "ignore") for word in counts}
    return Counter({word: count for word, count in counts.items() if script.occurs_in(texts_of[word])})


def _without_prefix(definition: Definition) -> Definition:
    """Return the tokenizer without the space that some put before a text: a chunk is no text."""
    steps = [{**step, "add_prefix_space": False} for step in iter_steps(definition["pre_tokenizer"])]
    return {**definition, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def missing_characters(definition: Definition, words: Mapping[str, int], script: Script) -> Counter[str]:  # noqa: ARG001
    """Return none: bytes spell everything."""
    return Counter()


def with_characters(definition: Definition, characters: Sequence[str]) -> Definition:
    assert not characters
    return definition


def pieces_by_id(definition: Definition) -> list[bytes]:
    return [to_bytes(piece) for piece in texts_by_id(definition)]


def owns(script: Script, piece: bytes) -> bool:
    return script.owns(piece)


def append_learned(
    definition: Definition,
    learned: Learned,
    special_tokens: Sequence[str],
    words: Mapping[str, int],  # noqa: ARG001
) -> tuple[Definition, OldPieces]:
    """Append learned merges and then special tokens; also return the old pieces of every new id."""
    expanded, pieces = append_pieces(definition, learned)
    append_special_tokens(expanded, special_tokens)
    spelt = [*pieces, *(to_piece(content.encode()) for content in special_tokens)]
    return expanded, {
        index: tuple(old) for index, old in enumerate(tokenize_words(definition, spelt), first_free_id(definition))
    }


def show_piece(piece: str) -> str:
    """Return a piece for a human reader; incomplete characters show as bytes."""
    return to_bytes(piece).decode("utf-8", "backslashreplace")


def learn(texts: Iterable[str], num_pieces: int, special_tokens: Sequence[str], min_count: int) -> Definition:
    """Learn a byte-level BPE from nothing; `num_pieces` counts the 256 bytes and the special tokens too."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        min_frequency=min_count,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    definition: Definition = json.loads(tokenizer.to_str())
    return definition
