"""LoRA configs and their attachment; the laws hold what they compute."""

from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lisan.core.errors import ConfigError
from lisan.model.adapters.lora import attach_adapter, iter_merged
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.embeddings.resize import gather


def model() -> Any:
    return make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 50, {}, seed=0)


def test_every_target_of_every_layer_gets_an_adapter() -> None:
    wrapped = attach_adapter(model(), LoraConfig(rank=3, targets=("q_proj", "down_proj")))
    shapes = {name: tuple(p.shape) for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(shapes) == 2 * 2 * SHAPE.num_layers
    assert {shape[0] for name, shape in shapes.items() if "lora_A" in name} == {3}


def test_merging_gives_back_the_names_of_the_plain_model() -> None:
    adapted = model()
    attach_adapter(adapted, LoraConfig(rank=2))
    assert [name for name, _ in iter_merged(adapted)] == [name for name, _ in model().named_parameters()]


def test_layers_that_are_no_linear_ones_are_merged_too() -> None:
    """GPT-2's Conv1D, whose weights lie the other way round."""
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_head=2, n_layer=1, n_positions=16)).eval()
    wrapped = attach_adapter(gpt, LoraConfig(rank=2, targets=("c_attn",)))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    found = {name: make(gather) for name, make in iter_merged(gpt)}
    wanted = dict(wrapped.merge_and_unload().named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, r"tuning\.lora\.rank must be >= 1, got 0"),
        ({"targets": ("q_proj", "lm_head")}, r"tuning\.lora\.targets names lm_head: vLLM cannot load"),
        ({"targets": ("embed_tokens",)}, "names embed_tokens"),
        ({"targets": ()}, r"tuning\.lora\.targets must name layers, or be \[all\]"),
        ({"targets": ("all", "q_proj")}, r"must name layers, or be \[all\] for every one, got \['all', 'q_proj'\]"),
        ({"alpha": 0.0}, r"alpha > 0 and dropout in 0\.\.1"),
        ({"dropout": 1.0}, r"dropout in 0\.\.1, below 1, got 32 and 1"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "query")])
def test_a_target_that_fits_no_layer_is_refused(targets: tuple[str, ...]) -> None:
    said = r"tuning\.lora\.targets names query, which fit no linear layer .* has down_proj, gate_proj, .* \[all\] means"
    with pytest.raises(ConfigError, match=said):
        attach_adapter(model(), LoraConfig(targets=targets))


def neox() -> object:
    """A model whose layers have none of the usual names."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )


def test_all_means_every_linear_layer_of_the_blocks_whatever_its_name() -> None:
    wrapped = attach_adapter(neox(), LoraConfig(rank=2, targets=("all",)))
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in wrapped.named_parameters() if "lora_A" in name
    }
    assert adapted == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    usual = attach_adapter(model(), LoraConfig(rank=2, targets=("all",)))
    assert usual.peft_config["default"].target_modules == set(LoraConfig().targets)


def test_a_scale_of_rslora_falls_with_the_root_of_the_rank() -> None:
    for use_rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        wrapped = attach_adapter(model(), LoraConfig(rank=16, alpha=8, use_rslora=use_rslora))
        layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == scale


def test_dora_trains_a_magnitude_for_every_output() -> None:
    wrapped = attach_adapter(model(), LoraConfig(rank=2, targets=("down_proj",), use_dora=True))
    magnitudes = [p for name, p in wrapped.named_parameters() if "magnitude" in name and p.requires_grad]
    assert [tuple(p.shape) for p in magnitudes] == [(SHAPE.hidden_size,)] * SHAPE.num_layers
