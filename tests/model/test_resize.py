"""Matrices of the vocabulary by explicit ids; what must hold of whole models stands in the laws."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model

from lisan.core.errors import DataError
from lisan.model.config import ModelConfig
from lisan.model.embeddings.resize import (
    combine_rows,
    hash_rows,
    is_tied,
    mean_of_rows,
    read_matrices,
    resize_embeddings,
)

NEW = torch.arange(64.0).reshape(2, 32)


@pytest.fixture
def threads() -> Iterator[Any]:
    """Change the number of threads and put it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make(tie: bool) -> Any:
    config = ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="t", init_std=0.5)
    return make_model(config, 50, {"pad_token_id": 3}, seed=0)


def grown(tie: bool, num_rows: int = 64, ids: tuple[int, ...] = (50, 55)) -> tuple[dict[str, torch.Tensor], Any]:
    model = make(tie)
    before = {name: matrix.clone() for name, matrix in read_matrices(model).items()}
    resize_embeddings(model, num_rows, ids, {"input": NEW, "output": -NEW})
    return before, model


@pytest.mark.parametrize("tie", [True, False])
def test_rows_are_addressed_by_id(tie: bool) -> None:
    """Ids 45 and 55: one within the base's own rows, as where a base is padded, and one among the added."""
    before, model = grown(tie, ids=(45, 55))
    for name, matrix in read_matrices(model).items():
        new = NEW if name == "input" else -NEW
        assert torch.equal(matrix[[45, 55]], new)
        kept = [index for index in range(50) if index != 45]
        assert torch.equal(matrix[kept], before[name][kept])
        padding = [index for index in range(50, 64) if index != 55]
        assert torch.equal(matrix[padding], mean_of_rows(before[name]).expand(13, -1))


@pytest.mark.parametrize("tie", [True, False])
def test_a_model_with_room_for_the_new_ids_is_not_made_larger(tie: bool) -> None:
    before, model = grown(tie, num_rows=50, ids=(0, 49))
    for name, matrix in read_matrices(model).items():
        assert matrix.shape == (50, 32)
        assert torch.equal(matrix[[0, 49]], NEW if name == "input" else -NEW)
        assert torch.equal(matrix[1:49], before[name][1:49])


@pytest.mark.parametrize("tie", [True, False])
def test_tied_stays_tied(tie: bool) -> None:
    _, model = grown(tie)
    assert is_tied(model) is tie
    assert set(read_matrices(model)) == ({"input"} if tie else {"input", "output"})


def test_the_config_knows_the_new_size() -> None:
    _, model = grown(False)
    assert model.config.vocab_size == 64
    assert model.get_output_embeddings().out_features == 64


def test_padding_keeps_its_index_and_new_rows_are_trained() -> None:
    _, model = grown(True)
    layer = model.get_input_embeddings()
    assert layer.padding_idx == 3
    assert layer.weight.requires_grad
    assert layer.weight.dtype == torch.float32


def test_every_new_row_takes_part_in_the_logits() -> None:
    _, model = grown(False)
    with torch.no_grad():
        model.get_output_embeddings().weight[50] = 0
        logits = model(input_ids=torch.tensor([[1, 50, 60]])).logits
    assert logits.shape == (1, 3, 64)
    assert (logits[..., 50] == 0).all()
    assert (logits[..., 63] != 0).all()


def test_an_output_layer_with_a_bias_is_refused() -> None:
    model = make(False)
    model.set_output_embeddings(torch.nn.Linear(32, 50))
    with pytest.raises(DataError, match=r"output layer has a bias.*choose a base without one"):
        resize_embeddings(model, 64, (50, 55), {"input": NEW, "output": NEW})


def test_a_layer_of_the_models_own_class_stays_one() -> None:
    """Gemma 3 multiplies what it looks up by the root of its width; a plain embedding in its place would not."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=50, pad_token_id=0, **shape, **heads)).eval()
    ids = torch.tensor([[1, 7, 42]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        resize_embeddings(model, 64, (50, 55), {"input": NEW})
        after = model(input_ids=ids).logits
    assert torch.allclose(after[..., :50], before, atol=1e-5)
    assert is_tied(model)
    assert (model.get_input_embeddings().num_embeddings, after.shape[-1]) == (64, 64)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 1001])
def test_the_mean_is_the_mean(num_rows: int) -> None:
    rows = torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(0))
    kept = rows.clone()
    assert torch.allclose(mean_of_rows(rows), rows.double().mean(0).float(), atol=1e-6)
    assert torch.equal(rows, kept)


def test_parts_of_any_length_are_combined_by_weight() -> None:
    matrix = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    parts = [((8, 1.0),), ((4, 0.5), (7, 0.25), (4, 0.25)), ((0, 0.5), (1, 0.5))]
    expected = [matrix[8], 0.75 * matrix[4] + 0.25 * matrix[7], (matrix[0] + matrix[1]) / 2]
    assert torch.allclose(combine_rows(matrix, parts), torch.stack(expected))
    assert combine_rows(matrix, []).shape == (0, 4)


def test_the_number_of_threads_moves_no_bit(threads: Any) -> None:
    matrix = torch.randn(20_000, 96, generator=torch.Generator().manual_seed(0))
    parts = [[(index * 7 % 20_000, 0.3), (index, 0.7)] for index in range(20_000)]
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append((mean_of_rows(matrix), combine_rows(matrix, parts)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_hash_knows_one_bit() -> None:
    rows = torch.zeros(3, 2)
    other = rows.clone()
    other[2, 1] = torch.finfo(torch.float32).tiny
    assert hash_rows([rows]) == hash_rows([rows.clone()]) == hash_rows([rows[:1], rows[1:]])
    assert hash_rows([rows]) != hash_rows([other])
    assert hash_rows([rows.T[:1]]) == hash_rows([torch.zeros(1, 3)])  # a view counts by its values
