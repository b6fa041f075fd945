"""Which rows of the vocabulary have gradients, how they decay, and the file that carries them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model
from torch import nn

from lisan.core.errors import DataError
from lisan.model.config import ModelConfig
from lisan.model.embeddings.resize import read_matrices
from lisan.model.embeddings.trained_rows import (
    TRAINED_ROWS,
    decay_rows,
    freeze_other_rows,
    load_trained_rows,
    vocabulary_matrices,
    write_trained_rows,
)
from lisan.train.optim import make_optimizer
from lisan.train.options import OptimConfig

IDS = (3, 41, 7)


def model(tie: bool = True) -> Any:
    from dataclasses import replace

    return make_model(ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="t"), 50, {}, seed=0)


def backward(plain: Any) -> None:
    ids = torch.arange(48).view(2, 24)
    plain(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("tie", [True, False])
def test_only_named_rows_have_a_gradient_and_it_is_the_whole_models(tie: bool) -> None:
    whole, masked = model(tie), model(tie)
    frozen = freeze_other_rows(masked, IDS)
    assert len(frozen) == (1 if tie else 2)
    for plain in (whole, masked):
        backward(plain)
        backward(plain)
    for one, other in zip(vocabulary_matrices(whole), vocabulary_matrices(masked), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad[list(IDS)], other.grad[list(IDS)])
        assert other.grad.abs().sum(1).nonzero().flatten().tolist() == sorted(IDS)


def test_a_frozen_row_of_infinities_does_not_reach_the_norm() -> None:
    matrix = nn.Embedding(4, 3)
    plain = nn.Module()
    plain.get_input_embeddings = plain.get_output_embeddings = lambda: matrix  # type: ignore[assignment]
    freeze_other_rows(plain, [1])
    (matrix(torch.tensor([0, 1])) * torch.tensor([[torch.inf], [2.0]])).sum().backward()
    assert matrix.weight.grad is not None
    assert matrix.weight.grad.norm() == pytest.approx(2 * 3**0.5)


@pytest.mark.parametrize("ids", [(), range(50)])
def test_none_and_all_need_no_mask(ids: Any) -> None:
    assert freeze_other_rows(model(), ids) == {}


def test_trained_rows_decay_as_adamw_decays_them_and_others_never() -> None:
    config = OptimConfig(peak_lr=0.1, weight_decay=0.5)
    whole, masked = nn.Embedding(6, 4), nn.Embedding(6, 4)
    masked.load_state_dict(whole.state_dict())
    before = whole.weight.detach().clone()
    holder = nn.Module()
    holder.matrix = masked
    holder.get_input_embeddings = holder.get_output_embeddings = lambda: masked  # type: ignore[assignment]
    frozen = freeze_other_rows(holder, [1, 4])
    optimizers = make_optimizer(whole, config), make_optimizer(holder, config, frozen)
    for _ in range(5):
        for layer, optimizer in zip((whole, masked), optimizers, strict=True):
            layer(torch.arange(6)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(masked.weight[[1, 4]], whole.weight[[1, 4]], atol=1e-6)
    assert torch.equal(masked.weight[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    state = optimizers[1].state[masked.weight]
    assert not state["exp_avg"][[0, 2, 3, 5]].any()
    assert not state["exp_avg_sq"][[0, 2, 3, 5]].any()


def test_decay_follows_the_rate_of_the_step() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.25)
    frozen = {weight: torch.tensor([[True], [False], [True]])}
    partial(decay_rows, frozen=frozen, weight_decay=0.5)(optimizer, (), {})
    assert weight[:, 0].tolist() == [1.0, 0.875, 1.0]


@pytest.mark.parametrize("tie", [True, False])
def test_trained_rows_are_written_and_placed_by_id(tie: bool, tmp_path: Path) -> None:
    trained, fresh = model(tie), model(tie)
    with torch.no_grad():
        for matrix in vocabulary_matrices(trained):
            matrix[list(IDS)] += 1
    write_trained_rows(trained, IDS, tmp_path)
    load_trained_rows(fresh, tmp_path, None)
    for name, matrix in read_matrices(trained).items():
        assert torch.equal(matrix, read_matrices(fresh)[name])
    write_trained_rows(trained, (), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_rows_of_an_untied_model_do_not_fit_a_tied_one(tmp_path: Path) -> None:
    write_trained_rows(model(tie=False), IDS, tmp_path)
    with pytest.raises(DataError, match=rf"{TRAINED_ROWS} has rows of input and output, the model matrices of input;"):
        load_trained_rows(model(tie=True), tmp_path, None)
