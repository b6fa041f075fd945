import copy
import json

import pytest
from bilingual import ARABIC, BASES, DIVERSE, ENGLISH
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lisan.core.errors import DataError
from lisan.tokens import bpe
from lisan.tokens.merges import learn_merges, script

TARGET = script(("arabic",))


def expand(base: bpe.Spec, special: tuple[str, ...] = ()) -> tuple[bpe.Spec, dict[int, tuple[int, ...]]]:
    words = bpe.count_words(base, ARABIC * 2, TARGET)
    merges = learn_merges(bpe.segment(base, words), list(words.values()), bpe.pieces_by_id(base), 120, TARGET.owns)
    return bpe.grow(base, merges, special)


BASE = {name: make() for name, make in BASES.items()}
GROWN = {name: expand(spec, special=("<|turn|>", "<|new|>"))[0] for name, spec in BASE.items()}
OPEN = {name: (bpe.open_spec(BASE[name]), bpe.open_spec(GROWN[name])) for name in BASE}
every_base = pytest.mark.parametrize("name", sorted(BASE))


@every_base
def test_no_old_id_moves(name: str) -> None:
    before, after = OPEN[name]
    old = before.get_vocab(with_added_tokens=True)
    new = after.get_vocab(with_added_tokens=True)
    assert {piece: new[piece] for piece in old} == old
    assert sorted(new.values()) == list(range(len(new)))


@every_base
def test_new_pieces_are_numbered_after_the_last_added_token(name: str) -> None:
    _, parts = expand(BASE[name])
    assert list(parts) == list(range(bpe.first_free_id(BASE[name]), bpe.first_free_id(BASE[name]) + 120))


@every_base
@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_text_is_encoded_as_before(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert after.encode(text).ids == before.encode(text).ids


@every_base
@given(text=st.text(st.characters(exclude_characters=sorted(TARGET.characters), exclude_categories=("Cs", "Cn", "Co"))))
def test_text_without_the_target_script_is_encoded_as_before(name: str, text: str) -> None:
    before, after = OPEN[name]
    assert after.encode(text).ids == before.encode(text).ids


@every_base
@pytest.mark.parametrize("text", [*DIVERSE, *ARABIC, *ENGLISH])
def test_text_of_every_kind_survives_encoding_and_decoding(name: str, text: str) -> None:
    tokenizer = OPEN[name][1]
    expected = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == expected


@every_base
@given(text=st.text(st.one_of(st.sampled_from("ابتثالمغرب ـًٌَُِّْ١٢٣،؟ﷺ a1.\n"), st.characters(exclude_categories=("Cs",)))))
def test_mixed_text_survives_encoding_and_decoding(name: str, text: str) -> None:
    tokenizer = OPEN[name][1]
    expected = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == expected


@every_base
def test_the_library_cuts_words_as_they_were_cut_while_learning(name: str) -> None:
    words = bpe.count_words(BASE[name], ARABIC, TARGET)
    learned = bpe.segment(BASE[name], words)
    merges = learn_merges(learned, list(words.values()), bpe.pieces_by_id(BASE[name]), 120, TARGET.owns)
    grown, _ = bpe.grow(BASE[name], merges, ())
    assert bpe.segment(grown, words) == learned


@every_base
def test_every_new_piece_is_reached_by_its_merges(name: str) -> None:
    base, (grown, parts) = BASE[name], expand(BASE[name])
    grown["model"]["ignore_merges"] = False
    pieces = bpe.pieces_by_id(grown)
    assert bpe.segment(grown, [bpe.to_piece(pieces[index]) for index in parts]) == [[index] for index in parts]
    assert base["model"].get("ignore_merges", False) is (name == "llama")


@every_base
def test_old_pieces_of_a_new_one_spell_it_and_are_old(name: str) -> None:
    grown, parts = expand(BASE[name], special=("<|new|>",))
    pieces = bpe.pieces_by_id(grown)
    for index, old in parts.items():
        assert b"".join(pieces[part] for part in old) == pieces[index]
        assert max(old) < bpe.first_free_id(BASE[name])


@every_base
def test_a_new_special_token_is_one_id_and_never_split(name: str) -> None:
    tokenizer = OPEN[name][1]
    assert tokenizer.encode("a<|new|>b").tokens[1] == "<|new|>"


@every_base
def test_merges_keep_the_form_in_which_the_base_writes_them(name: str) -> None:
    kinds = {type(merge) for merge in GROWN[name]["model"]["merges"]}
    assert kinds == ({str} if name == "gpt" else {list})


def test_growing_leaves_the_base_untouched() -> None:
    before = copy.deepcopy(BASE["llama"])
    expand(BASE["llama"], special=("<|new|>",))
    assert BASE["llama"] == before


def test_a_word_with_diacritics_is_one_word_of_a_new_tokenizer() -> None:
    spec = bpe.learn(ARABIC, 300, ("<|endoftext|>",), 2)
    words = bpe.open_spec(spec).pre_tokenizer.pre_tokenize_str("وُلِدَ العالِمُ")
    assert [bpe.to_bytes(word).decode() for word, _ in words] == ["وُلِدَ", " العالِمُ"]


def test_special_tokens_of_a_new_tokenizer_come_first_and_every_byte_is_there() -> None:
    spec = bpe.learn(ENGLISH, 280, ("<|endoftext|>", "<|pad|>"), 2)
    assert [spec["model"]["vocab"][token] for token in ("<|endoftext|>", "<|pad|>")] == [0, 1]
    assert set(bpe.BYTE_CHARACTERS) <= set(spec["model"]["vocab"])
    assert bpe.first_free_id(spec) == 280


def test_byte_letters_are_those_of_the_library() -> None:
    from tokenizers import pre_tokenizers

    assert set(bpe.BYTE_CHARACTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert bpe.to_bytes("Ġthe") == b" the"


def test_bytes_and_pieces_are_inverse() -> None:
    assert bpe.to_bytes(bpe.to_piece(bytes(range(256)))) == bytes(range(256))


def test_learning_counts_only_words_of_the_target() -> None:
    words = bpe.count_words(BASE["gpt"], ["the الكتاب the الكتاب 漢"], TARGET)
    assert {bpe.to_bytes(word).decode(): count for word, count in words.items()} == {" الكتاب": 2}


def unigram() -> bpe.Spec:
    spec: bpe.Spec = json.loads(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)).to_str())
    return spec


def sentencepiece_bpe() -> bpe.Spec:
    return {
        **BASE["gpt"],
        "model": {**BASE["gpt"]["model"], "byte_fallback": True},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
    }


OTHERS = [(unigram(), "a Unigram"), (sentencepiece_bpe(), "a SentencePiece-style BPE")]


@pytest.mark.parametrize(("spec", "kind"), OTHERS)
def test_another_kind_of_tokenizer_is_refused_by_name(spec: bpe.Spec, kind: str) -> None:
    with pytest.raises(DataError, match=rf"base llama is {kind} tokenizer, expected byte-level BPE .*; choose"):
        bpe.check_byte_level(spec, "llama")


@every_base
def test_byte_level_tokenizers_are_accepted(name: str) -> None:
    bpe.check_byte_level(BASE[name], name)
