"""Documents lie side by side without one of them lost, and what fills a bucket up teaches nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lisan.model.attention import by_document
from lisan.model.attention.by_document import DocumentLayout, attend_side_by_side, lay_side_by_side

ROWS = st.lists(st.lists(st.integers(1, 60), max_size=4), min_size=1, max_size=4)


def test_the_worked_example() -> None:
    layout = lay_side_by_side([[2, 3]], 5)
    assert layout.tokens.tolist() == [0, 1, 1, 1, 1, 2, 3, 4, 4, 4]
    assert layout.slots.tolist() == [0, 1, 5, 6, 7]
    assert layout.shapes == ((2, 5),)


@given(ROWS, st.integers(0, 40))
def test_every_token_has_its_place_and_every_document_lies_in_one_bucket(rows: list[list[int]], rest: int) -> None:
    length = max(map(sum, rows)) + rest or 1
    layout = lay_side_by_side(rows, length)
    assert torch.equal(layout.tokens[layout.slots], torch.arange(len(rows) * length))
    assert sum(count * size for count, size in layout.shapes) == len(layout.tokens)
    assert all(size <= length for _, size in layout.shapes)
    bucket_ends = np.cumsum([0] + [size for count, size in layout.shapes for _ in range(count)])
    for row, lens in enumerate(rows):
        for start, size in zip(np.cumsum([0, *lens]), lens, strict=False):
            slots = layout.slots[row * length + start : row * length + start + size]
            assert torch.equal(slots, torch.arange(slots[0], slots[0] + size))
            assert int(slots[0]) in bucket_ends


@given(st.integers(1, 5000))
def test_a_quarter_of_a_long_document_is_filled_up_at_most(size: int) -> None:
    (_, bucket), *_ = lay_side_by_side([[size]], 10_000).shapes[::-1]
    assert size <= bucket
    assert bucket <= max(by_document.PADDING, 1.25 * size + 1) or size < 64


def attend(layout: DocumentLayout, parts: list[torch.Tensor], **options: float) -> torch.Tensor:
    found, _ = attend_side_by_side(None, *parts, None, layout, scaling=0.3, **options)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 7}, {"softcap": 1.5}, {"sliding_window": 7, "softcap": 1.5}]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_that_of_whole_masked_scores(kv_heads: int, options: dict[str, float]) -> None:
    """Documents on both sides of the length from which the kernel of torch is called."""
    lens, length = [[3, 100, 40], [64, 65]], 150
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(2, heads, length, 8, generator=generator, requires_grad=True) for heads in (4, kv_heads, kv_heads)
    ]
    documents = torch.full((2, length), -1)
    for row, sizes in enumerate(lens):
        documents[row, : sum(sizes)] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    back = torch.arange(length)[:, None] - torch.arange(length)
    sees = (documents[:, :, None] == documents[:, None]) & (back >= 0) & (back < options.get("sliding_window", length))
    query, key, value = parts
    scores = (query @ key.repeat_interleave(4 // kv_heads, 1).transpose(2, 3)) * 0.3
    if "softcap" in options:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    weights = scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1)
    wanted = (weights @ value.repeat_interleave(4 // kv_heads, 1)).transpose(1, 2)
    found = attend(lay_side_by_side(lens, length), parts, **options)
    real = documents >= 0
    assert torch.allclose(found[real], wanted[real], atol=1e-5)
    aim = torch.randn(int(real.sum()), 4, 8, generator=generator)
    for one, other in zip(
        torch.autograd.grad((found[real] * aim).sum(), parts),
        torch.autograd.grad((wanted[real] * aim).sum(), parts),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)
