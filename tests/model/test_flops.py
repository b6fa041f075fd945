"""FLOPs: ours are those that torch counts while it computes."""

from typing import Any

import pytest
import torch
from tiny import make_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lisan.model.adapters.lora import attach_adapter
from lisan.model.config import LoraConfig, ModelConfig, ShapeConfig
from lisan.model.flops import ModelFlops, Work, count_flops

SHAPE = ShapeConfig(num_layers=3, hidden_size=32, intermediate_size=80, num_heads=4, num_kv_heads=2, max_positions=128)
KV_SIZE, RANK = 16, 4
LENGTH, NUM_LABELS = 48, 20
ONE_DOCUMENT = Work(num_tokens=LENGTH, num_pairs=LENGTH**2, num_labels=NUM_LABELS)


def made(tied: bool = True) -> Any:
    shape = ShapeConfig(**{**{name: getattr(SHAPE, name) for name in SHAPE.__slots__}, "tie_embeddings": tied})
    return make_model(ModelConfig(shape=shape, tokenizer="t"), 640, {}, 0)


def counted_by_torch(model: Any) -> tuple[int, int]:
    """Return what torch counts forward and in all, of a row that is one document of which some tokens are labelled."""
    ids = torch.arange(5, 5 + LENGTH)[None]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        loss = model.get_output_embeddings()(hidden[0, :NUM_LABELS]).logsumexp(-1).sum()
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def flops_of(model: Any) -> ModelFlops:
    found = count_flops(model)
    assert found is not None
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_is_trained_whole(tied: bool) -> None:
    flops, (forward, whole) = flops_of(made(tied)), counted_by_torch(made(tied))
    assert flops.forward(ONE_DOCUMENT) == forward
    assert flops.training(ONE_DOCUMENT) == whole == 3 * forward


def test_frozen_weights_under_adapters_need_no_gradient_of_their_own() -> None:
    model = made()
    attach_adapter(model, LoraConfig(rank=RANK))
    flops, (forward, whole) = flops_of(model), counted_by_torch(model)
    assert flops.forward(ONE_DOCUMENT) == forward
    # Below the first block's projections nothing is trained: the gradient of their input, which torch leaves out.
    outputs = SHAPE.hidden_size + 2 * KV_SIZE
    unneeded = 2 * LENGTH * SHAPE.hidden_size * (outputs + 3 * RANK)
    assert flops.training(ONE_DOCUMENT) == whole + unneeded
    assert 2 * forward < whole < 2.3 * forward


def test_a_frozen_model_under_trained_embeddings() -> None:
    model = made(tied=False).requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    flops, (forward, whole) = flops_of(model), counted_by_torch(model)
    assert (flops.forward(ONE_DOCUMENT), flops.training(ONE_DOCUMENT)) == (forward, whole)
    assert whole == 2 * forward + flops.forward_per_pair * LENGTH**2, "both factors of attention's products move"


def test_documents_pay_for_their_own_length_and_unlabelled_tokens_for_no_logits() -> None:
    flops = flops_of(made())
    halves = Work(num_tokens=LENGTH, num_pairs=2 * (LENGTH // 2) ** 2, num_labels=NUM_LABELS)
    saved = flops.training(ONE_DOCUMENT) - flops.training(halves)
    assert saved == 3 * 4 * SHAPE.num_layers * SHAPE.hidden_size * LENGTH**2 // 2
    unlabelled = Work(num_tokens=LENGTH, num_pairs=LENGTH**2, num_labels=0)
    assert flops.training(ONE_DOCUMENT) - flops.training(unlabelled) == 6 * 640 * SHAPE.hidden_size * NUM_LABELS


def test_the_worked_example() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128_256}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=8, tie_word_embeddings=False))
    flops = flops_of(model)
    assert flops.forward_per_token == 2 * 6_979_321_856
    assert flops.forward_per_label == 2 * 525_336_576
    work = Work(num_tokens=4096, num_pairs=4096**2, num_labels=4096)
    assert flops.training(work) / 4096 == pytest.approx(51.5e9, rel=1e-3)


def test_a_model_with_weights_outside_of_linear_layers_is_not_guessed_at() -> None:
    model = made()
    model.get_decoder().experts = torch.nn.Parameter(torch.zeros(4, 32, 32))
    assert count_flops(model) is None
