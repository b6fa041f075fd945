import json
from dataclasses import replace
from pathlib import Path

import pytest
from bilingual import DIVERSE, ENGLISH, SPECIAL
from transformers import AutoTokenizer

from lisan.core.errors import DataError
from lisan.tokenizer import tokenizer
from lisan.tokenizer.chat.template_source import read_template
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.tokenizer import Expansion, load_expansion, load_tokenizer, read_roles, write_expansion

ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
EXPANSION = Expansion(
    method="continued_bpe",
    base="tokenizer/en@v1",
    base_hash="ab",
    base_size=10,
    num_ids=12,
    size=128,
    new_ids=(10, 11),
    pieces={10: (1, 2), 11: (3,)},
    hash="cd",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    definition = bpe.learn(ENGLISH * 2, 300, SPECIAL, 2)
    tokenizer.write_folder(tmp_path, definition, ROLES, read_template("chatml"))
    return tmp_path


@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "qwen3", "gpt_neox", "olmo2"])
def test_auto_tokenizer_gives_the_ids_of_tokenizer_json_beside_any_model(folder: Path, model_type: str | None) -> None:
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 60000}))
    stated = bpe.open_definition(json.loads((folder / "tokenizer.json").read_text()))
    for opened in (AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)):
        for text in [*DIVERSE, "<|im_start|>user\nhi<|im_end|>"]:
            assert opened(text)["input_ids"] == stated.encode(text).ids
            assert opened.decode(opened(text)["input_ids"]) == text


def test_roles_and_template_travel_with_the_folder(folder: Path) -> None:
    opened = load_tokenizer(folder)
    assert {role: getattr(opened, role) for role in ROLES} == ROLES
    said = (("system", "س"), ("user", "a\nb"), ("assistant", " ok "))
    turns = [{"role": role, "content": content} for role, content in said]
    rendered = opened.apply_chat_template(turns, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nس<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
    )
    prompt = opened.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_the_template_adds_no_system_turn(folder: Path) -> None:
    rendered = load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n"


def test_the_returned_hash_is_that_of_the_file(tmp_path: Path) -> None:
    written = tokenizer.write_folder(tmp_path, bpe.learn(ENGLISH, 270, SPECIAL, 2), ROLES, "")
    assert written == tokenizer.digest((tmp_path / "tokenizer.json").read_bytes())


def test_an_expansion_reads_back_as_written(tmp_path: Path) -> None:
    write_expansion(tmp_path, EXPANSION)
    assert load_expansion(tmp_path) == EXPANSION
    assert load_expansion(tmp_path) != replace(EXPANSION, base_size=9)


def test_a_folder_with_only_tokenizer_json_opens_and_declares_no_role(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            file.unlink()
    assert read_roles(folder) == {}
    assert load_tokenizer(folder)("the")["input_ids"] != []


def test_roles_are_read_from_both_ways_of_writing_them(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_roles(tmp_path) == {"eos_token": "</s>", "bos_token": "<s>"}


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tokenizer.json; name a folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer /no/such/place holds no tokenizer.json; name a folder"):
        load_tokenizer("/no/such/place")


def test_a_name_that_no_hub_takes_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"tokenizer no such name is no folder and not readable from the hub .*; check"):
        load_tokenizer("no such name")


def test_a_folder_without_an_expansion_is_one_sentence(folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds no expansion.json; make the tokenizer with expand_tokenizer"):
        load_expansion(folder)
