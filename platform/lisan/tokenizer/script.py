"""Which characters belong to the target, and what may be learned on them.

In: words of Unicode names (`arabic`, `tifinagh`). Out: a `Script`. Always: a piece that it owns occurs in no text without a
character of these scripts.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

from lisan.core.errors import ConfigError

SPACE = "\u2581"
"What SentencePiece writes for a space."


class Script:
    """Characters of the target scripts, by the words of their Unicode names (`arabic`, `tifinagh`, `devanagari`)."""

    def __init__(self, names: Sequence[str]) -> None:
        wanted = {name.upper() for name in names}
        found: set[str] = set()
        owners: dict[bytes, bool] = {}
        self.characters: set[str] = set()
        is_ours = False
        for character in map(chr, range(0x80, 0x20000)):
            words = set(unicodedata.name(character, "").replace("-", " ").split())
            if not words:
                continue
            # U+060B AFGHANI SIGN and U+FDFC RIAL SIGN lie among Arabic letters and belong to them.
            is_ours = not wanted.isdisjoint(words) or (is_ours and unicodedata.category(character) == "Sc")
            found |= wanted & words
            if is_ours:
                self.characters.add(character)
            encoded = character.encode()
            for length in range(1, len(encoded)):
                owners[encoded[:length]] = owners.get(encoded[:length], True) and is_ours
        if missing := sorted(wanted - found):
            raise ConfigError(
                f"scripts: no character of Unicode has {missing[0]} in its name; use names such as arabic or tifinagh"
            )
        self.character_class = _character_class(self.characters)
        "A regular expression for one of them."
        self.prefixes = frozenset(prefix for prefix, is_ours in owners.items() if is_ours)
        "First bytes that no character of another script has."

    def occurs_in(self, text: str) -> bool:
        return not self.characters.isdisjoint(text)

    @cached_property
    def word_pattern(self) -> re.Pattern[str]:
        """Match words in text that writes SPACE for a space: letters and marks, with one space before them, or one digit or sign.

        A vocabulary without a pre-tokenizer merges across anything, so that the content of a piece is limited here. Digits
        stand alone, as they do in Llama and Mistral; the second of two spaces belongs to the base's own runs of spaces.
        """
        words = _character_class(c for c in self.characters if unicodedata.category(c)[0] in "LM")
        others = _character_class(c for c in self.characters if unicodedata.category(c)[0] not in "LM")
        return re.compile("|".join([f"(?:(?<!{SPACE}){SPACE})?{words}+"] * bool(words) + [others] * bool(others)))

    def owns_text(self, piece: str) -> bool:
        """Tell whether a piece is characters of these scripts only, with or without SPACE before them."""
        body = piece.removeprefix(SPACE)
        return bool(body) and self.characters.issuperset(body)

    def owns(self, piece: bytes) -> bool:
        """Tell whether a piece can occur only in text of these scripts.

        It may begin inside a character (the base cuts there too), must then hold or begin one of these scripts, and
        holds no other non-ASCII character: `"` and `é` of the protected languages are never part of a new piece.
        """
        start = 0
        while start < len(piece) and 0x80 <= piece[start] < 0xC0:
            start += 1
        body, tail = _cut_tail(piece[start:])
        others = [character for character in body.decode("utf-8", "replace") if character > "\x7f"]
        if tail and tail not in self.prefixes:
            return False
        return bool(tail or others) and all(character in self.characters for character in others)


@lru_cache(maxsize=4)
def script(names: tuple[str, ...]) -> Script:
    return Script(names)


def _cut_tail(data: bytes) -> tuple[bytes, bytes]:
    """Split off the character that the last bytes begin and do not finish."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (data[:-back], data[-back:]) if back < length else (data, b"")
        if byte < 0x80:
            break
    return data, b""


def _character_class(characters: Iterable[str]) -> str:
    """Return a regular expression for one of the characters, empty for none; neighbours are written as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return f"[{''.join(f'{chr(first)}-{chr(last)}' for first, last in ranges)}]" if ranges else ""
