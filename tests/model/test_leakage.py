"""The leakage probe finds what it is there to find."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from lisan.core.errors import TrainingError
from lisan.model.attention.packed import IMPLEMENTATIONS, use_attention
from lisan.model.config import Attention
from lisan.model.leakage import check_documents_apart
from lisan.model.score import Scorer


def learned_positions() -> Scorer:
    """A model whose positions are learned, so that it matters where they begin."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)
    return Scorer(GPT2LMHeadModel(config))


@pytest.mark.parametrize("kind", [Attention.sdpa, Attention.flex])
def test_packed_rows_are_kept_apart(kind: Attention, scorer: Scorer) -> None:
    use_attention(scorer.model, kind)
    scorer.train()
    check_documents_apart(scorer, "cpu", torch.float32)
    assert scorer.training


def test_learned_positions_that_restart_are_taken() -> None:
    check_documents_apart(learned_positions(), "cpu", torch.float32)


def test_bfloat16_is_judged_by_its_rounding(scorer: Scorer) -> None:
    check_documents_apart(Scorer(scorer.model.bfloat16()), "cpu", torch.bfloat16)


def test_an_attention_that_sees_the_whole_row_is_named(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own, without a mask, lets every token look at all before it, whatever their document."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(*given: Any, layout: Any, **options: Any) -> Any:
        return sdpa_attention_forward(*given, **options)

    AttentionInterface.register("whole_rows", attend)
    monkeypatch.setitem(IMPLEMENTATIONS, Attention.sdpa, "whole_rows")
    scorer.model.set_attn_implementation("whole_rows")
    with pytest.raises(
        TrainingError, match=r"documents of one row see each other: .* the attention whole_rows of LlamaForCausalLM"
    ):
        check_documents_apart(scorer, "cpu", torch.float32)


def test_positions_that_go_on_are_noticed() -> None:
    scorer = learned_positions()
    decoder = scorer.model.get_decoder()

    def go_on(_module: Any, _inputs: Any, given: dict[str, Any]) -> Any:
        return (), {**given, "position_ids": torch.arange(given["input_ids"].shape[1])[None]}

    decoder.register_forward_pre_hook(go_on, with_kwargs=True)
    with pytest.raises(TrainingError, match=r"scores .* nat per token another way .*positions do not restart"):
        check_documents_apart(scorer, "cpu", torch.float32)


def test_a_vocabulary_smaller_than_the_probe_is_enough() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    check_documents_apart(
        Scorer(GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=16, n_embd=8, n_layer=1, n_head=1))),
        "cpu",
        torch.float32,
    )


def test_rotary_positions_that_follow_the_longest_document_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    monkeypatch.setattr("lisan.model.score.use_rope_by_document", lambda _: None)
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 100.0}
    config = Phi3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters=factors | {"original_max_position_embeddings": 16},
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with pytest.raises(TrainingError, match=r"a long document moves the scores of a short one .* of Phi3ForCausalLM"):
        check_documents_apart(Scorer(Phi3ForCausalLM(config)), "cpu", torch.float32)
    monkeypatch.undo()
    check_documents_apart(Scorer(Phi3ForCausalLM(config)), "cpu", torch.float32)
