"""Byte-level BPE as `tokenizer.json` states it (GPT-2, GPT-NeoX, Llama-3, Qwen): read, count with, learn, grow.

In: the parsed `tokenizer.json` of a base, or texts to learn one from. Out: a parsed `tokenizer.json`. Always: ids of
the base never move, and its merges keep their priority over every new one. A `Family` of `vocabulary/families.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.script import Script
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
)

METHOD = "continued_bpe"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"Words of a new tokenizer. Marks belong to words, else every Arabic diacritic would cut one; digits stand alone."
CHUNK = re.compile(r"[^\S\r\n]?\S+[\r\n]*")
"""What no usual pre-tokenizer joins to its neighbours: a run of visible characters, one space before, line ends after.

Distinct chunks are few: cutting each once takes a fifth of the time of cutting the text."""


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary (Radford et al., 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def to_bytes(piece: str) -> bytes:
    """Return the bytes a piece stands for; what is no byte-level piece (an added token) counts as its own text."""
    try:
        return bytes(BYTES[character] for character in piece)
    except KeyError:
        return piece.encode()


def to_piece(data: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in data)


def recognises(spec: Spec) -> bool:
    model = spec.get("model") or {}
    steps = {step.get("type") for part in ("pre_tokenizer", "decoder") for step in iter_steps(spec.get(part))}
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model.get("type") == "BPE" and plain and not model.get("byte_fallback") and "ByteLevel" in steps


def count_words(spec: Spec, texts: Iterable[str], script: Script) -> Counter[str]:
    """Count the words of the target scripts, cut and normalised as the base does it, in byte-level letters."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(CHUNK.findall(text))
    tokenizer = open_spec(_without_prefix(spec))
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        if script.occurs_in(chunk) or not chunk.isascii():
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalise(chunk)):
                counts[word] += count
    texts_of = {word: to_bytes(word).decode("utf-8", "ignore") for word in counts}
    return Counter({word: count for word, count in counts.items() if script.occurs_in(texts_of[word])})


def _without_prefix(spec: Spec) -> Spec:
    """Return the tokenizer without the space that some put before a text: a chunk is no text."""
    steps = [{**step, "add_prefix_space": False} for step in iter_steps(spec["pre_tokenizer"])]
    return {**spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def missing_characters(spec: Spec, words: Mapping[str, int], script: Script) -> Counter[str]:  # noqa: ARG001
    """Return none: bytes spell everything."""
    return Counter()


def with_characters(spec: Spec, characters: Sequence[str]) -> Spec:
    assert not characters
    return spec


def pieces_by_id(spec: Spec) -> list[bytes]:
    return [to_bytes(piece) for piece in texts_by_id(spec)]


def owns(script: Script, piece: bytes) -> bool:
    return script.owns(piece)


def grow(spec: Spec, learned: Learned, special_tokens: Sequence[str], words: Mapping[str, int]) -> tuple[Spec, Parts]:  # noqa: ARG001
    """Append learned merges and then special tokens; also return the old pieces of every new id."""
    grown, pieces = append_pieces(spec, learned)
    append_special_tokens(grown, special_tokens)
    spelt = [*pieces, *(to_piece(content.encode()) for content in special_tokens)]
    return grown, {index: tuple(old) for index, old in enumerate(segment(spec, spelt), first_free_id(spec))}


def show_piece(piece: str) -> str:
    """Return a piece for a human reader; what is no whole character shows as its bytes."""
    return to_bytes(piece).decode("utf-8", "backslashreplace")


def learn(texts: Iterable[str], num_pieces: int, special_tokens: Sequence[str], min_count: int) -> Spec:
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
    spec: Spec = json.loads(tokenizer.to_str())
    return spec
