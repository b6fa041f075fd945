"""Packed rows score what each document scores alone under the model's own forward pass, family by family."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lisan.core.errors import ConfigError
from lisan.model.adapters.save_merged import write_weights
from lisan.model.attention.by_document import attend_side_by_side
from lisan.model.meta_model import make_meta_model
from lisan.model.score import Scorer, collate
from lisan.model.weights.load_shards import load_shards

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 12,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 4.0},
    "olmo2": {},
    "phi3": {},
    "phi3 longrope": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
            "rope_theta": 100.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    },
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
}
LENS = [[5, 40, 90], [100, 30], [17]]
LENGTH = 140


def make(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split(maxsplit=1)[0], **TINY | FAMILIES.get(family, {}))
    return AutoModelForCausalLM.from_config(config).eval()


def alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of a document's tokens but the first, by the model's own logits."""
    logps = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    return logps[:-1].gather(1, ids[1:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_score_and_learn_what_documents_do_alone(family: str) -> None:
    model = make(family)
    ids = torch.randint(3, 97, (len(LENS), LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    documents = []
    for row, lens in enumerate(LENS):
        starts = [0, *torch.tensor(lens).cumsum(0).tolist()]
        labels[row, starts[:-1]] = -100
        labels[row, starts[-1] :] = -100
        documents += [ids[row, start:stop] for start, stop in pairwise(starts)]
    wanted = torch.cat([alone(model, document) for document in documents])
    wanted.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    logps = Scorer(model)(collate(ids.numpy(), labels.numpy(), LENS))
    found = logps[labels >= 0]
    assert torch.allclose(found, wanted, atol=2e-4), float((found - wanted).abs().max())
    logps.sum().backward()
    for name, parameter in model.named_parameters():
        if gradients[name] is not None:
            scale = float(gradients[name].abs().max()) + 1e-6
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-3 * scale, rtol=1e-3), name


def test_an_output_layer_with_a_bias_is_refused() -> None:
    config = AutoConfig.for_model("phi", **TINY)
    with pytest.raises(ConfigError, match=r"the output layer of PhiForCausalLM has a bias"):
        Scorer(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "apertus"])
def test_what_is_written_is_what_transformers_itself_writes(family: str, tmp_path: Path) -> None:
    """Fused experts go back to their files' names, and buffers that are stored are not lost."""
    make(family).save_pretrained(tmp_path / "theirs")
    model, sources = make_meta_model(str(tmp_path / "theirs"))
    load_shards(model, sources)
    (tmp_path / "ours").mkdir()
    write_weights(model, tmp_path / "ours", torch.float32)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_attention_that_wants_what_ours_does_not_know_is_refused() -> None:
    layout = collate(torch.ones(1, 4).numpy(), torch.ones(1, 4).numpy(), [[4]]).layout
    parts = [torch.ones(1, 2, 4, 8)] * 3
    with pytest.raises(ConfigError, match="does not support attention sinks"):
        attend_side_by_side(None, *parts, None, layout, s_aux=torch.ones(2))
    with pytest.raises(ConfigError, match="does not support masks of the model's own"):
        attend_side_by_side(None, *parts, torch.ones(1, 1, 4, 4), layout)
    with pytest.raises(ConfigError, match="does not support documents"):
        attend_side_by_side(None, *parts, None)
