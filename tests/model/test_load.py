"""Models by shape and from folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model, save_model

from lisan.core.errors import ConfigError, DataError
from lisan.model.config import InitMethod, ModelConfig, RowInitConfig, ShapeConfig
from lisan.model.load import decoder_layers, load_model, read_vocabulary_size

CONFIG = ModelConfig(shape=SHAPE, tokenizer="t")
RANDOM = RowInitConfig(method=InitMethod.random)


def make(seed: int = 0, **shape: Any) -> Any:
    return make_model(
        replace(CONFIG, shape=replace(SHAPE, **shape)), 100, {"eos_token_id": 2, "bos_token_id": None}, seed
    )


def test_the_same_seed_makes_the_same_weights_and_another_others() -> None:
    one, same, other = make(), make(), make(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_a_model_has_the_shape_that_was_asked_for() -> None:
    model = make(num_layers=3)
    assert len(decoder_layers(model)) == model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape == (100, 32)
    assert (model.config.num_key_value_heads, model.config.eos_token_id) == (1, 2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tie", [True, False])
def test_matrices_are_tied_as_asked(tie: bool) -> None:
    model = make(tie_embeddings=tie)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie


def test_output_projections_start_smaller_with_depth() -> None:
    model = make(num_layers=8)
    layer = model.requires_grad_(False).model.layers[0]
    assert float(layer.self_attn.q_proj.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(layer.self_attn.o_proj.weight.std()) == pytest.approx(0.02 / 4, rel=0.1)
    assert float(layer.mlp.down_proj.weight.std()) == pytest.approx(0.02 / 4, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make()
    save_model(model, tmp_path, dtype)
    again = load_model(str(tmp_path), dtype)
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert read_vocabulary_size(str(tmp_path)) == 100
    assert (tmp_path / "model.safetensors").exists()


def test_a_model_is_loaded_in_full_precision_unless_asked(tmp_path: Path) -> None:
    save_model(make(), tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in load_model(str(tmp_path)).parameters()} == {torch.float32}


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    for place in (str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(DataError, match=f"{place} is not a model that transformers can load") as caught:
            load_model(place)
        assert "\n" not in str(caught.value)


def test_a_hub_ids_size_is_not_known_here() -> None:
    assert read_vocabulary_size("org/model") is None


def test_a_model_without_blocks_cannot_be_sharded() -> None:
    with pytest.raises(ConfigError, match="Linear names no blocks to shard"):
        decoder_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "exactly one of path .* and shape"),
        ({"path": "model/a@v1", "shape": SHAPE}, "exactly one of path .* and shape"),
        ({"shape": SHAPE}, r"model\.tokenizer must be set"),
        ({"path": "org/model", "new_rows": RANDOM}, r"new_rows\.method=random has no effect without model\.tokenizer"),
        (
            {"shape": SHAPE, "tokenizer": "t", "new_rows": RANDOM},
            "no effect on a model that starts from random weights",
        ),
    ],
)
def test_an_impossible_model_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**values)


@pytest.mark.parametrize("values", [{"num_heads": 3}, {"num_heads": 4, "num_kv_heads": 3}])
def test_heads_must_divide(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size divisible by num_heads and num_heads by num_kv_heads, got 32"):
        ShapeConfig(
            **{
                **{"num_layers": 1, "hidden_size": 32, "intermediate_size": 8, "num_heads": 2, "num_kv_heads": 1},
                **values,
            }
        )
