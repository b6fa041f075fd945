"""Tokenizers that people use, expanded with Arabic that people wrote; needs the data folder."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from bilingual import DIVERSE, build, write_corpus

from lisan.tokenizer.expand.config import Gates
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer, read_definition
from lisan.tokenizer.tokenizer_json import open_definition

DATA = Path(os.environ.get("LISAN_DATA", "unset"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="LISAN_DATA names no folder with real tokenizers and texts")
LEAST_FACTORS = {
    "gpt-neox-olmo-50k": 1.4,
    "mistral-v1-32k": 1.8,
    "mistral-7b-instruct-v0.3": 1.8,
    "openllama-3b-32k": 3.4,
}
every_tokenizer = pytest.mark.parametrize("name", sorted(LEAST_FACTORS))


def read_arabic(num: int) -> list[str]:
    with gzip.open(DATA / "mono" / "ar_almuqtabas.jsonl.gz", "rt") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(num), strict=False)]


def read_english(num: int) -> list[str]:
    with (DATA / "mono" / "en_c4_demo.jsonl").open() as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(num), strict=False)]


@every_tokenizer
def test_what_is_loaded_gives_the_ids_that_tokenizer_json_states(name: str) -> None:
    folder = DATA / "tokenizers" / name
    stated = open_definition(json.loads(read_definition(folder)))
    loaded = load_tokenizer(folder)
    for text in [*DIVERSE, *read_english(20), *read_arabic(20), "<s>a</s> <unk>", "[INST] a [/INST]", "<|endoftext|>a"]:
        assert loaded(text)["input_ids"] == stated.encode(text).ids


def test_a_bare_model_gives_the_ids_of_sentencepiece() -> None:
    reference = pytest.importorskip(
        "sentencepiece", reason="the library that tokenizer.model belongs to is not installed"
    )
    folder = DATA / "tokenizers" / "mistral-v1-32k"
    expected, tokenizer = reference.SentencePieceProcessor(str(folder / "tokenizer.model")), load_tokenizer(folder)
    for text in [*DIVERSE, *read_english(100), *read_arabic(100)]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected.encode(text)


def test_a_bare_model_has_the_merges_that_its_publisher_derived() -> None:
    bare, published = (
        json.loads(read_definition(DATA / "tokenizers" / name))["model"]["merges"]
        for name in ("mistral-v1-32k", "mistral-7b-instruct-v0.3")
    )
    assert {tuple(pair) for pair in bare} == {tuple(pair.split(" ")) for pair in published}


@pytest.fixture(scope="module", params=sorted(LEAST_FACTORS))
def expanded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    root = tmp_path_factory.mktemp("real")
    write_corpus(root, {"ar": read_arabic(120), "en": read_english(50)})
    base = str(DATA / "tokenizers" / request.param)
    return request.param, build(root, base=base, num_pieces=1000, gates=Gates(min_factor=LEAST_FACTORS[request.param]))


def test_a_real_tokenizer_takes_up_arabic_and_keeps_the_rest(expanded: tuple[str, Any]) -> None:
    name, artifact = expanded
    facts, expansion = artifact.facts, load_expansion(artifact)
    assert (facts["changed_ratio"], facts["changed_code_ratio"], facts["lost_ratio"]) == (0, 0, 0)
    assert facts["fertility_protected_before"] == facts["fertility_protected_after"]
    assert facts["num_new"] >= 1000
    before, after = load_tokenizer(DATA / "tokenizers" / name), load_tokenizer(artifact)
    old, new = before.get_vocab(), after.get_vocab()
    assert {piece: new[piece] for piece in old} == old
    assert expansion.base_size == max(old.values()) + 1


def test_a_new_piece_of_a_real_tokenizer_reads_as_its_old_ones(expanded: tuple[str, Any]) -> None:
    _, artifact = expanded
    after, expansion = load_tokenizer(artifact), load_expansion(artifact)
    for index in expansion.new_ids[-400:-100]:
        old = after.decode(list(expansion.pieces[index]))
        assert "\ufffd" in old or old == after.decode([index])
