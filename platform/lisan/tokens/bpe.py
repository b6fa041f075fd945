"""Byte-level BPE as `tokenizer.json` states it (GPT-2, GPT-NeoX, Llama-3, Qwen): read, count with, learn, grow.

In: the parsed `tokenizer.json` of a base, or texts to learn one from. Out: a parsed `tokenizer.json`. Always: ids of
the base never move, and its merges keep their priority over every new one. `tokens/expand.py` is the caller.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lisan.core.errors import DataError
from lisan.tokens.merges import Merge, Script

Spec = dict[str, Any]

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"Words of a new tokenizer. Marks belong to words, else every Arabic diacritic would cut one; digits stand alone."


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


def check_byte_level(spec: Spec, place: str) -> None:
    """Refuse a tokenizer that is not byte-level BPE."""
    model = spec.get("model") or {}
    kind = str(model.get("type") or "unknown model")
    steps = {step.get("type") for part in ("pre_tokenizer", "decoder") for step in _steps(spec.get(part))}
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    if kind != "BPE" or model.get("byte_fallback") or "ByteLevel" not in steps or not plain:
        if model.get("byte_fallback") or "Metaspace" in steps:
            kind = f"SentencePiece-style {kind}"
        raise DataError(
            f"base {place} is a {kind} tokenizer, expected byte-level BPE (GPT-2, GPT-NeoX, Llama-3, Qwen style); "
            "choose such a base, or base=null to learn a new tokenizer"
        )


def _steps(part: Spec | None) -> list[Spec]:
    """Return the steps of a pre-tokenizer or decoder, which may be a sequence of them."""
    if not part:
        return []
    return list(part.get("pretokenizers") or part.get("decoders") or [part])


def first_free_id(spec: Spec) -> int:
    used: list[int] = [*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]
    return max(used) + 1


def count_words(spec: Spec, texts: Iterable[str], script: Script) -> Counter[str]:
    """Count the words of the target scripts, cut and normalised as the base does it, in byte-level letters."""
    tokenizer = open_spec(spec)
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalise(text)))
    texts_of = {word: to_bytes(word).decode("utf-8", "ignore") for word in counts}
    return Counter({word: count for word, count in counts.items() if script.occurs_in(texts_of[word])})


def segment(spec: Spec, words: Iterable[str]) -> list[list[int]]:
    """Return the ids of words given in byte-level letters, without normaliser, pre-tokenizer or added tokens."""
    model = open_spec(spec).model
    return [[token.id for token in model.tokenize(word)] for word in words]


def pieces_by_id(spec: Spec) -> list[bytes]:
    pieces = [b""] * first_free_id(spec)
    for piece, index in spec["model"]["vocab"].items():
        pieces[index] = to_bytes(piece)
    return pieces


def list_pieces(spec: Spec, ids: Iterable[int]) -> str:
    """Return new pieces for a human reader, one a line; what is no whole character shows as its bytes."""
    pieces = pieces_by_id(spec)
    return "".join(f"{index}\t{pieces[index].decode('utf-8', 'backslashreplace')!r}\n" for index in ids)


def grow(spec: Spec, merges: Sequence[Merge], special_tokens: Sequence[str]) -> tuple[Spec, dict[int, tuple[int, ...]]]:
    """Append learned merges and then special tokens; also return the old pieces of every new id.

    Added tokens enter the vocabulary under the ids they have: the library numbers those that it does not find there by
    the size of the vocabulary, which has just changed.
    """
    grown = copy.deepcopy(spec)
    vocabulary, rules = grown["model"]["vocab"], grown["model"]["merges"]
    as_text = bool(rules) and isinstance(rules[0], str)
    names = {index: piece for piece, index in vocabulary.items()}
    vocabulary.update({token["content"]: token["id"] for token in grown["added_tokens"]})
    first = first_free_id(spec)
    for index, (left, right) in enumerate(merges, first):
        names[index] = names[left] + names[right]
        vocabulary[names[index]] = index
        rules.append(f"{names[left]} {names[right]}" if as_text else [names[left], names[right]])
    learned = [names[index] for index in range(first, first + len(merges))]
    for index, content in enumerate(special_tokens, first + len(merges)):
        assert content not in vocabulary, content
        vocabulary[content] = index
        grown["added_tokens"].append(_special_token(content, index))
    parts = segment(spec, [*learned, *(to_piece(content.encode()) for content in special_tokens)])
    return grown, {index: tuple(old) for index, old in enumerate(parts, first)}


def _special_token(content: str, index: int) -> Spec:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **switches, "special": True}


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


def open_spec(spec: Spec) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(spec))
