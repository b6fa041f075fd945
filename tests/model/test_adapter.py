"""LoRA configs and their attachment; the laws hold what they compute."""

import pytest
from tiny import SHAPE

from lisan.core.errors import ConfigError
from lisan.model.adapter import LoraConfig, attach_adapter, merge_adapter
from lisan.model.load import ModelConfig, make_model


def model() -> object:
    return make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 50, {}, seed=0)


def test_every_target_of_every_layer_gets_an_adapter() -> None:
    wrapped = attach_adapter(model(), LoraConfig(rank=3, targets=("q_proj", "down_proj")))
    shapes = {name: tuple(p.shape) for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(shapes) == 2 * 2 * SHAPE.num_layers
    assert {shape[0] for name, shape in shapes.items() if "lora_A" in name} == {3}


def test_merging_gives_back_the_plain_class() -> None:
    plain = model()
    merged = merge_adapter(attach_adapter(plain, LoraConfig(rank=2)))
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert set(merged.state_dict()) == set(model().state_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, r"tuning\.lora\.rank must be >= 1, got 0"),
        ({"targets": ("q_proj", "lm_head")}, r"tuning\.lora\.targets names lm_head: vLLM cannot load"),
        ({"targets": ("embed_tokens",)}, "names embed_tokens"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**values)  # type: ignore[arg-type]


def test_targets_that_fit_no_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tuning\.lora\.targets \['query'\] fit no layer of the model"):
        attach_adapter(model(), LoraConfig(targets=("query",)))
