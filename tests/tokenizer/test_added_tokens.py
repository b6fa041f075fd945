"""Tokens that lie beside a vocabulary keep the ids that their files give them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bilingual import ALL_BASES, build, llama2_base, t5_base, write_base, write_corpus

from lisan.core.errors import DataError
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer, read_definition, tokenizer_hash
from lisan.tokenizer.tokenizer_json import Definition, first_free_id, special_token

DATA = Path(os.environ.get("LISAN_DATA", "unset"))
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def write(folder: Path, definition: Definition, **files: Any) -> Path:
    """Write a base and further JSON files beside it, by name."""
    write_base(folder, definition, ROLES)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def vicuna(tmp_path: Path) -> Path:
    """A Llama-2 vocabulary with two tokens in added_tokens.json, as Vicuna has them."""
    definition = llama2_base()
    first = first_free_id(definition)
    return write(tmp_path / "vicuna", definition, added_tokens={"<pad>": first, "<|tool|>": first + 1})


def test_added_tokens_are_read_under_their_ids(vicuna: Path) -> None:
    first = first_free_id(llama2_base())
    opened = load_tokenizer(vicuna)
    assert opened.pad_token_id == first
    assert opened.encode("the <|tool|>", add_special_tokens=False)[-1] == first + 1
    assert len(opened) == first + 2
    assert first_free_id(json.loads(read_definition(vicuna))) == first + 2


def test_only_tokens_of_roles_are_special(vicuna: Path) -> None:
    added = {token["content"]: token["special"] for token in json.loads(read_definition(vicuna))["added_tokens"]}
    assert added["<pad>"]
    assert not added["<|tool|>"]


def test_a_list_in_the_config_counts_and_its_ids_may_have_gaps(tmp_path: Path) -> None:
    first = first_free_id(llama2_base())
    listed = {
        str(first + 7): {"content": "<|far|>", "special": True},
        str(first): {"content": "<pad>", "special": True},
    }
    config = {**ROLES, "added_tokens_decoder": listed}
    opened = load_tokenizer(write(tmp_path, llama2_base(), tokenizer_config=config, added_tokens={"<|ignored|>": 9}))
    assert opened.convert_tokens_to_ids("<|far|>") == first + 7
    assert opened.encode("a<|far|>", add_special_tokens=False)[-1] == first + 7
    assert "<|ignored|>" not in opened.get_vocab()


def test_a_gap_in_tokenizer_json_itself_moves_no_id(tmp_path: Path) -> None:
    definition = llama2_base()
    definition["added_tokens"].append(special_token("<|far|>", first_free_id(definition) + 9))
    opened = load_tokenizer(write_base(tmp_path, definition, {"eos_token": "</s>"}))
    assert opened.convert_tokens_to_ids("<|far|>") == definition["added_tokens"][-1]["id"]


def test_a_pad_token_without_an_id_gets_the_next_one(tmp_path: Path) -> None:
    opened = load_tokenizer(write(tmp_path, llama2_base()))
    assert opened.pad_token_id == first_free_id(llama2_base())


@pytest.mark.parametrize("base", ALL_BASES)
def test_a_folder_that_adds_nothing_is_known_by_its_file(base: str, tmp_path: Path) -> None:
    write_base(
        tmp_path, ALL_BASES[base](), {"eos_token": "</s>" if "</s>" in str(ALL_BASES[base]()) else "<|endoftext|>"}
    )
    if base != "llama":  # that one lacks the role's token
        assert read_definition(tmp_path) == (tmp_path / "tokenizer.json").read_bytes()


def test_new_pieces_follow_the_added_tokens(vicuna: Path, tmp_path: Path) -> None:
    first = first_free_id(llama2_base())
    write_corpus(tmp_path)
    expanded = build(tmp_path, base=str(vicuna))
    expansion, after = load_expansion(expanded), load_tokenizer(expanded)
    assert expansion.base_size == min(expansion.new_ids) == first + 2
    assert expansion.base_hash == tokenizer_hash(str(vicuna))
    assert after.pad_token_id == first < expansion.size
    assert after.convert_tokens_to_ids("<|tool|>") == first + 1
    assert max(after.get_vocab().values()) < expansion.size


def test_a_pad_token_without_an_id_lies_within_the_rows_of_the_expansion(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    expanded = build(tmp_path, base=str(write(tmp_path / "base", llama2_base())))
    assert load_tokenizer(expanded).pad_token_id == first_free_id(llama2_base())
    assert len(load_tokenizer(expanded)) == expanded.facts["num_ids"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"added_tokens": {"<s>": 9999}}, r"gives '<s>' the id 9,999 beside a vocabulary that gives it 1; keep one"),
        ({"added_tokens": {"<|x|>": 1}}, r"gives the id 1 to '<\|x\|>' and to '<s>'; change one of them"),
        ({"added_tokens": {"<|x|>": "one"}}, r"does not list its added tokens as contents with ids"),
        ({"added_tokens": ["<|x|>"]}, r"added_tokens\.json holds a list, expected a JSON object"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"5": {}}}},
            r"does not list its added tokens .*KeyError: 'content'",
        ),
    ],
)
def test_tokens_that_two_files_number_differently_are_refused(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load_tokenizer(write(tmp_path, llama2_base(), **files))


def test_a_unigram_list_cannot_have_a_gap(tmp_path: Path) -> None:
    far = first_free_id(t5_base()) + 5
    with pytest.raises(DataError, match=rf"gives '<\|far\|>' the id {far} and its Unigram list of pieces ends"):
        load_tokenizer(write(tmp_path, t5_base(), added_tokens={"<|far|>": far}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_that_is_cut_off_is_named(name: str, vicuna: Path) -> None:
    text = (vicuna / name).read_text()
    (vicuna / name).write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=rf"{name} is cut off or not JSON \(.*\); copy or download it again"):
        load_tokenizer(vicuna)


def test_a_definition_that_the_library_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    write_base(tmp_path, {**llama2_base(), "pre_tokenizer": {"type": "NoSuch"}}, {"eos_token": "</s>"})
    with pytest.raises(DataError, match=r"holds a tokenizer that does not open \(.*\); download it again"):
        load_tokenizer(tmp_path)


def test_the_files_that_transformers_reads_are_fetched_from_the_hub(
    vicuna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: str, allow_patterns: list[str]) -> str:
        folder = vicuna.parent / "fetched"
        folder.mkdir()
        for name in allow_patterns:
            if (vicuna / name).exists():
                shutil.copy(vicuna / name, folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_tokenizer("org/vicuna").pad_token_id == first_free_id(llama2_base())


@pytest.mark.skipif(not DATA.is_dir(), reason="LISAN_DATA names no folder with real tokenizers")
def test_a_tokenizer_model_keeps_the_tokens_beside_it(tmp_path: Path) -> None:
    shutil.copy(DATA / "tokenizers" / "mistral-v1-32k" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 32000, "<|tool|>": 32001}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(ROLES))
    opened = load_tokenizer(tmp_path)
    assert opened.pad_token_id == 32000
    assert opened.encode("hello <|tool|> x", add_special_tokens=False) == [6312, 28709, 28705, 32001, 28705, 1318]


def test_a_template_that_is_not_utf8_is_one_sentence(vicuna: Path) -> None:
    (vicuna / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(DataError, match=r"holds a tokenizer that does not open \(.*utf-8.*\)"):
        load_tokenizer(vicuna)


def test_an_expansion_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "expansion.json").write_text('{"method": ')
    with pytest.raises(DataError, match=r"expansion\.json is cut off or not JSON"):
        load_expansion(tmp_path)
