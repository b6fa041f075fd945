"""How well a tokenizer fits a text: tokens per word, with bytes per token beside it.

In: a transformers tokenizer and texts by source. Out: a `FertilityCounts` a source; two tokenizers compared over the same text.
Always: words are whitespace words and bytes are UTF-8 bytes of the text as given, so that rows of different tokenizers over one
text can be compared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from lisan.core.errors import DataError
from lisan.tokenizer.pieces import piece_bytes

_BATCH = 256
WORD_BINS = 64
"Bins of the tokens that a word takes; the last also holds the words that take more."
_SPACES = np.array([chr(code).isspace() for code in range(0x3002)])
"Whitespace ends at U+3000: every later character is looked up as U+3001, which is none."

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FertilityCounts:
    source: str
    language: str
    num_words: int
    num_bytes: int
    num_tokens: int
    num_continuations: int
    "Tokens that do not start a whitespace word."
    num_single_bytes: int
    "Tokens that are one byte of a character of several: the text is being spelt, not read."
    num_lines: int = 0
    num_changed_lines: int = 0
    "Lines that are not the same after encoding and decoding."
    word_tokens: tuple[int, ...] = (0,) * WORD_BINS
    "Words that take 1, 2, ... tokens; a space that is a token of its own before a word counts as the word's."

    @property
    def fertility(self) -> float:
        """Tokens per whitespace word."""
        return self.num_tokens / max(1, self.num_words)

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(1, self.num_tokens)

    @property
    def continuation_ratio(self) -> float:
        return self.num_continuations / max(1, self.num_tokens)

    @property
    def single_byte_ratio(self) -> float:
        return self.num_single_bytes / max(1, self.num_tokens)

    @property
    def whole_word_ratio(self) -> float:
        """Share of words that are one token."""
        return self.word_tokens[0] / max(1, self.num_words)

    def word_percentile(self, ratio: float) -> int:
        """Return the number of tokens within which that share of the words stays; 0 for no words."""
        counts = np.cumsum(self.word_tokens)
        return int(np.searchsorted(counts, ratio * counts[-1])) + 1 if counts[-1] else 0

    def to_plain(self) -> dict[str, Any]:
        """Return the row with its ratios for a manifest or a report."""
        ratios = ("fertility", "bytes_per_token", "continuation_ratio", "single_byte_ratio", "whole_word_ratio")
        counts = {"words": self.num_words, "bytes": self.num_bytes, "tokens": self.num_tokens}
        return {
            "source": self.source,
            "language": self.language,
            **counts,
            **{name: round(getattr(self, name), 4) for name in ratios},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two tokenizers over the same text."""

    before: FertilityCounts
    after: FertilityCounts

    @property
    def factor(self) -> float:
        """How many times fewer tokens the second takes."""
        return self.before.num_tokens / max(1, self.after.num_tokens)

    @property
    def context_factor(self) -> float:
        """How many times more text fits into the same context."""
        return self.after.bytes_per_token / max(1e-9, self.before.bytes_per_token)


def measure(tokenizer: Any, texts: Iterable[str], source: str = "", language: str = "") -> FertilityCounts:
    """Encode texts (no special tokens added) and count; a text without words still counts its bytes and tokens."""
    tables = _Tables(tokenizer)
    counts = [row for batch in _batches(texts) for row in _measure_batch(tables, batch)]
    return FertilityCounts(source=source, language=language, **_add(counts))


@dataclass(init=False, slots=True)
class _Tables:
    """A tokenizer with facts of each id."""

    tokenizer: Any
    spelt: Array
    space: Array

    def __init__(self, tokenizer: Any) -> None:
        pieces = piece_bytes(tokenizer)
        self.tokenizer = tokenizer
        self.spelt = find_spelt(pieces)
        self.space = np.array([piece == b" " for piece in pieces])


def _measure_batch(tables: _Tables, batch: list[str]) -> Iterator[FertilityCounts]:
    encodings = _encode(tables.tokenizer, batch)
    ids = [encoding.ids for encoding in encodings]
    decoded = tables.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    for text, encoding, row, back in zip(batch, encodings, ids, decoded, strict=True):
        index = np.asarray(row, dtype=np.int64)
        spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        words = count_word_tokens(text, spans, tables.space[index])
        yield FertilityCounts(
            source="",
            language="",
            num_words=len(words),
            num_bytes=len(text.encode()),
            num_tokens=len(index),
            num_continuations=count_continuations(text, spans[:, 0]),
            num_single_bytes=int(tables.spelt[index].sum()),
            num_lines=text.count("\n") + 1,
            num_changed_lines=count_changed_lines(text, back),
            word_tokens=tuple(np.bincount(words, minlength=WORD_BINS + 1)[1:].tolist()),
        )


def _add(rows: Sequence[FertilityCounts]) -> dict[str, Any]:
    """Add up every count of the rows."""
    names = ["num_words", "num_bytes", "num_tokens", "num_continuations", "num_single_bytes"]
    names += ["num_lines", "num_changed_lines"]
    histogram = np.sum([row.word_tokens for row in rows] or [(0,) * WORD_BINS], axis=0)
    return {
        **{name: sum(getattr(row, name) for row in rows) for name in names},
        "word_tokens": tuple(histogram.tolist()),
    }


def pool(rows: Sequence[FertilityCounts], source: str) -> FertilityCounts:
    """Add rows up; languages are kept when they agree."""
    if not rows:
        raise DataError(f"no text to measure the tokenizer on for {source}; name sources that hold documents")
    languages = sorted({row.language for row in rows})
    return FertilityCounts(source=source, language="+".join(languages), **_add(rows))


def changed_ratio(before: Any, after: Any, texts: Iterable[str]) -> float:
    """Return the share of the first tokenizer's tokens that the second does not put in the same place; 0 for no text."""
    total = changed = 0
    for batch in _batches(texts):
        for old, new in zip(_encode(before, batch), _encode(after, batch), strict=True):
            total += len(old.ids)
            if old.ids != new.ids:
                kept = set(zip(new.ids, new.offsets, strict=True))
                changed += sum(token not in kept for token in zip(old.ids, old.offsets, strict=True))
    return changed / max(1, total)


def count_continuations(text: str, starts: Array | Sequence[int]) -> int:
    """Count tokens, given where each starts in the text, that start inside a whitespace word.

    A token may take the space before its word along; bytes of one character all start where it does.
    """
    spaces, heads = _find_words(text)
    places = np.asarray(starts, dtype=np.int64)
    again = places == np.concatenate([[-1], places[:-1]])
    inside = places < len(spaces)
    places, again = places[inside], again[inside]
    return int((~spaces[places] & (~heads[places] | again)).sum())


def count_word_tokens(text: str, spans: Array, is_space: Array) -> Array:
    """Count the tokens of every whitespace word, at most WORD_BINS, given each token's (start, end) in the text.

    A token belongs to the first word that it holds a character of; a word without a token of its own was read as part
    of the one before it and counts as one. `is_space` marks tokens that are nothing but one space.
    """
    spaces, heads = _find_words(text)
    letters = np.flatnonzero(~spaces)
    if not len(letters):
        return np.zeros(0, dtype=np.int64)
    found = np.searchsorted(letters, spans[:, 0])
    within = found < len(letters)
    first, ends = letters[found[within]], spans[within, 1]
    owned = (first < ends) | (is_space[within] & (first == ends))
    words = np.cumsum(heads) - 1
    return np.bincount(words[first[owned]], minlength=words[-1] + 1).clip(1, WORD_BINS)


def _find_words(text: str) -> tuple[Array, Array]:
    """Return for every character whether it is whitespace and whether a word begins with it."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    spaces = _SPACES[np.minimum(codes, len(_SPACES) - 1)]
    heads = ~spaces
    heads[1:] &= spaces[:-1]
    return spaces, heads


def count_changed_lines(text: str, decoded: str) -> int:
    """Count the lines in which two texts differ."""
    if text == decoded:
        return 0
    return sum(one != other for one, other in zip_longest(text.split("\n"), decoded.split("\n")))


def find_spelt(pieces: Sequence[bytes]) -> Array:
    """Return for every piece whether it is one byte from 0x80 up."""
    return np.array([len(piece) == 1 and piece[0] >= 0x80 for piece in pieces])


def _encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
