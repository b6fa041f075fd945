import os
from pathlib import Path

import pytest
from bilingual import ARABIC, BASES, DIVERSE, ENGLISH
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lisan.tokenizer.pieces import PieceText, count_scripts, cut, is_byte_level, piece_bytes, scripts_of, split_bytes
from lisan.tokenizer.tokenizer import load_tokenizer, write_folder


def words(*pieces: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, "?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module", params=sorted(BASES))
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("base")
    write_folder(folder, BASES[request.param](), {}, "")
    return load_tokenizer(folder)


@pytest.mark.parametrize("text", [*DIVERSE, *ARABIC, *ENGLISH])
def test_the_bytes_of_a_texts_pieces_are_the_texts(learned: PreTrainedTokenizerFast, text: str) -> None:
    pieces = piece_bytes(learned)
    ids = learned.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(pieces[index] for index in ids).decode() == text


def test_pieces_in_text_form_hold_spaces_and_odd_bytes() -> None:
    tokenizer = words("▁the", "<0xD9>", "Ø", "<0x41>", "<s>")
    assert not is_byte_level(tokenizer)
    assert piece_bytes(tokenizer) == [b" the", b"\xd9", "Ø".encode(), b"A", b"<s>"]


def test_an_added_token_is_its_own_text_in_every_form() -> None:
    tokenizer = words("Ø", "a")
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("é"), AddedToken("المغرب")])
    assert is_byte_level(tokenizer)
    assert piece_bytes(tokenizer) == [b"\xd8", b"a", "é".encode(), "المغرب".encode()]


def test_an_id_without_a_piece_has_no_bytes() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 3}, "?"))
    assert piece_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"a", b"", b"", b"b"]


def test_bytes_that_are_no_character_stay_bytes() -> None:
    assert split_bytes("با".encode()) == [PieceText("با", False)]
    assert split_bytes(b"\xa8 \xd8\xa7\xd8") == [PieceText("A8", True), PieceText(" ا", False), PieceText("D8", True)]
    assert split_bytes(b"\xd8\xd8") == [PieceText("D8 D8", True)]
    assert split_bytes(b"") == []


def test_a_cut_text_shows_every_piece_once(learned: PreTrainedTokenizerFast) -> None:
    found = cut(learned, piece_bytes(learned), ARABIC[0])
    spelt = b"".join(
        bytes.fromhex(part.text) if part.is_bytes else part.text.encode() for parts in found for part in parts
    )
    assert spelt.decode() == ARABIC[0]
    assert len(found) == len(learned.backend_tokenizer.encode(ARABIC[0], add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("كتاب", {"arabic"}),
        ("Café и 12.", {"latin", "cyrillic"}),
        ("漢字かな", {"cjk", "hiragana"}),
        ("한국 ไทย ⵜⵉⴼ", {"hangul", "thai", "tifinagh"}),
        ("ﷲ", {"arabic"}),
        ("12 ،٣ µ ª ʰ 𝐚 👋\u0301", set()),
    ],
)
def test_scripts_are_those_of_the_letters(text: str, scripts: set[str]) -> None:
    assert scripts_of(text) == scripts


def test_a_piece_counts_once_for_each_of_its_scripts_and_parts_of_characters_for_none() -> None:
    pieces = ["كتاب".encode(), "كa".encode(), b"ab", b"\xd9", b"12"]
    assert count_scripts(pieces) == {"arabic": 2, "latin": 2}


@pytest.mark.skipif("LISAN_DATA" not in os.environ, reason="LISAN_DATA is not set: no published tokenizer to read")
def test_open_llama_has_two_pieces_with_arabic_letters() -> None:
    tokenizer = load_tokenizer(Path(os.environ["LISAN_DATA"]) / "tokenizers" / "openllama-3b-32k")
    assert count_scripts(piece_bytes(tokenizer))["arabic"] == 2
