from collections import Counter

import pytest
from bilingual import ARABIC, BASES, DIVERSE, ENGLISH, expand
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.tokenizer.expand import bpe
from lisan.tokenizer.script import script
from lisan.tokenizer.tokenizer_json import first_free_id, open_definition, tokenize_words

TARGET = script(("arabic",))
BASE = {name: make() for name, make in BASES.items()}
every_base = pytest.mark.parametrize("name", sorted(BASE))


@every_base
def test_every_new_piece_is_reached_by_its_merges(name: str) -> None:
    base, (_, expanded, parts) = BASE[name], expand(BASE[name], TARGET)
    expanded["model"]["ignore_merges"] = False
    pieces = bpe.pieces_by_id(expanded)
    assert tokenize_words(expanded, [bpe.to_piece(pieces[index]) for index in parts]) == [[index] for index in parts]
    assert base["model"].get("ignore_merges", False) is (name == "llama")


@every_base
def test_merges_keep_the_form_in_which_the_base_writes_them(name: str) -> None:
    _, expanded, _ = expand(BASE[name], TARGET)
    kinds = {type(merge) for merge in expanded["model"]["merges"]}
    assert kinds == ({str} if name == "gpt" else {list})


def test_a_word_with_diacritics_is_one_word_of_a_new_tokenizer() -> None:
    definition = bpe.learn(ARABIC, 300, ("<|endoftext|>",), 2)
    words = open_definition(definition).pre_tokenizer.pre_tokenize_str("وُلِدَ العالِمُ")
    assert [bpe.to_bytes(word).decode() for word, _ in words] == ["وُلِدَ", " العالِمُ"]


def test_special_tokens_of_a_new_tokenizer_come_first_and_every_byte_is_there() -> None:
    definition = bpe.learn(ENGLISH, 280, ("<|endoftext|>", "<|pad|>"), 2)
    assert [definition["model"]["vocab"][token] for token in ("<|endoftext|>", "<|pad|>")] == [0, 1]
    assert set(bpe.BYTE_CHARACTERS) <= set(definition["model"]["vocab"])
    assert first_free_id(definition) == 280


def test_byte_letters_are_those_of_the_library() -> None:
    from tokenizers import pre_tokenizers

    assert set(bpe.BYTE_CHARACTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert bpe.to_bytes("Ġthe") == b" the"


def test_bytes_and_pieces_are_inverse() -> None:
    assert bpe.to_bytes(bpe.to_piece(bytes(range(256)))) == bytes(range(256))


@every_base
@settings(deadline=None)
@given(
    texts=st.lists(
        st.text(st.one_of(st.sampled_from("ابتثالمغرب ـًٌَُِّْ١٢٣،؟ a1.(\n\r\t"), st.sampled_from(" \n"))), max_size=3
    )
)
def test_words_are_counted_as_the_base_cuts_the_whole_text(name: str, texts: list[str]) -> None:
    tokenizer = open_definition(BASE[name])
    whole: Counter[str] = Counter()
    for text in [*texts, *DIVERSE]:
        normalised = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        whole.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised))
    expected = {w: n for w, n in whole.items() if TARGET.occurs_in(bpe.to_bytes(w).decode("utf-8", "ignore"))}
    assert bpe.count_words(BASE[name], [*texts, *DIVERSE], TARGET) == expected


def test_learning_counts_only_words_of_the_target() -> None:
    words = bpe.count_words(BASE["gpt"], ["the الكتاب the الكتاب 漢"], TARGET)
    assert {bpe.to_bytes(word).decode(): count for word, count in words.items()} == {" الكتاب": 2}
