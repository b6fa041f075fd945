"""Weights that are drawn later, tensor by tensor, are those that the constructor would have drawn at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from lisan.core.errors import DataError
from lisan.model.adapters.lora import attach_adapter, attach_random_adapter
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.load import make_random_model
from lisan.model.weights.load_shards import load_shards
from lisan.model.weights.random_weights import record_random_weights

LORA = LoraConfig(rank=4)


def outlined(tie: bool = True, pad: int | None = None) -> tuple[Any, Any]:
    shape = replace(SHAPE, tie_embeddings=tie)
    return make_random_model(ModelConfig(shape=shape, tokenizer="t"), 101, {"pad_token_id": pad}, seed=3)


@pytest.mark.parametrize("pad", [None, 7])
@pytest.mark.parametrize("tie", [True, False])
def test_drawn_weights_are_the_constructors_bit_for_bit(tie: bool, pad: int | None) -> None:
    model, drawn = outlined(tie, pad)
    load_shards(model, [drawn])
    torch.manual_seed(3)
    direct = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "vocab_size": 101}))
    with torch.no_grad():
        for name, parameter in direct.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * SHAPE.num_layers) ** -0.5)
    wanted, found = direct.state_dict(), model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert all(torch.equal(buffer, dict(model.named_buffers())[name]) for name, buffer in direct.named_buffers())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie


def test_a_part_is_drawn_as_the_whole() -> None:
    model, drawn = outlined(tie=False)
    whole = make_model(ModelConfig(shape=replace(SHAPE, tie_embeddings=False), tokenizer="t"), 101, {}, seed=3)
    parts = {name: (slice(1, 5),) + (slice(0, 9),) * (p.ndim - 1) for name, p in model.named_parameters()}
    found = dict(drawn(parts))
    assert found.keys() == parts.keys()
    assert all(torch.equal(found[name], parameter[parts[name]]) for name, parameter in whole.named_parameters())


def test_drawn_adapters_are_the_attached_ones_bit_for_bit() -> None:
    model, base = outlined()
    wrapper, drawn = attach_random_adapter(model, LORA, seed=5)
    load_shards(wrapper.base_model.model, [base, drawn])
    direct = make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 101, {"pad_token_id": None}, seed=3)
    torch.manual_seed(5)
    attach_adapter(direct, LORA)
    found = dict(model.named_parameters())
    assert sum("lora_" in name for name in found) == 14 * SHAPE.num_layers
    assert all(torch.equal(parameter, found[name]) for name, parameter in direct.named_parameters())
    assert all(found[name].requires_grad == parameter.requires_grad for name, parameter in direct.named_parameters())


def test_random_numbers_drawn_by_operations_that_cannot_be_replayed_are_refused() -> None:
    with record_random_weights(0):
        layer = torch.nn.Linear(4, 4)
        with pytest.raises(NotImplementedError, match="cannot be replayed tensor by tensor"):
            layer.weight.data.bernoulli_(0.5)


def test_weights_that_no_source_has_are_named() -> None:
    model, _ = outlined()
    with pytest.raises(DataError, match=r"no source has the weights of model\.embed_tokens\.weight"):
        load_shards(model, [])
