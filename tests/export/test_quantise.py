"""Rounding to 8 and 4 bits: what the integers stand for, and that other readers of the layout see the same numbers."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import SHAPE, make_model, save_model
from transformers import AutoConfig, AutoModelForCausalLM

from lisan.core.errors import ConfigError, DataError
from lisan.export.quantise import (
    check_quantisable,
    describe,
    pack_rows,
    quantise_rows,
    read_quantised,
    restore_rows,
    unpack_rows,
    write_quantised,
)
from lisan.model.config import ModelConfig
from lisan.model.folder import read_config
from lisan.model.folder_tensors import assemble, iter_state, linear_names
from lisan.model.load import load_model
from lisan.model.weights.safetensors_files import MAX_FILE_BYTES

WIDE = replace(SHAPE, hidden_size=64, intermediate_size=128)
IDS = torch.arange(1, 40)[None]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model in bfloat16."""
    folder = tmp_path_factory.mktemp("source")
    shape = replace(WIDE, tie_embeddings=request.param)
    save_model(make_model(ModelConfig(shape=shape, tokenizer="t", init_std=0.1), 384, {}, 0), folder, torch.bfloat16)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize(("num_bits", "group"), [(8, 64), (4, 32), (4, 64)])
def test_what_is_restored_is_within_half_a_step_of_the_weight(num_bits: int, group: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    integers, scale = quantise_rows(weight, num_bits, group)
    assert integers.abs().max() == 2 ** (num_bits - 1) - 1
    assert scale.shape == (8, 64 // group)
    error = (restore_rows(integers, scale) - weight).abs().unflatten(1, (-1, group)).amax(-1)
    assert (error <= scale / 2 * 1.001).all()


def test_rows_of_zeros_stay_zeros() -> None:
    integers, scale = quantise_rows(torch.zeros(2, 32), 4, 32, torch.bfloat16)
    assert torch.equal(restore_rows(integers, scale), torch.zeros(2, 32))


def test_packed_rows_are_the_integers() -> None:
    integers = torch.arange(-8, 8, dtype=torch.int8).repeat(2, 2)
    packed = pack_rows(integers)
    assert packed.dtype == torch.int32
    assert packed.shape == (2, 4)
    assert torch.equal(unpack_rows(packed), integers)
    assert pack_rows(torch.tensor([[-8] * 7 + [7]], dtype=torch.int8)).item() == -(2**28)  # 15 in the highest four bits


def test_a_quantised_folder_stands_for_its_model(source: Path, tmp_path: Path) -> None:
    original = logits(load_model(str(source)))
    errors = {}
    for num_bits, group in ((8, 32), (4, 32), (4, 64)):
        folder = tmp_path / f"{num_bits}-{group}"
        folder.mkdir()
        write_quantised(source, folder, num_bits, group)
        errors[num_bits, group] = float((logits(read_quantised(folder)) - original).abs().mean() / original.std())
        kept = {name for name, _ in iter_state(folder)}
        assert "model.embed_tokens.weight" in kept
        assert json.loads((folder / "config.json").read_bytes())["quantization_config"] == describe(num_bits, group)
    assert 0 < errors[8, 32] < errors[4, 32] < errors[4, 64] < 0.5
    assert errors[8, 32] < 0.03


def test_a_large_model_is_written_in_several_files(source: Path, tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "many"
    for folder, limit in zip(folders, (MAX_FILE_BYTES, 20_000), strict=True):
        folder.mkdir()
        write_quantised(source, folder, 4, 32, limit)
    index = json.loads((folders[1] / "model.safetensors.index.json").read_bytes())
    assert len(list(folders[1].glob("*.safetensors"))) == len(set(index["weight_map"].values())) > 2
    one, many = (dict(iter_state(folder)) for folder in folders)
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert torch.equal(*(logits(read_quantised(folder)) for folder in folders))


@pytest.mark.parametrize(("num_bits", "group"), [(8, 32), (4, 32)])
def test_the_library_of_the_layout_reads_the_same_weights(
    num_bits: int, group: int, source: Path, tmp_path: Path
) -> None:
    """compressed-tensors is the library that vLLM takes the layout from."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors comes with vLLM")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    write_quantised(source, tmp_path, num_bits, group)
    plain = json.loads((tmp_path / "config.json").read_bytes())["quantization_config"]
    config = QuantizationConfig.model_validate(plain)
    scheme = config.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config.format)
    state = dict(iter_state(tmp_path))
    ours = dict(read_quantised(tmp_path).named_parameters())
    for name in linear_names(read_config(source)):
        parts = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        theirs = compressor.decompress(parts, scheme)["weight"]
        # Theirs multiplies in the type of the scales, ours in fp32.
        assert torch.allclose(theirs.float(), ours[f"{name}.weight"], rtol=2**-8, atol=0)


def test_a_group_that_does_not_divide_is_one_sentence(source: Path) -> None:
    check_quantisable(source, 8, 128)
    with pytest.raises(
        ConfigError, match=r"int4_group 128 does not divide the 64 inputs of model\.layers\.0.*int4_group=64"
    ):
        check_quantisable(source, 4, 128)


def test_what_is_quantised_is_not_quantised_again(source: Path, tmp_path: Path) -> None:
    write_quantised(source, tmp_path, 8, 32)
    with pytest.raises(ConfigError, match="quantised already"):
        check_quantisable(tmp_path, 4, 32)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"n_embd": 32, "n_head": 2, "n_layer": 1}, "the model has no linear layers in its blocks"),
    "mixtral": ({"num_local_experts": 2}, r"model\.layers\.0\..*experts.*\.weight is no linear layer of the model"),
    "gpt_neox": ({}, r"its files have embed_out\.weight, which the model has not under that name"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_would_not_be_quantised_or_not_be_read_again_is_refused(family: str, tmp_path: Path) -> None:
    own, said = REFUSED[family]
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **own)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"int8 of .*: {said}.*; leave int8 and int4 out of formats"):
        check_quantisable(tmp_path, 8, 32)


def test_a_layer_that_the_files_lack_is_one_sentence(source: Path, tmp_path: Path) -> None:
    copytree(source, tmp_path / "m")
    state = {name: tensor for name, tensor in iter_state(source) if "layers.1.mlp.up_proj" not in name}
    save_file(state, tmp_path / "m" / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"its files have no model\.layers\.1\.mlp\.up_proj\.weight, which the model has"
    ):
        check_quantisable(tmp_path / "m", 4, 32)


def test_a_model_is_complete_or_refused(source: Path) -> None:
    config, state = read_config(source), dict(iter_state(source))
    lacking = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    with pytest.raises(DataError, match=r"there lacks model\.norm\.weight"):
        assemble(config, lacking, "there")
    with pytest.raises(DataError, match=r"there holds model\.norm\.weight \[3\], LlamaForCausalLM has \[64\]"):
        assemble(config, state | {"model.norm.weight": torch.ones(3)}, "there")
