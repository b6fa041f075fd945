"""Kinds of attention over packed rows: the same answers, and what a machine cannot do."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import SHAPE, make_model

from lisan.core.errors import ConfigError
from lisan.model.attention import packed
from lisan.model.attention.packed import block_mask, check_attention, document_lengths, use_attention
from lisan.model.config import Attention, ModelConfig
from lisan.model.score import Scorer, collate

WINDOWED: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LENS = [[5, 9, 130], [60, 40], [150]]


def pack(lens: list[list[int]] = LENS, length: int = 150) -> Any:
    ids = torch.randint(5, 600, (len(lens), length), generator=torch.Generator().manual_seed(0)).numpy()
    labels = ids.copy()
    for row, sizes in enumerate(lens):
        for start in torch.tensor([0, *sizes]).cumsum(0).tolist():
            labels[row, start:][:1] = -100
        labels[row, sum(sizes) :] = -100
    return collate(ids, labels, lens)


def with_attention(scorer: Scorer, kind: Attention) -> Scorer:
    other = copy.deepcopy(scorer)
    use_attention(other.model, kind)
    return other


@torch.no_grad()
def test_flex_scores_what_sdpa_does(scorer: Scorer) -> None:
    """Rows longer than one block of 128, and two query heads to a key head."""
    batch, flex = pack(), with_attention(scorer, Attention.flex)
    assert scorer.model.config.num_key_value_heads < scorer.model.config.num_attention_heads
    assert flex.model.config._attn_implementation != scorer.model.config._attn_implementation
    assert torch.allclose(flex(batch), scorer(batch), atol=1e-4)


def test_a_block_mask_is_the_mask() -> None:
    documents = pack().documents
    blocks = block_mask(documents)
    rows, length = torch.arange(len(documents))[:, None, None], documents.shape[1]
    query, key = torch.arange(length)[:, None], torch.arange(length)
    seen = blocks.mask_mod(rows, torch.tensor(0), query, key)
    causal = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool).tril()
    assert torch.equal(seen, (documents[:, :, None] == documents[:, None, :]) & causal)


def test_the_lengths_of_documents_are_those_of_all_rows_end_to_end() -> None:
    lengths = document_lengths(torch.tensor([[0, 0, 1, 1, 2], [3, 3, 3, 3, 3]]))
    assert lengths["cu_seq_lens_q"].tolist() == [0, 2, 4, 5, 10]
    assert lengths["cu_seq_lens_q"].dtype == torch.int32
    assert lengths["max_length_k"] == 5


def attend_by_lengths(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention computes from lengths, one document after the other."""
    assert attention_mask is None
    rows, heads, length, size = query.shape
    whole = (tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1) for tensor in (query, key, value))
    parts = zip(*(tensor.split(given["cu_seq_lens_q"].diff().tolist(), 1) for tensor in whole), strict=True)
    found = [
        F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=given["scaling"], enable_gqa=True
        )
        for q, k, v in parts
    ]
    return torch.cat(found, 2)[0].transpose(0, 1).reshape(rows, length, heads, size), None


@torch.no_grad()
def test_lengths_of_documents_reach_the_kernel_through_the_decoder(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of flash attention needs a GPU; one of the same arguments in plain torch stands in its place."""
    from transformers import AttentionInterface

    other = copy.deepcopy(scorer)
    AttentionInterface.register("by_lengths", attend_by_lengths)
    other.model.set_attn_implementation("by_lengths")
    monkeypatch.setitem(packed.IMPLEMENTATIONS, Attention.flash, "by_lengths")
    assert torch.allclose(other(pack()), scorer(pack()), atol=1e-4)


@pytest.mark.parametrize("kind", [Attention.flex, Attention.flash])
def test_training_on_a_cpu_takes_sdpa(kind: Attention) -> None:
    with pytest.raises(ConfigError, match=rf"attention={kind} trains on a GPU only, this worker has cpu; take .*=sdpa"):
        check_attention(kind, "cpu", torch.bfloat16)
    check_attention(Attention.sdpa, "cpu", torch.float32)


def test_flash_in_fp32_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention=flash needs precision=bfloat16"):
        check_attention(Attention.flash, "cuda:0", torch.float32)


@torch.no_grad()
def test_flex_with_windows_shorter_than_its_rows_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**WINDOWED, sliding_window=12))
    scorer = Scorer(model, Attention.flex).eval()
    with pytest.raises(
        ConfigError, match=r"attention=flex does not support windows of 12 tokens in rows of 150; take .*=sdpa"
    ):
        scorer(pack())
    short = pack([[5, 7]], 12)
    assert torch.allclose(scorer(short), with_attention(scorer, Attention.sdpa)(short), atol=1e-4)


def test_flex_with_dropout_is_refused() -> None:
    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 64, {}, seed=0)
    model.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"attention=flex does not support dropout .* attention_dropout=0\.1"):
        use_attention(model, Attention.flex)


def test_a_model_without_flex_attention_is_named() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match=r"attention=flex is not possible with BloomForCausalLM; take attention=sdpa"):
        use_attention(model, Attention.flex)
