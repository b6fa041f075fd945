"""What holds for every kind of tokenizer that is expanded."""

import copy
import json
from collections import Counter
from typing import Any

import pytest
from bilingual import ALL_BASES, ARABIC, BASES, DIVERSE, ENGLISH, SENTENCEPIECE_BASES, expand
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lisan.core.errors import DataError
from lisan.tokenizer.expand.append_pieces import claim_piece
from lisan.tokenizer.expand.tokenizer_families import find_family, list_pieces
from lisan.tokenizer.script import script
from lisan.tokenizer.tokenizer_json import (
    Definition,
    first_free_id,
    open_definition,
    texts_by_id,
    tokenize_words,
    vocabulary,
)

TARGET = script(("arabic",))
BASE = {name: make() for name, make in ALL_BASES.items()}
EXPANDED = {name: expand(definition, TARGET, special=("<|turn|>", "<|new|>")) for name, definition in BASE.items()}
OPEN = {name: (open_definition(BASE[name]), open_definition(EXPANDED[name][1])) for name in BASE}
every_base = pytest.mark.parametrize("name", sorted(BASE))
every_bpe = pytest.mark.parametrize("name", sorted({*BASES, "llama2", "mistral"}))
every_unigram = pytest.mark.parametrize("name", ["t5", "xlmr"])
METHODS = {
    "gpt": "continued_bpe",
    "llama": "continued_bpe",
    "qwen": "continued_bpe",
    "llama2": "continued_sentencepiece_bpe",
    "mistral": "continued_sentencepiece_bpe",
    "t5": "continued_unigram",
    "xlmr": "continued_unigram",
}
MIXED = st.one_of(st.sampled_from("ابتثالمغرب ـًٌَُِّْ١٢٣،؟ﷺ a1.\n"), st.characters(exclude_categories=("Cs",)))


@every_base
def test_every_base_is_recognised(name: str) -> None:
    assert METHODS[name] == find_family(BASE[name], name).METHOD


@every_base
def test_no_old_id_moves(name: str) -> None:
    before, after = OPEN[name]
    old = before.get_vocab(with_added_tokens=True)
    new = after.get_vocab(with_added_tokens=True)
    assert {piece: new[piece] for piece in old} == old
    assert sorted(new.values()) == list(range(len(new)))


@every_base
def test_new_ids_follow_the_last_added_token(name: str) -> None:
    learned, expanded, parts = EXPANDED[name]
    first = first_free_id(BASE[name])
    assert list(parts) == list(range(first, first_free_id(expanded))) == list(range(first, first + len(learned) + 2))
    assert len(learned) == 120


@every_base
@settings(deadline=None)
@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_text_is_encoded_as_before(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert after.encode(text).ids == before.encode(text).ids


@every_base
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_characters=sorted(TARGET.characters), exclude_categories=("Cs", "Cn", "Co"))))
def test_text_without_the_target_script_is_encoded_as_before(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert after.encode(text).ids == before.encode(text).ids


def spell(tokenizer: Any, text: str) -> str:
    spelt: str = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
    return spelt


def normalise(tokenizer: Any, text: str) -> str:
    normalised: str = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return normalised


@every_base
@pytest.mark.parametrize("text", [*DIVERSE, *ARABIC, *ENGLISH])
def test_text_of_every_kind_comes_back(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert spell(after, text) in (text, normalise(after, text), spell(before, text)) or name == "t5"


@every_base
@pytest.mark.parametrize("text", ARABIC[:3])
def test_arabic_comes_back_even_where_the_base_could_not_spell_it(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert spell(after, text) == text
    assert (spell(before, text) == text) is (name != "t5")


@pytest.mark.parametrize("name", sorted(BASES))
@settings(deadline=None)
@given(text=st.text(MIXED))
def test_bytes_spell_any_mixture(name: str, text: str) -> None:
    tokenizer = OPEN[name][1]
    assert spell(tokenizer, text) == normalise(tokenizer, text)


@pytest.mark.parametrize("name", ["llama2", "mistral"])
@settings(deadline=None)
@given(text=st.text(MIXED))
def test_a_sentencepiece_base_spells_a_mixture_as_before(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert spell(after, text) == spell(before, text)


@every_bpe
def test_the_library_cuts_words_as_they_were_cut_while_learning(name: str) -> None:
    learned, expanded, _ = EXPANDED[name]
    words = find_family(BASE[name], name).count_words(BASE[name], ARABIC * 2, TARGET)
    tokens = sum(len(ids) * count for ids, count in zip(tokenize_words(expanded, words), words.values(), strict=True))
    assert tokens == learned.start_tokens - sum(learned.savings)
    assert tokens < learned.base_tokens / 2


@every_unigram
def test_scores_cut_words_nearly_as_merging_did(name: str) -> None:
    learned, expanded, _ = EXPANDED[name]
    words = find_family(BASE[name], name).count_words(BASE[name], ARABIC * 2, TARGET)
    tokens = sum(len(ids) * count for ids, count in zip(tokenize_words(expanded, words), words.values(), strict=True))
    assert tokens <= 1.05 * (learned.start_tokens - sum(learned.savings))


@every_unigram
def test_no_score_lies_under_the_lowest_of_the_base_or_above_certainty(name: str) -> None:
    old = [score for _, score in BASE[name]["model"]["vocab"]]
    new = [score for _, score in EXPANDED[name][1]["model"]["vocab"][first_free_id(BASE[name]) :]]
    assert min(old) <= min(new) <= max(new) < 0


@every_bpe
def test_two_stages_give_the_pieces_of_one(name: str) -> None:
    _, halfway, _ = expand(BASE[name], TARGET, num=60)
    _, twice, _ = expand(halfway, TARGET, num=60)
    _, once, _ = expand(BASE[name], TARGET, num=120)
    assert twice["model"]["vocab"] == once["model"]["vocab"]
    assert twice["model"]["merges"] == once["model"]["merges"]


@every_unigram
def test_a_second_stage_keeps_the_scores_of_the_first(name: str) -> None:
    _, halfway, _ = expand(BASE[name], TARGET, num=60)
    _, twice, _ = expand(halfway, TARGET, num=60)
    old = halfway["model"]["vocab"]
    assert twice["model"]["vocab"][: len(old)] == old
    assert len(twice["model"]["vocab"]) == len(old) + 60


@every_base
def test_old_pieces_of_a_new_one_are_how_the_base_cuts_it(name: str) -> None:
    _, expanded, parts = EXPANDED[name]
    pieces = texts_by_id(expanded)
    learned = list(parts)[:-2]
    assert [parts[index] for index in learned] == [
        tuple(ids) for ids in tokenize_words(BASE[name], [pieces[i] for i in learned])
    ]
    assert max(max(old) for old in parts.values()) < first_free_id(BASE[name])
    assert all(parts.values())


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_a_character_the_base_lacks_is_a_piece_made_of_its_bytes(name: str) -> None:
    learned, expanded, parts = EXPANDED[name]
    names = texts_by_id(BASE[name])
    index = vocabulary(expanded)["م"]
    assert [names[old] for old in parts[index]] == ["<0xD9>", "<0x85>"]
    assert ("ا" in learned.characters) is (name == "llama2")


@pytest.mark.parametrize("name", sorted(SENTENCEPIECE_BASES))
def test_a_new_piece_holds_letters_of_the_target_and_at_most_the_space_before_them(name: str) -> None:
    _, expanded, parts = EXPANDED[name]
    pieces = texts_by_id(expanded)
    assert all(TARGET.owns_text(pieces[index]) for index in list(parts)[:-2])
    assert any(pieces[index].startswith("▁ال") for index in parts)


@pytest.mark.parametrize("name", sorted(SENTENCEPIECE_BASES))
@settings(deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ابتالمغرب ـًَ١٢،؟ a1.(\n\t")), min_size=1, max_size=3))
def test_words_are_counted_as_the_base_sees_the_whole_text(name: str, texts: list[str]) -> None:
    tokenizer = OPEN[name][0]
    whole: Counter[str] = Counter()
    for text in texts:
        normalised = normalise(tokenizer, text)
        cut = tokenizer.pre_tokenizer.pre_tokenize_str(normalised) if tokenizer.pre_tokenizer else [(normalised, None)]
        for part, _ in cut:
            whole.update(TARGET.word_pattern.findall(part))
    assert find_family(BASE[name], name).count_words(BASE[name], texts, TARGET) == whole


@every_base
def test_a_new_special_token_is_one_id_and_never_split(name: str) -> None:
    assert "<|new|>" in OPEN[name][1].encode("a<|new|>b").tokens


@every_base
def test_growing_leaves_the_base_untouched(name: str) -> None:
    before = copy.deepcopy(BASE[name])
    expand(BASE[name], TARGET, special=("<|newer|>",))
    assert BASE[name] == before


def test_a_list_of_pieces_shows_them_as_text() -> None:
    listed = list_pieces(find_family(BASE["gpt"], "gpt"), EXPANDED["gpt"][1], EXPANDED["gpt"][2])
    assert "\t' ال'\n" in listed
    assert list_pieces(find_family(BASE["llama2"], "x"), EXPANDED["llama2"][1], [3]) == "3\t'<0x00>'\n"


def test_a_reserved_row_becomes_the_special_token_that_is_wanted() -> None:
    claimed = claim_piece(BASE["mistral"], "[control_1]", "mistral")
    index = vocabulary(BASE["mistral"])["[control_1]"]
    assert open_definition(BASE["mistral"]).encode("a[control_1]").ids[-1] != index
    assert open_definition(claimed).encode("a[control_1]").ids[-1] == index
    assert first_free_id(claimed) == first_free_id(BASE["mistral"])


def test_a_piece_that_text_reaches_is_no_special_token() -> None:
    with pytest.raises(
        DataError, match="special_tokens: 'ال' is an ordinary piece of base mistral, which text may hold"
    ):
        claim_piece(BASE["mistral"], "ال", "mistral")


def changed_model(definition: Definition, **changes: Any) -> Definition:
    return {**definition, "model": {**definition["model"], **changes}}


def word_piece() -> Definition:
    definition: Definition = json.loads(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str())
    return definition


def word_level() -> Definition:
    definition: Definition = json.loads(Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str())
    return definition


OTHERS = [
    (word_piece(), "a WordPiece tokenizer with continuing_subword_prefix"),
    (word_level(), "a WordLevel tokenizer"),
    (changed_model(BASE["gpt"], end_of_word_suffix="</w>"), "a BPE tokenizer with end_of_word_suffix"),
    ({**BASE["gpt"], "pre_tokenizer": None, "decoder": None}, "a BPE tokenizer"),
    ({**BASE["t5"], "pre_tokenizer": None}, "a Unigram tokenizer"),
    ({"added_tokens": []}, "a nameless tokenizer"),
]


@pytest.mark.parametrize(("definition", "kind"), OTHERS)
def test_another_kind_of_tokenizer_is_refused_by_name(definition: Definition, kind: str) -> None:
    with pytest.raises(DataError, match=rf"base some is {kind}, expected byte-level BPE .*; choose such a base"):
        find_family(definition, "some")


def test_a_unigram_with_a_hole_in_its_ids_is_refused() -> None:
    holed = copy.deepcopy(BASE["t5"])
    holed["added_tokens"][-1]["id"] += 2
    with pytest.raises(DataError, match=r"base some is a Unigram tokenizer without a piece for id \d+"):
        find_family(holed, "some")
