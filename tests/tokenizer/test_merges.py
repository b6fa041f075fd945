from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.tokenizer.expand.merges import Learned, Merge, learn_merges
from lisan.tokenizer.script import script

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
    before = sum(len(word) * count for word, count in words)
    merges, savings = learn_merges(symbols, counts, pieces, num, lambda _: True, least)
    assert merges == slow
    assert sum(len(word) * count for word, count in zip(symbols, counts, strict=True)) == before - sum(savings)


def test_a_pair_below_the_minimum_count_is_never_merged() -> None:
    assert learn_merges([[0, 1], [2, 3]], [5, 1], [b"a", b"b", b"c", b"d"], 10, lambda _: True, 2) == ([(0, 1)], [5])


def test_a_pair_that_other_scripts_may_hold_is_never_merged() -> None:
    alef, beh = "ا".encode(), "ب".encode()
    merges, _ = learn_merges([[0, 1], [2, 3]], [9, 2], [b"a", b"b", alef, beh], 10, ARABIC.owns)
    assert merges == [(2, 3)]


def test_a_merge_that_spells_an_existing_piece_is_left_out() -> None:
    assert learn_merges([[0, 1]], [9], [b"a", b"b", b"ab"], 10, lambda _: True) == ([], [])


def test_a_merge_in_a_run_saves_less_than_its_count() -> None:
    assert learn_merges([[0, 0, 0]], [10], [b"a"], 1, lambda _: True) == ([(0, 0)], [10])


LEARNED = Learned(
    characters=("ا",), merges=((0, 1), (2, 3)), savings=(30, 10), num_words=20, base_tokens=120, start_tokens=100
)


def test_the_curve_falls_by_what_each_merge_saves() -> None:
    assert LEARNED.fertilities() == [5.0, 3.5, 3.0]


def test_fewer_pieces_are_the_first_ones_and_keep_the_characters() -> None:
    assert len(LEARNED.first(2)) == 2
    assert LEARNED.first(2).merges == ((0, 1),)
    assert LEARNED.first(0).characters == ("ا",)
