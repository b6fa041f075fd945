"""`tokenizer.model` (a SentencePiece protobuf) as the `tokenizer.json` that gives the same ids.

In: the file's bytes. Out: a parsed `tokenizer.json` and the roles of its special tokens. Always: plain text is encoded to
SentencePiece's own ids (a Unigram model adds scores in float32 there: in texts of thousands of words it may take the other of two
equally good ways). transformers 5 opens such a folder too, but without the space before the first word, so that `hello` becomes
another id; and reading the four messages takes less code than depending on protobuf.
"""

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from lisan.core.errors import DataError
from lisan.tokenizer.script import SPACE
from lisan.tokenizer.tokenizer_json import Definition, special_token

UNIGRAM, BPE = 1, 2


class PieceKind(IntEnum):
    """Numbers of sentencepiece_model.proto."""

    normal = 1
    unknown = 2
    control = 3
    user_defined = 4
    unused = 5
    byte = 6


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceModel:
    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    role_ids: Mapping[str, int]
    charsmap: bytes
    adds_prefix: bool
    trims_spaces: bool


def read_model(data: bytes, place: Path | str) -> SentencePieceModel:
    """Parse a tokenizer.model; DataError when it is none, or of a type that was never used for language models."""
    try:
        fields = [(number, value) for number, value in _iter_fields(data)]
        pieces = [_read_piece(value) for number, value in fields if number == 1]
        trainer = dict(_iter_fields(b"".join(value for number, value in fields if number == 2)))
        normaliser = dict(_iter_fields(b"".join(value for number, value in fields if number == 3)))
    except (IndexError, struct.error, TypeError, ValueError) as error:
        raise DataError(f"tokenizer {place} is not a SentencePiece model ({error}); fetch it again") from error
    model_type = trainer.get(3, UNIGRAM)
    if model_type not in (UNIGRAM, BPE) or not pieces or trainer.get(24):
        raise DataError(f"tokenizer {place} is a SentencePiece model of words or characters; expected BPE or Unigram")
    roles = {"unk_token": trainer.get(40, 0), "bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2)}
    roles["pad_token"] = trainer.get(43, -1)
    return SentencePieceModel(
        pieces=pieces,
        model_type=model_type,
        byte_fallback=bool(trainer.get(35, 0)),
        role_ids={role: _signed(index) for role, index in roles.items() if 0 <= _signed(index) < len(pieces)},
        charsmap=normaliser.get(2, b""),
        adds_prefix=bool(normaliser.get(3, 1)),
        trims_spaces=bool(normaliser.get(4, 1)),
    )


def read_roles(model: SentencePieceModel) -> dict[str, str]:
    return {role: model.pieces[index].text for role, index in model.role_ids.items()}


def to_definition(model: SentencePieceModel, adds_bos: bool) -> Definition:
    """Return the tokenizer.json; `adds_bos` begins every text with the start token, as Llama's own class does."""
    special = {PieceKind.unknown: True, PieceKind.control: True, PieceKind.user_defined: False}
    added = [
        {**special_token(piece.text, index), "special": special[piece.kind]}
        for index, piece in enumerate(model.pieces)
        if piece.kind in special
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalisers(model)},
        "pre_tokenizer": None,
        "post_processor": _begin_with(model) if adds_bos and "bos_token" in model.role_ids else None,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": _bpe(model) if model.model_type == BPE else _unigram(model),
    }


def _bpe(model: SentencePieceModel) -> Definition:
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": read_roles(model).get("unk_token"),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in _rank_merges(model.pieces)],
    }


def _rank_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two: SentencePiece merges the pair whose piece has the highest score."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == PieceKind.normal}
    ranked: list[tuple[float, int, str, str]] = []
    for place, (text, score) in enumerate(scores.items()):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                ranked.append((-score, place, left, right))
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _unigram(model: SentencePieceModel) -> Definition:
    vocabulary = [[piece.text, piece.score] for piece in model.pieces]
    unknown = model.role_ids.get("unk_token")
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": model.byte_fallback}


def _normalisers(model: SentencePieceModel) -> list[Definition]:
    steps: list[Definition] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.trims_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.adds_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _decoders(model: SentencePieceModel) -> list[Definition]:
    steps: list[Definition] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return [*steps, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.adds_prefix else [])]


def _begin_with(model: SentencePieceModel) -> Definition:
    token = read_roles(model)["bos_token"]
    single: list[Definition] = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ids = {"id": token, "ids": [model.role_ids["bos_token"]], "tokens": [token]}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {token: ids}}


def _read_piece(data: bytes) -> Piece:
    values = dict(_iter_fields(data))
    return Piece(values[1].decode(), values.get(2, 0.0), PieceKind(values.get(3, 1)))


def _iter_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield field numbers and values of a protobuf message: integers, floats and byte strings."""
    place = 0
    value: Any
    while place < len(data):
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _read_varint(data, place)
        elif kind == 2:
            length, place = _read_varint(data, place)
            if place + length > len(data):
                raise ValueError("it ends in the middle of a field")
            value, place = data[place : place + length], place + length
        elif kind in (1, 5):
            layout = "<d" if kind == 1 else "<f"
            [value], place = struct.unpack_from(layout, data, place), place + struct.calcsize(layout)
        else:
            raise ValueError(f"field {key >> 3} is of unknown kind {kind}")
        yield key >> 3, value


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _signed(value: int) -> int:
    """Negative numbers are written as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value
