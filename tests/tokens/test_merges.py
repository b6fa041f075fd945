from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.errors import ConfigError
from lisan.tokens.merges import Merge, learn_merges, script

ARABIC = script(("arabic",))
WORDS = st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9)), max_size=12)


def apply_merge(word: list[int], pair: Merge, piece: int) -> list[int]:
    out: list[int] = []
    for symbol in word:
        # One new symbol is never an old half, so that pairs close from left to right without overlap.
        if out and (out[-1], symbol) == pair:
            out[-1] = piece
        else:
            out.append(symbol)
    return out


def learn_slowly(words: list[list[int]], counts: list[int], num_merges: int, min_count: int) -> list[Merge]:
    """Count every pair of every word of symbols 0 .. 3 anew for each merge."""
    merges: list[Merge] = []
    while len(merges) < num_merges:
        totals: dict[Merge, int] = {}
        for word, count in zip(words, counts, strict=True):
            for pair in pairwise(word):
                totals[pair] = totals.get(pair, 0) + count
        if not totals or max(totals.values()) < min_count:
            break
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        words = [apply_merge(word, best, 4 + len(merges)) for word in words]
        merges.append(best)
    return merges


@settings(max_examples=300, deadline=None)
@given(WORDS, st.integers(0, 12), st.integers(1, 4))
def test_merges_equal_those_of_counting_all_anew(words: list[tuple[list[int], int]], num: int, least: int) -> None:
    symbols, counts = [list(word) for word, _ in words], [count for _, count in words]
    pieces = [b"a", b"b", b"c", b"d"]
    slow = learn_slowly([list(word) for word in symbols], counts, num, least)
    assert learn_merges(symbols, counts, pieces, num, lambda _: True, least) == slow


def test_a_pair_below_the_minimum_count_is_never_merged() -> None:
    assert learn_merges([[0, 1], [2, 3]], [5, 1], [b"a", b"b", b"c", b"d"], 10, lambda _: True, 2) == [(0, 1)]


def test_a_pair_that_other_scripts_may_hold_is_never_merged() -> None:
    alef, beh = "ا".encode(), "ب".encode()
    merges = learn_merges([[0, 1], [2, 3]], [9, 2], [b"a", b"b", alef, beh], 10, ARABIC.owns)
    assert merges == [(2, 3)]


def test_a_merge_that_spells_an_existing_piece_is_left_out() -> None:
    assert learn_merges([[0, 1]], [9], [b"a", b"b", b"ab"], 10, lambda _: True) == []


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
