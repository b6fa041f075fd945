"""Float8 products, rounded as a GPU would but computed here (torchao's emulation), and what is refused without one."""

import importlib.util
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model, train_config

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.artifact import Store
from lisan.core.errors import ConfigError
from lisan.data.rows import RowReader
from lisan.model.adapters.lora import attach_adapter
from lisan.model.config import LoraConfig, ModelConfig, ShapeConfig
from lisan.model.float8 import check_float8, use_float8
from lisan.model.meta_model import make_meta_model
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Scorer, collate

needs_torchao = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="needs torchao")


def tiny_model() -> Any:
    return make_model(ModelConfig(shape=SHAPE, tokenizer="t", init_std=0.3), 640, {}, seed=1)


def score(model: Any, store: Store) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return log-probabilities of four rows and the gradients of their sum, as training computes them."""
    from lisan.core.artifact import Ref

    rows = RowReader(store.open(Ref.parse("tokens/documents@v1"))).read(range(4))
    with ProcessGroup(Worker(threads=1)):
        scorer = shard(Scorer(model), "cpu", Precision.bfloat16)
        logps = scorer(collate(rows.input_ids, rows.labels, rows.doc_lens))
        (-logps.sum()).backward()
        grads = {name: p.grad.full_tensor() for name, p in scorer.named_parameters() if p.grad is not None}  # type: ignore[attr-defined]
    return logps.detach(), grads


@needs_torchao
def test_only_products_inside_the_blocks_are_float8_and_they_are_close(tiny_store: Store) -> None:
    plain, grads = score(tiny_model(), tiny_store)
    model = tiny_model()
    assert use_float8(model, emulate=True) == 7 * SHAPE.num_layers
    found, found_grads = score(model, tiny_store)
    assert found_grads.keys() == grads.keys()
    away = (found - plain).abs().mean()
    assert 0.001 < away < 0.2
    for name, grad in grads.items():
        assert torch.nn.functional.cosine_similarity(found_grads[name].flatten(), grad.flatten(), dim=0) > 0.8, name


@needs_torchao
def test_blocks_without_a_product_that_float8_can_do_are_refused() -> None:
    shape = ShapeConfig(
        num_layers=1, hidden_size=24, intermediate_size=40, num_heads=2, num_kv_heads=1, max_positions=8
    )
    model = make_model(ModelConfig(shape=shape, tokenizer="t"), 640, {}, seed=1)
    with pytest.raises(ConfigError, match="float8=true has no effect on LlamaForCausalLM"):
        use_float8(model, emulate=True)


@needs_torchao
def test_adapters_over_float8_products_learn_in_their_own_precision(tiny_store: Store) -> None:
    model = tiny_model()
    attach_adapter(model, LoraConfig(rank=4))
    assert use_float8(model, emulate=True) == 7 * SHAPE.num_layers
    _, grads = score(model, tiny_store)
    assert grads
    assert all("lora_" in name for name in grads)


@needs_torchao
def test_an_outline_is_converted_before_it_has_weights(base_model: str) -> None:
    model, _ = make_meta_model(base_model)
    names = [name for name, _ in model.named_parameters()]
    use_float8(model, emulate=True)
    assert [name for name, parameter in model.named_parameters() if parameter.is_meta] == names


def test_float8_without_its_gpu_or_package_is_refused() -> None:
    wanted = "needs a GPU, this worker has cpu" if importlib.util.find_spec("torchao") else r"\[float8\]"
    with pytest.raises(ConfigError, match=wanted):
        check_float8("cpu")


def test_float8_in_fp32_is_refused(tiny_store: Store) -> None:
    with pytest.raises(ConfigError, match="float8=true needs precision=bfloat16 or auto, got float32"):
        train_config(tiny_store, float8=True)
