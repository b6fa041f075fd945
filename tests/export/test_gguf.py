"""GGUF files: the weights that went in come back, in the places and under the names that llama.cpp reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny import SHAPE, make_model, save_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lisan.core.errors import ConfigError
from lisan.export.config import GgufType
from lisan.export.gguf import check_gguf, interleave_heads, read_gguf, restore_heads, rope_factors, write_gguf
from lisan.model.config import ModelConfig
from lisan.model.folder import read_config
from lisan.model.folder_tensors import iter_state
from lisan.model.load import load_model

WIDE = replace(SHAPE, hidden_size=64, intermediate_size=128)
TOKENIZER: dict[str, Any] = {
    "ggml.model": "gpt2",
    "ggml.pre": "qwen35",
    "ggml.tokens": [f"t{index}" for index in range(384)],
    "ggml.token_type": [1] * 384,
    "ggml.merges": ["t 1"],
    "ggml.eos_token_id": 2,
    "ggml.add_bos_token": False,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    shape = replace(WIDE, tie_embeddings=request.param)
    save_model(make_model(ModelConfig(shape=shape, tokenizer="t", init_std=0.1), 384, {}, 0), folder, torch.bfloat16)
    return folder


def save_llama(folder: Path, **changes: Any) -> Path:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("gguf_type", "step"), [("float32", 0.0), ("bfloat16", 0.0), ("float16", 2**-11), ("q8_0", 1 / 127)]
)
def test_the_weights_come_back(gguf_type: str, step: float, source: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(source, file, GgufType(gguf_type), "m", TOKENIZER)
    found, original = dict(read_gguf(file, read_config(source))), dict(iter_state(source))
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        error = (found[name] - tensor.float()).abs().max()
        assert error <= step * tensor.float().abs().max(), name


def test_the_file_says_what_llama_cpp_asks_for(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "m.gguf", GgufType.float32, "m", TOKENIZER)
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    said = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "m",
        "llama.block_count": 2,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 32,
        "llama.context_length": 128,
        "llama.vocab_size": 384,
        **{f"tokenizer.{key}": value for key, value in TOKENIZER.items()},
    }
    assert {name: said[name] for name in expected} == expected
    names = {tensor.name for tensor in reader.tensors}
    assert ("output.weight" in names) is not read_config(source).tie_word_embeddings
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight", "blk.1.ffn_down.weight"} <= names


def test_turned_rows_rotate_as_transformers_rotates_them() -> None:
    """llama.cpp turns neighbours (2i, 2i + 1) by the angle by which transformers turns (i, i + d / 2)."""
    heads, dim = 3, 8
    vector = np.random.default_rng(0).standard_normal(heads * dim)
    angles = np.linspace(0.1, 1.3, dim // 2)
    halves = vector.reshape(heads, 2, dim // 2)
    first, second = halves[:, 0], halves[:, 1]
    theirs = np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    ).reshape(-1)
    even, odd = np.moveaxis(interleave_heads(vector, heads).reshape(heads, dim // 2, 2), 2, 0)
    rotated = np.stack([even * np.cos(angles) - odd * np.sin(angles), odd * np.cos(angles) + even * np.sin(angles)], 2)
    assert np.allclose(restore_heads(rotated.reshape(-1), heads), theirs)
    assert np.array_equal(restore_heads(interleave_heads(vector, heads), heads), vector)


def test_rope_factors_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, head_dim=64, rope_parameters=LLAMA_3_ROPE, max_position_embeddings=131072)
    config = read_config(folder)
    scaled = load_model(str(folder)).model.rotary_emb.inv_freq.numpy()
    plain = 1 / 500_000.0 ** (np.arange(0, 64, 2) / 64)
    factors = rope_factors(config)
    assert factors is not None
    assert np.allclose(plain / scaled, factors, rtol=1e-4)
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(8)
    assert rope_factors(read_config(save_llama(tmp_path / "plain"))) is None
    write_gguf(folder, tmp_path / "m.gguf", GgufType.float32, "m", TOKENIZER)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert np.array_equal(found["rope_freqs.weight"], factors)
    assert dict(read_gguf(tmp_path / "m.gguf", config)).keys() == dict(iter_state(folder)).keys()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"GGUF is written for LlamaForCausalLM .* is Qwen2ForCausalLM; leave gguf out"
    ):
        check_gguf(tmp_path, GgufType.float16)


@pytest.mark.parametrize(
    ("changes", "gguf_type", "said"),
    [
        ({"attention_bias": True}, "float16", "models without attention_bias"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "float16", "has dynamic"),
        ({"hidden_size": 48}, "q8_0", r"multiple of 32, .* has 48; set gguf_type=float16"),
    ],
)
def test_what_the_file_cannot_say_is_refused(
    changes: dict[str, Any], gguf_type: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_gguf(save_llama(tmp_path, **changes), GgufType(gguf_type))


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    model = load_model(str(folder))
    model.model.norm.weight.data[0] = 1e5
    save_model(model, folder, torch.float32)
    check_gguf(folder, GgufType.bfloat16)
    with pytest.raises(ConfigError, match=r"ends at 65504 and model\.norm\.weight goes beyond; set gguf_type=bfloat16"):
        check_gguf(folder, GgufType.float16)
