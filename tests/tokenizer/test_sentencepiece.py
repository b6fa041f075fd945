import io
import json
import struct
from pathlib import Path

import pytest
from bilingual import ARABIC, DIVERSE, ENGLISH, build, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.core.errors import DataError
from lisan.tokenizer import sentencepiece
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer, read_roles, tokenizer_hash
from lisan.tokenizer.tokenizer_json import open_definition

reference = pytest.importorskip("sentencepiece", reason="the library that tokenizer.model belongs to is not installed")
KINDS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 420},
    "unigram": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "vocab_size": 380,
    },
    "t5": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "vocab_size": 130,
        "remove_extra_whitespaces": True,
    },
    "bare": {"model_type": "bpe", "normalization_rule_name": "identity", "vocab_size": 150, "add_dummy_prefix": False},
}


def train(kind: str) -> bytes:
    model = io.BytesIO()
    settings = {"remove_extra_whitespaces": False, "user_defined_symbols": ["<code>"], "minloglevel": 2, **KINDS[kind]}
    lines = [line for text in [*ENGLISH, ARABIC[0]] for line in text.splitlines()] * 3
    reference.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, **settings
    )
    return model.getvalue()


MODELS = {kind: train(kind) for kind in KINDS}
READ = {kind: sentencepiece.read_model(data, kind) for kind, data in MODELS.items()}
OPEN = {
    kind: (
        reference.SentencePieceProcessor(model_proto=data),
        open_definition(sentencepiece.to_definition(READ[kind], False)),
    )
    for kind, data in MODELS.items()
}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@every_kind
@settings(deadline=None)
@given(text=st.text(st.sampled_from("the capital of moroc  .,1é漢المغرب\n\t\u200f"), max_size=30))
def test_ids_are_those_of_the_library_itself(kind: str, text: str) -> None:
    expected, tokenizer = OPEN[kind]
    assert tokenizer.encode(text).ids == expected.encode(text)


@every_kind
@pytest.mark.parametrize("text", [*ENGLISH, *ARABIC, *DIVERSE])
def test_real_text_has_the_ids_of_the_library(kind: str, text: str) -> None:
    expected, tokenizer = OPEN[kind]
    assert tokenizer.encode(text).ids == expected.encode(text)


@pytest.mark.parametrize("text", [*ENGLISH, *ARABIC, *DIVERSE])
def test_a_base_with_bytes_gives_the_text_back(text: str) -> None:
    for kind in ("llama", "unigram"):
        tokenizer = OPEN[kind][1]
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_control_pieces_are_special_and_symbols_of_users_are_not() -> None:
    added = {
        token["content"]: token["special"]
        for token in sentencepiece.to_definition(READ["llama"], False)["added_tokens"]
    }
    assert added == {"<unk>": True, "<s>": True, "</s>": True, "<code>": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(MODELS["llama"])
    return tmp_path


def test_a_folder_with_only_a_model_opens_with_its_roles_and_start_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert read_roles(folder) == {role: getattr(tokenizer, role) for role in roles} == roles
    assert tokenizer("the").input_ids == [1, *OPEN["llama"][0].encode("the")]


def test_the_config_beside_it_can_leave_the_start_token_out_and_hold_a_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": False, "chat_template": "{{ messages }}"})
    )
    assert load_tokenizer(folder)("the").input_ids == OPEN["llama"][0].encode("the")
    assert load_tokenizer(folder).chat_template == "{{ messages }}"


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_an_expanded_model_leaves_as_tokenizer_json(kind: str, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(MODELS[kind])
    write_corpus(folder)
    artifact = build(folder, base=str(folder))
    before, after, expansion = load_tokenizer(folder), load_tokenizer(artifact), load_expansion(artifact)
    assert expansion.base_hash == tokenizer_hash(str(folder))
    assert all(before(text)["input_ids"] == after(text)["input_ids"] for text in ENGLISH)
    assert all(len(before(text)["input_ids"]) > 1.2 * len(after(text)["input_ids"]) for text in ARABIC)
    assert not (Path(artifact.location.full_path) / "tokenizer.model").exists()


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    for data in (b"", b"\x0b", MODELS["llama"][:1000], b"not a model", b"\n\x05abc"):
        with pytest.raises(
            DataError, match=r"tokenizer x is (not a SentencePiece model|a SentencePiece model of words)"
        ):
            sentencepiece.read_model(data, "x")


def test_a_model_of_words_is_refused() -> None:
    piece = b"\x0a\x01a\x15" + struct.pack("<f", 0.0)
    data = b"\x0a" + bytes([len(piece)]) + piece + b"\x12\x02\x18\x03"
    with pytest.raises(
        DataError, match="tokenizer x is a SentencePiece model of words or characters; expected BPE or Unigram"
    ):
        sentencepiece.read_model(data, "x")
