"""Bytes and scripts of the pieces of a vocabulary, and texts cut into pieces.

In: a transformers tokenizer with a fast backend. Out: bytes by id, counts by script, a text as the pieces that it is encoded to.
Always: a byte that is no whole character is shown as a byte, never as a replacement character.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from lisan.tokenizer.script import SPACE


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary (Radford et al., 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
_BYTE_LETTERS = {ord(letter): byte for byte, letter in enumerate(BYTE_CHARACTERS)}


class PieceText(NamedTuple):
    """Whole characters of a piece, or bytes that are none (`D8 A7`)."""

    text: str
    is_bytes: bool


def is_byte_level(tokenizer: Any) -> bool:
    """Tell whether pieces are written in byte-level letters (GPT-2) and not as text with `<0xD9>` for odd bytes."""
    backend = tokenizer.backend_tokenizer
    steps = (backend.decoder, backend.pre_tokenizer)
    return any(step is not None and b'"ByteLevel"' in step.__getstate__() for step in steps)


def piece_bytes(tokenizer: Any) -> list[bytes]:
    """Return the UTF-8 bytes of every id; an id without a piece has none."""
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    pieces = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    spell = _letter_bytes if is_byte_level(tokenizer) else _text_bytes
    found = [b""] * (max(pieces.values(), default=-1) + 1)
    for piece, index in pieces.items():
        found[index] = piece.encode() if index in added else spell(piece)
    return found


def _letter_bytes(piece: str) -> bytes:
    try:
        return piece.translate(_BYTE_LETTERS).encode("latin-1")
    except UnicodeEncodeError:  # a piece that no byte-level text is ever encoded to
        return piece.encode()


def _text_bytes(piece: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def count_scripts(pieces: Iterable[bytes]) -> dict[str, int]:
    """Count the pieces that hold a letter of each script, the most frequent script first."""
    counts = Counter(script for piece in pieces for script in scripts_of(piece.decode("utf-8", "ignore")))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def scripts_of(text: str) -> set[str]:
    """Return the scripts of a text's letters.

    >>> sorted(scripts_of("كتاب book 12"))
    ['arabic', 'latin']
    """
    return {script for character in set(text) if (script := _script_of(character))}


@lru_cache(maxsize=1 << 17)
def _script_of(character: str) -> str:
    """Return the first word of a letter's Unicode name; variants of other scripts' letters have no script of their own."""
    name = unicodedata.name(character, "") if character.isalpha() else ""
    is_letter = re.search(r"\b(LETTER|CHARACTER|LIGATURE|SYLLABLE|IDEOGRAPH)\b", name)
    word = name.split(" ")[0].lower() if is_letter else ""
    return "" if word in ("modifier", "fullwidth", "halfwidth", "mathematical") else word


def cut(tokenizer: Any, pieces: list[bytes], text: str) -> list[list[PieceText]]:
    """Return a text as its pieces, each in parts; `pieces` is what `piece_bytes` returned."""
    return [
        split_bytes(pieces[index]) for index in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    ]


def split_bytes(data: bytes) -> list[PieceText]:
    """Split bytes into whole characters and other bytes.

    >>> split_bytes(bytes.fromhex("d8a7d8"))
    [PieceText(text='ا', is_bytes=False), PieceText(text='D8', is_bytes=True)]
    """
    runs = groupby(data.decode("utf-8", "surrogateescape"), lambda character: "\udc80" <= character <= "\udcff")
    return [PieceText(_hex(run) if is_bytes else "".join(run), is_bytes) for is_bytes, run in runs]


def _hex(run: Iterable[str]) -> str:
    return " ".join(f"{ord(character) - 0xDC00:02X}" for character in run)
