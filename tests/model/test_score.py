"""Log-probabilities of labelled tokens."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lisan.model import linear_logps as kernel
from lisan.model.attention.packed import use_attention
from lisan.model.config import Attention
from lisan.model.linear_logps import linear_logps
from lisan.model.score import Batch, Scorer, collate, sum_by_document
from lisan.train.objectives import causal_lm


def batch_of(doc_lens: list[list[int]], length: int, seed: int = 0) -> Batch:
    ids = np.random.default_rng(seed).integers(5, 600, (len(doc_lens), length)).astype(np.int32)
    labels = np.full_like(ids, -100)
    for row, lens in enumerate(doc_lens):
        start = 0
        for size in lens:
            labels[row, start + 1 : start + size] = ids[row, start + 1 : start + size]
            start += size
    return collate(ids, labels, doc_lens)


def test_the_worked_example_of_collate() -> None:
    batch = collate(np.zeros((1, 5), np.int32), np.full((1, 5), -100, np.int32), [[2, 2]])
    assert batch.documents.tolist() == [[0, 0, 1, 1, 2]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 0]]
    assert batch.doc_numbers.tolist() == [0, 1]


def test_documents_are_numbered_through_the_batch() -> None:
    batch = batch_of([[3, 2], [5], [1, 1, 1]], 6)
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 4], [5, 6, 7, 8, 8, 8]]
    assert batch.doc_numbers.tolist() == [0, 1, 3, 5, 6, 7]


def test_a_full_row_has_no_padding() -> None:
    batch = batch_of([[2, 2]], 4)
    assert batch.documents.tolist() == [[0, 0, 1, 1]]


@torch.no_grad()
def test_scores_are_those_of_transformers_logits(scorer: Scorer) -> None:
    batch = batch_of([[20], [20]], 20)
    plain = copy.deepcopy(scorer.model)
    plain.set_attn_implementation("sdpa")
    expected = (
        plain(input_ids=batch.input_ids).logits.log_softmax(-1)[:, :-1].gather(2, batch.input_ids[:, 1:, None])[..., 0]
    )
    found = scorer(batch)
    assert found[:, 0].tolist() == [0, 0]
    assert torch.allclose(found[:, 1:], expected, atol=1e-4)
    assert found.dtype == torch.float32


@torch.no_grad()
def test_what_is_not_labelled_scores_0(scorer: Scorer) -> None:
    batch = batch_of([[4, 6], [3]], 14)
    found = scorer(batch)
    is_labelled = batch.labels >= 0
    assert (found[~is_labelled] == 0).all()
    assert (found[is_labelled] < 0).all()


def test_a_batch_without_labels_scores_nothing(scorer: Scorer) -> None:
    batch = collate(np.ones((1, 4), np.int32), np.full((1, 4), -100, np.int32), [[4]])
    logps = scorer(batch)
    assert (logps == 0).all()
    logps.sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in scorer.parameters())


def test_sums_are_by_document_in_order() -> None:
    batch = batch_of([[2, 3], [4]], 6)
    logps = torch.arange(12.0).reshape(2, 6)
    assert sum_by_document(logps, batch).tolist() == [0 + 1, 2 + 3 + 4, 6 + 7 + 8 + 9]


@given(num=st.integers(0, 9), chunk=st.integers(1, 4), pieces=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_tiles_change_neither_values_nor_gradients(num: int, chunk: int, pieces: int) -> None:
    generator = torch.Generator().manual_seed(num)
    hidden = torch.randn(num, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (num,), generator=generator)
    weights = torch.randn(2, num, generator=generator)
    logits = hidden @ weight.T
    expected = torch.stack([logits.log_softmax(-1)[torch.arange(num), targets], logits.logsumexp(-1)])
    wanted = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK_TOKENS", chunk)
        patch.setattr(kernel, "CHUNK_PIECES", {"cpu": pieces})
        found = torch.stack(linear_logps(hidden, weight, targets))
        grads = torch.autograd.grad((found * weights).sum(), (hidden, weight))
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for one, other in zip(grads, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_products_with_the_vocabulary_have_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape in bf16 costs some megabytes for good."""
    real, sizes = kernel._score_part, set()

    def score_part(hidden: torch.Tensor, *rest: Any) -> Any:
        sizes.add(len(hidden))
        return real(hidden, *rest)

    monkeypatch.setattr(kernel, "_score_part", score_part)
    for num in (1, 63, 64, 65, 100):
        linear_logps(torch.ones(num, 4), torch.ones(8, 4), torch.zeros(num, dtype=torch.long))
    assert sizes == {64, 128}


def test_the_gradient_is_the_numerical_one() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 5, generator=generator)
    weight = torch.randn(7, 5, generator=generator)
    targets = torch.tensor([0, 6, 3, 3])
    direction = torch.randn(7, 5, generator=generator)
    moved = [linear_logps(hidden, weight + step * direction, targets)[0].double().sum() for step in (1e-2, -1e-2)]
    weight.requires_grad_()
    linear_logps(hidden, weight, targets)[0].sum().backward()
    assert weight.grad is not None
    assert float((weight.grad * direction).sum()) == pytest.approx(float(moved[0] - moved[1]) / 2e-2, rel=1e-2)


def test_a_certain_target_has_no_gradient_that_rounding_made() -> None:
    """In bfloat16 softmax - onehot would leave 2^-8 of nothing; the target's share is computed on its own."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[30.0], [0.0]], dtype=torch.bfloat16)
    linear_logps(hidden, weight, torch.tensor([0]))[0].sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs()) < 1e-10


def test_log_z_is_that_of_whole_logits_and_so_is_the_z_loss_gradient(scorer: Scorer) -> None:
    batch = batch_of([[4, 6], [3, 9]], 14)
    is_scored = batch.labels[:, 1:] >= 0
    causal = torch.ones(batch.documents.shape[1], batch.documents.shape[1], dtype=torch.bool).tril()
    scorer.model.set_attn_implementation("sdpa")
    hidden = scorer.model.get_decoder()(
        input_ids=batch.input_ids,
        attention_mask=((batch.documents[:, :, None] == batch.documents[:, None]) & causal)[:, None],
        position_ids=batch.positions,
    ).last_hidden_state
    use_attention(scorer.model, Attention.sdpa)
    logits = (hidden @ scorer.model.get_output_embeddings().weight.T)[:, :-1][is_scored]
    log_z, nll = logits.logsumexp(-1), -logits.log_softmax(-1).gather(1, batch.labels[:, 1:][is_scored][:, None]).sum()
    wanted = torch.autograd.grad(nll + 0.01 * log_z.square().sum(), list(scorer.parameters()))
    found = scorer(batch, with_log_z=True)
    assert torch.allclose(found[1, :, 1:][is_scored], log_z, atol=1e-5)
    assert torch.equal(found[0], scorer(batch))
    loss = causal_lm(scorer, batch, 0.01)
    assert float(loss.total) == pytest.approx(float(nll + 0.01 * log_z.square().sum()), rel=1e-6)
    for one, other in zip(torch.autograd.grad(loss.total, list(scorer.parameters())), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_frozen_output_matrix_costs_no_gradient() -> None:
    hidden = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(7, 5)
    linear_logps(hidden, weight, torch.tensor([1, 2, 3]))[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_a_batch_moves_as_a_whole() -> None:
    moved = batch_of([[3]], 4).to("meta")
    assert {
        tensor.device.type
        for tensor in (moved.input_ids, moved.labels, moved.documents, moved.positions, moved.doc_numbers)
    } == {"meta"}


def test_exact_logits_tell_apart_what_bfloat16_makes_equal(scorer: Scorer) -> None:
    model = scorer.model.bfloat16()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 8  # logits as large as those of a trained model
    ids = np.arange(3, 99).reshape(1, -1)
    batch = collate(ids, ids, [[ids.shape[1]]])
    seen: list[torch.Tensor] = []
    model.get_decoder().register_forward_hook(lambda _module, _inputs, found: seen.append(found.last_hidden_state))
    with torch.no_grad():
        rounded, exact = (Scorer(model, exact_logits=is_exact).eval()(batch)[0, 1:] for is_exact in (False, True))
    hidden = seen[-1][0, :-1].double()
    wanted = (hidden @ model.get_output_embeddings().weight.double().T).log_softmax(-1)
    wanted = wanted.gather(1, batch.input_ids[0, 1:, None])[:, 0]
    assert float((exact - wanted).abs().max()) < 0.02 * float((rounded - wanted).abs().max())


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_logits_that_are_kept_or_computed_again_give_the_same_gradients(
    softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(100, 16, generator=draws), torch.randn(3000, 16, generator=draws)
    targets = torch.randint(3000, (100,), generator=draws)
    found = []
    for kept_bytes in (0, 2**30):
        monkeypatch.setattr(kernel, "KEPT_BYTES", kept_bytes)
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logps, log_z = linear_logps(*inputs, targets, softcap)
        (logps.sum() + 0.1 * log_z.square().sum()).backward()
        found.append((logps, log_z, *(one.grad for one in inputs)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
