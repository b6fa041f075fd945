import re

import numpy as np
import pytest
from bilingual import ARABIC, DIVERSE, ENGLISH
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lisan.core.errors import DataError
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.fertility.measure import (
    WORD_BINS,
    Comparison,
    FertilityCounts,
    changed_ratio,
    count_changed_lines,
    count_continuations,
    count_word_tokens,
    find_spelt,
    measure,
    pool,
)
from lisan.tokenizer.pieces import piece_bytes


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({character: index for index, character in enumerate(bpe.BYTE_CHARACTERS)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


def word_tokenizer(text: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(text.split()))}, "?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(backend)


def row(**changes: int) -> FertilityCounts:
    values = {"num_words": 10, "num_bytes": 60, "num_tokens": 20, "num_continuations": 10, "num_single_bytes": 5}
    return FertilityCounts(source="ar", language="ar", word_tokens=(4, 6), **{**values, **changes})


def test_one_token_a_byte_is_counted_exactly() -> None:
    measured = measure(byte_tokenizer(), ["ab باب"], "s", "ar")
    assert (measured.num_words, measured.num_bytes, measured.num_tokens, measured.num_single_bytes) == (2, 9, 9, 6)
    assert measured.bytes_per_token == 1.0
    assert measured.fertility == 4.5


def test_one_token_a_word_has_fertility_one_and_no_continuation() -> None:
    measured = measure(word_tokenizer(ARABIC[0]), [ARABIC[0]])
    assert (measured.fertility, measured.continuation_ratio, measured.single_byte_ratio) == (1.0, 0.0, 0.0)


def test_texts_are_summed_over_many_batches() -> None:
    once, often = measure(byte_tokenizer(), ["the book"]), measure(byte_tokenizer(), ["the book"] * 600)
    assert often.num_tokens == 600 * once.num_tokens


def test_a_token_that_takes_the_space_along_starts_a_word() -> None:
    assert count_continuations("the book", [0, 3]) == 0
    assert count_continuations("the book", [0, 4]) == 0


def test_tokens_inside_a_word_and_further_bytes_of_a_character_continue_it() -> None:
    assert count_continuations("the book", [0, 1, 3, 6]) == 2
    assert count_continuations("اب", [0, 0, 1, 1]) == 3


def test_a_token_of_whitespace_continues_nothing() -> None:
    assert count_continuations("a   b", [0, 1, 4]) == 0


def test_spelt_bytes_are_found_in_byte_level_and_in_sentencepiece_form() -> None:
    backend = Tokenizer(models.WordLevel({"<0xD9>": 0, "<0x41>": 1, "Ø": 2, "a": 3, "ØØ": 4}, "?"))
    assert find_spelt(piece_bytes(wrap(backend))).tolist() == [True, False, False, False, False]
    backend.decoder = decoders.ByteLevel()
    assert find_spelt(piece_bytes(wrap(backend))).tolist() == [False, False, True, False, False]


@given(st.text(st.sampled_from("ab \n\u00a0باé"), max_size=12), st.lists(st.integers(0, 13)))
def test_continuations_are_counted_as_one_by_one(text: str, starts: list[int]) -> None:
    heads = {match.start() for match in re.finditer(r"\S+", text)}
    slow, previous = 0, -1
    for start in starts:
        slow += start < len(text) and not text[start].isspace() and (start not in heads or start == previous)
        previous = start
    assert count_continuations(text, starts) == slow


def word_tokens(text: str, *spans: tuple[int, int], spaces: tuple[int, ...] = ()) -> list[int]:
    is_space = np.isin(np.arange(len(spans)), spaces)
    return count_word_tokens(text, np.array(spans).reshape(-1, 2), is_space).tolist()


def test_a_token_belongs_to_the_word_it_holds_a_character_of() -> None:
    assert word_tokens("the book", (0, 3), (3, 8)) == [1, 1]
    assert word_tokens("the book", (0, 2), (2, 3), (4, 8)) == [2, 1]
    assert word_tokens("باب", (0, 1), (0, 1), (1, 3)) == [3]


def test_white_space_belongs_to_no_word_but_one_space_of_its_own_to_the_next() -> None:
    assert word_tokens("a\n\nb", (0, 1), (1, 3), (3, 4)) == [1, 1]
    assert word_tokens("a b", (0, 1), (1, 2), (2, 3), spaces=(1,)) == [1, 2]
    assert word_tokens("a b ", (0, 1), (1, 3), (3, 4), spaces=(2,)) == [1, 1]


def test_a_word_read_as_part_of_the_one_before_counts_as_one_token() -> None:
    assert word_tokens("of the sea", (0, 6), (6, 10)) == [1, 1, 1]


def test_a_very_long_word_goes_to_the_last_bin() -> None:
    measured = measure(byte_tokenizer(), ["a" * (WORD_BINS + 9)])
    assert (measured.word_tokens[-1], measured.word_percentile(0.5)) == (1, WORD_BINS)


@pytest.mark.parametrize("text", [*DIVERSE, *ARABIC, *ENGLISH])
def test_every_whitespace_word_is_in_one_bin(text: str) -> None:
    measured = measure(byte_tokenizer(), [text])
    assert sum(measured.word_tokens) == measured.num_words == len(text.split())
    assert measured.num_changed_lines == 0


def test_whole_words_and_percentiles_are_read_off_the_bins() -> None:
    measured = measure(byte_tokenizer(), ["a bb c dddd"])
    # The space before b, c and d is a byte of its own.
    assert measured.word_tokens[:5] == (1, 1, 1, 0, 1)
    assert measured.whole_word_ratio == 0.25
    assert [measured.word_percentile(ratio) for ratio in (0.25, 0.5, 0.75, 0.76, 1.0)] == [1, 2, 3, 5, 5]


def test_lines_that_decoding_does_not_give_back_are_counted() -> None:
    backend = byte_tokenizer().backend_tokenizer
    backend.normalizer = normalizers.NFC()
    measured = measure(wrap(backend), ["cafe\u0301\ncafé\nx", "e\u0301"])
    assert (measured.num_lines, measured.num_changed_lines) == (4, 2)


def test_a_line_that_is_lost_counts_once() -> None:
    assert count_changed_lines("a\nb\nc", "a\nb\nc") == 0
    assert count_changed_lines("a\nb\nc", "a\nb") == 1


def test_no_text_gives_zeros_and_no_division_by_zero() -> None:
    measured = measure(byte_tokenizer(), [])
    assert (measured.fertility, measured.bytes_per_token, measured.single_byte_ratio) == (0.0, 0.0, 0.0)


def test_rows_pool_by_their_counts_and_not_by_their_ratios() -> None:
    pooled = pool([row(num_words=1, num_tokens=10), row(num_words=9, num_tokens=9)], "all")
    assert pooled.fertility == 1.9


def test_the_bins_of_words_are_pooled_one_by_one() -> None:
    rows = [measure(byte_tokenizer(), [text], language="en") for text in ("a b", "cc", "")]
    assert pool(rows, "all") == measure(byte_tokenizer(), ["a b", "cc", ""], "all", "en")


def test_pooling_nothing_is_one_sentence() -> None:
    with pytest.raises(DataError, match="no text to measure the tokenizer on for target"):
        pool([], "target")


def test_comparing_says_how_many_times_fewer_tokens_and_how_much_more_context() -> None:
    comparison = Comparison(row(num_tokens=40), row(num_tokens=20))
    assert (comparison.factor, comparison.context_factor) == (2.0, 2.0)


def test_a_tokenizer_changes_nothing_against_itself() -> None:
    assert changed_ratio(byte_tokenizer(), byte_tokenizer(), ENGLISH) == 0.0


def test_the_changed_ratio_weighs_texts_by_their_tokens() -> None:
    bigger = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    bigger.add_tokens(["zzz"])
    assert changed_ratio(byte_tokenizer(), wrap(bigger), ["zzz", "a" * 9]) == 0.25


def test_a_plain_row_carries_counts_and_rounded_ratios() -> None:
    assert row().to_plain() == {
        "source": "ar",
        "language": "ar",
        "words": 10,
        "bytes": 60,
        "tokens": 20,
        "fertility": 2.0,
        "bytes_per_token": 3.0,
        "continuation_ratio": 0.5,
        "single_byte_ratio": 0.25,
        "whole_word_ratio": 0.4,
    }
