import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from bilingual import ALL_BASES, ARABIC, BASES, ENGLISH, SENTENCEPIECE_BASES, build, settings, write_base, write_corpus

from lisan.core.artifact import Kind, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.records.records import Document
from lisan.tokenizer.expand.config import Gates
from lisan.tokenizer.expand.neighbours import read_neighbours
from lisan.tokenizer.text_sample import sample_texts
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_base(tmp_path / "base", BASES["gpt"]())


def versions(root: Path) -> list[str]:
    return Store(str(root)).versions(Kind.tokenizer, "small")


def test_an_expanded_tokenizer_keeps_english_and_shortens_arabic(root: Path, base: str) -> None:
    artifact = build(root, base=base)
    before, after = load_tokenizer(base), load_tokenizer(artifact)
    assert all(before(text)["input_ids"] == after(text)["input_ids"] for text in ENGLISH)
    assert all(len(before(text)["input_ids"]) > 2.5 * len(after(text)["input_ids"]) for text in ARABIC)
    assert all(after.decode(after(text)["input_ids"]) == text for text in ARABIC)


def test_facts_tell_what_was_gained_and_that_nothing_was_lost(root: Path, base: str) -> None:
    facts = build(root, base=base).facts
    assert facts["factor"] == facts["context_factor"] > 2.5
    assert facts["changed_ratio"] == 0.0
    ratio = facts["fertility_target_before"] / facts["fertility_target_after"]
    assert ratio == pytest.approx(facts["factor"], abs=1e-3)
    assert facts["fertility_protected_before"] == facts["fertility_protected_after"]
    assert facts["num_new"] == 60 + 3
    assert (facts["changed_code_ratio"], facts["lost_ratio"]) == (0, 0)


def test_the_curve_starts_at_the_base_and_ends_at_the_last_piece(root: Path, base: str) -> None:
    curve = build(root, base=base).facts["learning_curve"]
    pieces, fertilities = zip(*curve, strict=True)
    assert (pieces[0], pieces[-1]) == (0, 60)
    assert list(pieces) == sorted(set(pieces))
    assert list(fertilities) == sorted(fertilities, reverse=True)
    assert fertilities[0] > 2 * fertilities[-1]


def test_the_stage_ends_with_one_line_that_says_it_all(
    root: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build(root, base=base)
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"  target: \d+\.\d\d -> \d\.\d\d tokens per word \(\d\.\d\dx fewer\), effective context x\d\.\d\d, "
        "protected text unchanged",
        said,
    )


SENTENCEPIECE_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("name", sorted(SENTENCEPIECE_BASES))
def test_a_sentencepiece_base_is_expanded_with_pieces_of_its_own_kind(name: str, root: Path, tmp_path: Path) -> None:
    place = write_base(tmp_path / "base", ALL_BASES[name](), SENTENCEPIECE_ROLES)
    artifact = build(root, base=place, num_pieces=50, min_count=1, gates=Gates(min_factor=0 if name == "t5" else 1.5))
    before, after, expansion = load_tokenizer(place), load_tokenizer(artifact), load_expansion(artifact)
    assert all(before(text)["input_ids"] == after(text)["input_ids"] for text in ENGLISH)
    assert all(after.decode(after(text)["input_ids"], skip_special_tokens=True) == text for text in ARABIC[:3])
    assert len(expansion.new_ids) == 50 + 3
    assert len(after.get_added_vocab()) == len(before.get_added_vocab()) + 3
    assert {role: getattr(after, role) for role in SENTENCEPIECE_ROLES} == SENTENCEPIECE_ROLES
    assert all(expansion.pieces.values())


def test_a_base_that_cannot_read_the_target_says_what_to_set(root: Path, tmp_path: Path) -> None:
    place = write_base(tmp_path / "base", ALL_BASES["t5"](), SENTENCEPIECE_ROLES)
    with pytest.raises(
        DataError, match=r"takes only 0\.\d\d times fewer tokens; .*, or set gates.min_factor=0, as the base"
    ):
        build(root, base=place)


def test_the_expansion_of_an_expansion_equals_one_of_both_sizes(root: Path, base: str) -> None:
    build(root, base=base, name="half", num_pieces=30)
    twice = load_tokenizer(build(root, base="tokenizer/half@v1", name="twice", num_pieces=30))
    once = load_tokenizer(build(root, base=base, name="once", num_pieces=60))
    assert set(twice.get_vocab()) == set(once.get_vocab())
    assert [twice.tokenize(text) for text in ARABIC] == [once.tokenize(text) for text in ARABIC]


def test_learning_stops_at_the_fertility_that_is_wanted(root: Path, base: str) -> None:
    facts = build(root, base=base, num_pieces=None, target_fertility=5.0).facts
    curve = dict(facts["learning_curve"])
    assert 0 < facts["num_new"] - 3 < max(curve)
    assert facts["fertility_target_after"] < facts["fertility_target_before"]
    shorter = build(root, base=base, num_pieces=None, target_fertility=4.0, version="v2").facts
    assert shorter["num_new"] > facts["num_new"]


def test_code_sources_are_measured(tmp_path: Path, base: str) -> None:
    write_corpus(tmp_path, {"ar": ARABIC, "en": ENGLISH, "code": [ENGLISH[3]]})
    facts = build(tmp_path, base=base, code_sources=("code",)).facts
    assert facts["fertility_code_before"] == facts["fertility_code_after"]


def test_a_special_token_that_is_a_piece_is_refused(root: Path, base: str) -> None:
    with pytest.raises(DataError, match=r"special_tokens: 'e' is an ordinary piece of base .*, which text may hold"):
        build(root, base=base, special_tokens=("e",))


def test_the_expansion_names_new_ids_with_their_old_pieces_and_padded_rows(root: Path, base: str) -> None:
    expansion = load_expansion(build(root, base=base))
    assert expansion.base_size == len(load_tokenizer(base))
    assert expansion.new_ids == tuple(range(expansion.base_size, expansion.num_ids)) == tuple(expansion.pieces)
    assert all(max(old) < expansion.base_size for old in expansion.pieces.values())
    assert expansion.size % 128 == 0
    assert 0 <= expansion.size - expansion.num_ids < 128


def test_a_base_is_given_only_the_special_tokens_it_lacks(root: Path, base: str) -> None:
    after = load_tokenizer(build(root, base=base))
    assert after.convert_tokens_to_ids("<|endoftext|>") == load_tokenizer(base).convert_tokens_to_ids("<|endoftext|>")
    assert {"<|im_start|>", "<|im_end|>", "<|pad|>"} <= set(after.get_added_vocab())


def test_a_base_that_declares_its_roles_keeps_them(root: Path, tmp_path: Path) -> None:
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|reserved|>"}
    after = load_tokenizer(build(root, base=write_base(tmp_path / "llama", BASES["llama"](), roles)))
    assert {role: getattr(after, role) for role in roles} == roles
    assert "<|endoftext|>" not in after.get_vocab()
    assert "<|pad|>" not in after.get_vocab()


def test_a_tokenizer_artifact_can_be_the_base(root: Path) -> None:
    english = build(root, name="en", sources=("en",), num_pieces=280)
    artifact = build(root, base="tokenizer/en@v1")
    assert list(artifact.manifest["parents"]) == ["corpus/small@v1", "tokenizer/en@v1"]
    assert load_expansion(artifact).base_hash == load_expansion(english).hash


def test_a_tokenizer_learned_from_nothing_has_no_base_and_no_pieces(root: Path) -> None:
    artifact = build(root, sources=("ar", "en"), num_pieces=320)
    expansion = load_expansion(artifact)
    assert (expansion.base, expansion.base_size, expansion.pieces, expansion.num_ids) == (None, 0, {}, 320)
    assert expansion.size == 384
    assert "factor" not in artifact.facts


def test_the_same_corpus_gives_the_same_bytes(root: Path, base: str) -> None:
    assert build(root, base=base).facts["hash"] == build(root, base=base, version="v2").facts["hash"]


def test_building_twice_does_nothing(root: Path, base: str) -> None:
    first = build(root, base=base)
    assert build(root, base=base).manifest["created"] == first.manifest["created"]
    with pytest.raises(ArtifactError, match="num_pieces: 60 -> 40"):
        build(root, base=base, num_pieces=40)


def test_too_small_a_gain_leaves_nothing_visible(root: Path, base: str) -> None:
    with pytest.raises(DataError, match=r"gates.min_factor is 1.5 but the target takes only 1\.\d\d times"):
        build(root, base=base, num_pieces=2, gates=Gates(min_factor=1.5))
    assert versions(root) == []


def test_a_special_token_that_is_an_english_word_breaks_the_gate(root: Path, base: str) -> None:
    with pytest.raises(DataError, match=r"gates.max_changed_ratio is 1e-05 but 0\.\d+ of protected tokens changed"):
        build(root, base=base, special_tokens=("the",))
    assert versions(root) == []


def test_a_sample_that_supports_fewer_pieces_says_so(root: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = build(root, base=base, num_pieces=5000).facts
    assert f"supports only {facts['num_new'] - 3} of num_pieces=5,000 at min_count=2" in capsys.readouterr().out


def test_text_without_the_target_script_is_refused(root: Path, base: str) -> None:
    with pytest.raises(DataError, match="en holds no arabic word; set scripts to the target's own"):
        build(root, base=base, sources=("en",))


def test_another_kind_of_base_is_refused_before_anything_is_read(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel"}, "added_tokens": []}))
    with pytest.raises(DataError, match="is a WordLevel tokenizer, expected byte-level BPE"):
        build(root, base=str(folder))
    assert not (root / "tokenizer").exists()


def test_a_broken_tokenizer_json_is_one_sentence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer.json is cut off or not JSON"):
        build(root, base=str(tmp_path))


def test_a_source_that_the_corpus_lacks_is_refused_at_once(root: Path, base: str) -> None:
    with pytest.raises(DataError, match="corpus/small@v1 has no source fr of documents"):
        build(root, base=base, sources=("fr",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "sources must name at least one"),
        ({"num_pieces": 0}, "num_pieces must be >= 1, got 0"),
        ({"base": "b", "num_pieces": None}, "one of num_pieces, target_fertility, knee says .*, got none; set one"),
        ({"base": "b", "knee": 15}, "one of .*, got num_pieces=60 and knee=15; set one and the others to null"),
        (
            {"base": "b", "num_pieces": None, "target_fertility": 0.5},
            "target_fertility must be >= 1 token per word, got 0.5",
        ),
        ({"base": "b", "num_pieces": None, "knee": -1}, "knee must be > 0 tokens in a million words, got -1"),
        ({"base": "b", "num_pieces": None, "knee": 1, "max_pieces": 0}, "max_pieces must be >= 1, got 0"),
        ({"num_pieces": None, "knee": 15}, "num_pieces must be set when base is null"),
        ({"num_pieces": 100}, r"num_pieces of a new tokenizer .* must be >= 260, got 100"),
        ({"base": "b", "pad_to_multiple": 0}, "pad_to_multiple must be >= 1, got 0"),
        ({"num_pieces": 999, "chat_template": "alpaca"}, "chat_template must be one of chatml, .*, got 'alpaca'"),
        ({"num_pieces": 999, "gates": Gates(min_factor=2)}, "gates.min_factor is 2 but base is null"),
    ],
)
def test_an_impossible_setting_is_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, **changes)


def documents(num: int) -> list[Document]:
    return [Document(str(index), f"{index:03d}" + "ب" * 10, "ar", "ar") for index in range(num)]


def test_the_sample_does_not_depend_on_the_order_of_reading() -> None:
    shuffled = documents(100)
    random.Random(1).shuffle(shuffled)
    assert sample_texts(shuffled, 500, 0) == sample_texts(documents(100), 500, 0)


def test_the_sample_keeps_to_its_limit_and_follows_the_seed() -> None:
    first, second = (sample_texts(documents(100), 500, seed) for seed in (0, 1))
    assert first != second
    assert sum(len(text.encode()) for text in first) == 21 * 23


def test_a_corpus_under_the_limit_is_taken_whole() -> None:
    assert sorted(sample_texts(documents(20), 10_000, 0)) == [document.text for document in documents(20)]


def test_a_document_over_the_limit_is_cut_at_a_character() -> None:
    assert sample_texts([Document("a", "ب" * 10, "ar", "ar")], 5, 0) == ["بب"]


def test_neighbours_of_new_pieces_are_looked_for_on_both_languages(root: Path, base: str) -> None:
    made = build(root, base=base, neighbours=4)
    found = read_neighbours(made.location.local_folder(), made.facts["hash"])
    assert made.facts["with_neighbours"] == len(found) > 0
    assert made.facts["with_neighbours"] + made.facts["without_neighbours"] == made.facts["num_new"]
    with pytest.raises(ConfigError, match="base is null"):
        build(root, base=None, num_pieces=300, neighbours=4)


def test_a_base_that_begins_texts_with_nothing_goes_on_doing_so(root: Path, tmp_path: Path) -> None:
    place = write_base(tmp_path / "base", BASES["gpt"](), {"eos_token": "<|im_end|>"})
    after = load_tokenizer(build(root, base=place))
    assert after.bos_token is None
    assert len(after) == len(after.backend_tokenizer.get_vocab(with_added_tokens=True))
