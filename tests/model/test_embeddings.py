"""Embedding rows for new pieces; what must hold of whole models stands in the laws."""

import torch
from tiny import SHAPE

from lisan.model.embeddings import resize_embeddings
from lisan.model.load import ModelConfig, make_model


def grown(tie: bool, num_rows: int, pieces: dict[int, tuple[int, ...]]) -> tuple[torch.Tensor, object]:
    from dataclasses import replace

    config = ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="t", init_std=0.5)
    model = make_model(config, 50, {"pad_token_id": 3}, seed=0)
    before = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings(model, num_rows, pieces)
    return before, model


def test_a_piece_said_twice_weighs_twice() -> None:
    before, model = grown(True, 64, {50: (4, 4, 7)})
    expected = (2 * before[4] + before[7]) / 3
    assert torch.allclose(model.get_input_embeddings().weight[50], expected)  # type: ignore[attr-defined]


def test_the_config_knows_the_new_size() -> None:
    _, model = grown(False, 64, {50: (1,)})
    assert model.config.vocab_size == 64  # type: ignore[attr-defined]
    assert model.get_output_embeddings().out_features == 64  # type: ignore[attr-defined]


def test_padding_keeps_its_index_and_new_rows_are_trained() -> None:
    _, model = grown(True, 64, {50: (1,)})
    layer = model.get_input_embeddings()  # type: ignore[attr-defined]
    assert layer.padding_idx == 3
    assert layer.weight.requires_grad
    assert layer.weight.dtype == torch.float32


def test_every_new_row_takes_part_in_the_logits() -> None:
    _, model = grown(False, 64, {50: (1,)})
    with torch.no_grad():
        model.get_output_embeddings().weight[50] = 0  # type: ignore[attr-defined]
        logits = model(input_ids=torch.tensor([[1, 50, 60]])).logits  # type: ignore[operator]
    assert logits.shape == (1, 3, 64)
    assert (logits[..., 50] == 0).all()
    assert (logits[..., 63] != 0).all()
