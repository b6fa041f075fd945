import pytest

from lisan.core.errors import ConfigError
from lisan.tokenizer.script import script

ARABIC = script(("arabic",))


@pytest.mark.parametrize("text", ["ال", " ال", "المغرب", "،", "١٩٣٠", "َ", "covidفي"])
def test_pieces_of_whole_arabic_characters_are_owned(text: str) -> None:
    assert ARABIC.owns(text.encode())


@pytest.mark.parametrize("text", ["the", " ", "é", "“ال", "漢", "ال’", "שלום"])
def test_pieces_that_hold_other_characters_are_not_owned(text: str) -> None:
    assert not ARABIC.owns(text.encode())


def test_a_piece_may_begin_and_end_inside_arabic_characters() -> None:
    alef, lam = "ا".encode(), "ل".encode()
    assert ARABIC.owns(b" " + alef[:1])
    assert ARABIC.owns(alef[1:] + lam[:1])
    assert ARABIC.owns(alef[1:] + lam)


def test_a_piece_of_continuation_bytes_only_is_not_owned() -> None:
    assert not ARABIC.owns(b"\xa7")
    assert not ARABIC.owns(b"\x99s")


def test_a_first_byte_that_other_scripts_share_is_not_owned() -> None:
    assert not ARABIC.owns("ﷲ".encode()[:1])
    assert not ARABIC.owns("ا".encode() + "“".encode()[:2])


def test_every_owned_cut_of_a_text_needs_a_character_of_the_script() -> None:
    text = "café “x” 漢字 naïve…".encode()
    cuts = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    assert not any(ARABIC.owns(cut) for cut in cuts)


def test_an_unknown_script_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no character of Unicode has KLINGON in its name"):
        script(("arabic", "klingon"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("▁قال▁المعلم،▁وُلِدَ", ["▁قال", "▁المعلم", "،", "▁وُلِدَ"]),
        ("▁▁المغرب", ["المغرب"]),
        ("المغرب2024Rabatسنة", ["المغرب", "سنة"]),
        ("▁١٩٣٠", ["١", "٩", "٣", "٠"]),
        ("كتـاب\u200cها", ["كتـاب", "ها"]),
        ("the▁capital", []),
    ],
)
def test_words_are_runs_of_letters_with_their_space(text: str, words: list[str]) -> None:
    assert ARABIC.word_pattern.findall(text) == words


@pytest.mark.parametrize(
    ("piece", "is_owned"), [("▁ال", True), ("،", True), ("▁", False), ("", False), ("alال", False)]
)
def test_a_piece_of_text_is_owned_when_it_holds_nothing_else(piece: str, is_owned: bool) -> None:
    assert ARABIC.owns_text(piece) is is_owned


def test_a_script_without_digits_and_signs_has_words() -> None:
    assert script(("tifinagh",)).word_pattern.findall("▁ⵜⴰⵎⴰⵣⵉⵖⵜ▁amazigh") == ["▁ⵜⴰⵎⴰⵣⵉⵖⵜ"]
