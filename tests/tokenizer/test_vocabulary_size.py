from collections import Counter
from typing import Any

import pytest
from bilingual import ALL_BASES, ARABIC, expand, size

from lisan.core.errors import DataError
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.expand.tokenizer_families import find_family
from lisan.tokenizer.expand.vocabulary_size import count_target_words, cut_to_size, learn_pieces, learning_curve
from lisan.tokenizer.script import script

TARGET = script(("arabic",))


def learned(num_merges: int = 1000, **changes: Any) -> Learned:
    """Merges that save 1,000,000 / n tokens of a sample of a million words, the n-th of them."""
    values = {
        "characters": (),
        "merges": tuple((index, index) for index in range(num_merges)),
        "savings": tuple(1_000_000 // (index + 1) for index in range(num_merges)),
        "num_words": 1_000_000,
        "base_tokens": 9_000_000,
        "start_tokens": 9_000_000,
    }
    return Learned(**{**values, **changes})


def test_a_number_of_pieces_is_taken_as_it_is() -> None:
    assert cut_to_size(learned(), size(1000)) == learned()


def test_learning_stops_at_the_first_piece_that_reaches_a_fertility() -> None:
    cut = cut_to_size(learned(), size(None, target_fertility=6.0))
    assert len(cut) == 11
    assert cut.fertilities()[-1] <= 6.0 < cut.fertilities()[-2]


def test_characters_count_as_pieces_of_a_fertility() -> None:
    cut = cut_to_size(learned(characters=("ا", "ب")), size(None, target_fertility=6.0))
    assert (len(cut), len(cut.merges)) == (13, 11)


def test_the_knee_is_the_last_piece_worth_its_row_to_the_nearest_256() -> None:
    assert len(cut_to_size(learned(), size(None, knee=1900.0))) == 512
    assert len(cut_to_size(learned(), size(None, knee=1600.0))) == 512
    assert len(cut_to_size(learned(), size(None, knee=1500.0))) == 768
    assert len(cut_to_size(learned(), size(None, knee=500_000.0))) == 256


def test_the_knee_does_not_depend_on_the_size_of_the_sample() -> None:
    double = learned(savings=tuple(2 * saved for saved in learned().savings), num_words=2_000_000)
    assert len(cut_to_size(double, size(None, knee=1900.0))) == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_fertility": 9.5}, "target_fertility is 9.5 but the base takes 9.00 tokens per word; set a lower one"),
        ({"target_fertility": 1.2}, r"1.2 but 1,000 pieces reach 1\.51; set a higher one, or raise max_pieces=1,000"),
        ({"target_fertility": 1.2, "max_pieces": 2000}, "set a higher one, or learn on more text"),
        (
            {"knee": 10.0},
            r"knee is 10 but piece 1,000 still saves 1e\+03 tokens in a million words; .* raise max_pieces",
        ),
    ],
)
def test_a_sample_that_does_not_lead_there_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut_to_size(learned(), size(None, **changes))


def test_the_curve_has_about_fifty_points_and_both_ends() -> None:
    curve = learning_curve(learned(characters=("ا",), base_tokens=12_000_000))
    assert 40 <= len(curve) <= 52
    assert curve[:2] == [[0, 12.0], [1, 9.0]]
    assert curve[-1][0] == 1001


def test_words_of_the_target_are_whitespace_words_with_a_character_of_it() -> None:
    assert count_target_words(["قال المعلم، (the) book2024ال", "x\n١٢ y", ""], TARGET) == 4


def test_characters_are_learned_by_frequency_and_rare_ones_stay_bytes() -> None:
    definition = ALL_BASES["llama2"]()
    words = Counter({"▁باب": 5, "ت": 1, "ل": 3})
    family = find_family(definition, "llama2")
    assert learn_pieces(family, definition, words, 9, TARGET, size(10)).characters == ("ب", "ا", "ل")
    assert learn_pieces(family, definition, words, 9, TARGET, size(2)).characters == ("ب", "ا")
    assert "ت" in learn_pieces(family, definition, words, 9, TARGET, size(10, min_count=1)).characters


@pytest.mark.parametrize("name", ["gpt", "llama2"])
def test_the_base_tokens_are_those_of_the_base(name: str) -> None:
    definition = ALL_BASES[name]()
    family = find_family(definition, name)
    words = family.count_words(definition, ARABIC * 2, TARGET)
    from lisan.tokenizer.tokenizer_json import tokenize_words

    expected = sum(
        len(ids) * count for ids, count in zip(tokenize_words(definition, words), words.values(), strict=True)
    )
    assert expand(definition, TARGET)[0].base_tokens == expected
