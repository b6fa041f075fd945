"""How well a tokenizer fits a text: tokens per word, with bytes per token beside it.

In: a transformers tokenizer and texts by source. Out: a `FertilityRow` a source; two tokenizers compared over the same
text. Always: words are whitespace words and bytes are UTF-8 bytes of the text as given, so that rows of different
tokenizers over one text can be compared. Called by `tokens/expand.py`, evaluation and reports.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lisan.core.errors import DataError
from lisan.tokens.bpe import BYTES

_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FertilityRow:
    source: str
    language: str
    num_words: int
    num_bytes: int
    num_tokens: int
    num_continuations: int
    "Tokens that do not start a whitespace word."
    num_single_bytes: int
    "Tokens that are one byte of a character of several: the text is being spelt, not read."

    @property
    def fertility(self) -> float:
        """Tokens per whitespace word."""
        return self.num_tokens / max(1, self.num_words)

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(1, self.num_tokens)

    @property
    def tokens_per_byte(self) -> float:
        return self.num_tokens / max(1, self.num_bytes)

    @property
    def continuation_ratio(self) -> float:
        return self.num_continuations / max(1, self.num_tokens)

    @property
    def single_byte_ratio(self) -> float:
        return self.num_single_bytes / max(1, self.num_tokens)

    def to_plain(self) -> dict[str, Any]:
        """Return the row with its ratios for a manifest or a report."""
        ratios = ("fertility", "bytes_per_token", "continuation_ratio", "single_byte_ratio")
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

    before: FertilityRow
    after: FertilityRow

    @property
    def factor(self) -> float:
        """How many times fewer tokens the second takes."""
        return self.before.num_tokens / max(1, self.after.num_tokens)

    @property
    def context_factor(self) -> float:
        """How many times more text fits into the same context."""
        return self.after.bytes_per_token / max(1e-9, self.before.bytes_per_token)


def measure(tokenizer: Any, texts: Iterable[str], source: str = "", language: str = "") -> FertilityRow:
    """Encode texts (no special tokens added) and count; a text without words still counts its bytes and tokens."""
    spelt = single_byte_table(tokenizer)
    words = size = tokens = continuations = singles = 0
    for batch in _batches(texts):
        for text, encoding in zip(batch, _encode(tokenizer, batch), strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int64)
            words += len(text.split())
            size += len(text.encode())
            tokens += len(ids)
            singles += int(spelt[ids].sum())
            continuations += count_continuations(text, [start for start, _ in encoding.offsets])
    return FertilityRow(
        source=source,
        language=language,
        num_words=words,
        num_bytes=size,
        num_tokens=tokens,
        num_continuations=continuations,
        num_single_bytes=singles,
    )


def pool(rows: Sequence[FertilityRow], source: str) -> FertilityRow:
    """Add rows up; languages are kept when they agree."""
    if not rows:
        raise DataError(f"no text to measure the tokenizer on for {source}; name sources that hold documents")
    names = ("num_words", "num_bytes", "num_tokens", "num_continuations", "num_single_bytes")
    languages = sorted({row.language for row in rows})
    return FertilityRow(
        source=source, language="+".join(languages), **{name: sum(getattr(row, name) for row in rows) for name in names}
    )


def changed_ratio(before: Any, after: Any, texts: Iterable[str]) -> float:
    """Return the share of tokens in texts whose ids differ at all between two tokenizers; 0 for no text."""
    total = changed = 0
    for batch in _batches(texts):
        for old, new in zip(_encode(before, batch), _encode(after, batch), strict=True):
            total += len(old.ids)
            changed += len(old.ids) if old.ids != new.ids else 0
    return changed / max(1, total)


def count_continuations(text: str, starts: Sequence[int]) -> int:
    """Count tokens, given where each starts in the text, that start inside a whitespace word.

    A token may take the space before its word along; bytes of one character all start where it does.
    """
    heads = {match.start() for match in re.finditer(r"\S+", text)}
    count, previous = 0, -1
    for start in starts:
        if start < len(text) and not text[start].isspace() and (start not in heads or start == previous):
            count += 1
        previous = start
    return count


def single_byte_table(tokenizer: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for every id whether its piece is one byte from 0x80 up, in byte-level letters or as `<0xD9>`."""
    pieces = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    table = np.zeros(max(pieces.values()) + 1, dtype=np.bool_)
    for piece, index in pieces.items():
        spelt = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        byte = int(spelt[1], 16) if spelt else BYTES.get(piece, 0)
        table[index] = byte >= 0x80
    return table


def _encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
