"""Of a model with images beside its text, the text part is trained, scored and written as a model of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lisan.core.errors import DataError
from lisan.model.adapters.lora import LoraConfig, find_targets
from lisan.model.adapters.save_merged import write_config, write_weights
from lisan.model.folder import check_folder
from lisan.model.load import load_model, read_max_positions, read_vocabulary_size
from lisan.model.meta_model import make_meta_model
from lisan.model.quiet import print_once
from lisan.model.weights.load_shards import load_shards
from lisan.model.weights.safetensors_files import WEIGHTS

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": 12,
    "query_pre_attn_scalar": 8,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def make_gemma() -> Any:
    """Return a tiny model of Gemma 3's layout from 4B on."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=96)
    return Gemma3ForConditionalGeneration(config).eval()


@pytest.fixture(params=["as on the hub", "as in memory"])
def gemma(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, str]:
    """A model and its folder, in both layouts of names."""
    model = make_gemma()
    model.save_pretrained(tmp_path / "gemma")
    if request.param == "as in memory":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        save_file(state, tmp_path / "gemma" / WEIGHTS, {"format": "pt"})
    return model, str(tmp_path / "gemma")


def test_the_text_part_says_what_the_whole_model_says_of_text(
    gemma: tuple[Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_once.cache_clear()
    whole, place = gemma
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        wanted = whole(input_ids=ids).logits
    check_folder(place)
    assert "the text part is taken, as Gemma3ForCausalLM" in capsys.readouterr().out
    model, sources = make_meta_model(place)
    assert len(sources) == 1, "each rank reads its own shards"
    load_shards(model, sources)
    (tmp_path / "text").mkdir()
    write_weights(model, tmp_path / "text", torch.float32)
    write_config(model, tmp_path / "text", torch.float32)
    for found in (model, load_model(place), load_model(str(tmp_path / "text"))):
        assert type(found).__name__ == "Gemma3ForCausalLM"
        with torch.no_grad():
            assert torch.equal(found(input_ids=ids).logits, wanted)
    assert not [name for name in load_file(tmp_path / "text" / WEIGHTS) if "vision" in name]


def test_adapters_and_sizes_are_those_of_the_text_part(gemma: tuple[Any, str]) -> None:
    _, place = gemma
    model, _ = make_meta_model(place)
    assert "q_proj" in find_targets(model, LoraConfig(targets=("all",)))
    assert not [name for name, _ in model.named_modules() if "vision" in name]
    assert (read_vocabulary_size(place), read_max_positions(place)) == (97, 256)


def test_a_model_without_text_of_its_own_is_one_sentence(tmp_path: Path) -> None:
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(DataError, match="ViTConfig has no causal language model; name a model of text"):
        check_folder(tmp_path)
