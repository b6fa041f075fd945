"""A model folder whose files are not the model of its config is one sentence, wherever it is named."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import train_config

from lisan.core.artifact import Store
from lisan.core.errors import DataError, ServingError
from lisan.core.stage import StorageConfig
from lisan.evaluate.config import EvalConfig, TaskConfig, TaskKind
from lisan.evaluate.run_evals import EVALS
from lisan.export.config import ExportConfig, Format
from lisan.export.export_model import check_export
from lisan.export.formats import ExportSource, write_hf
from lisan.inference.served_model import check_weights
from lisan.model.config import ModelConfig
from lisan.model.folder import check_folder, open_folder, read_config
from lisan.model.load import load_model
from lisan.model.meta_model import make_meta_model
from lisan.model.quiet import print_once
from lisan.model.weights.load_shards import load_shards
from lisan.model.weights.safetensors_files import WEIGHTS
from lisan.train.launch_checks import check

Tensors = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a tied and an untied model, as transformers writes them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("saved")
    for name, tie in (("tied", True), ("untied", False)):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tie,
        )
        LlamaForCausalLM(config).save_pretrained(root / name)
    return root


@pytest.fixture
def change(saved: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a changed copy of a folder."""

    def make(name: str, change_weights: Callable[[Tensors], Tensors] = dict, **config: Any) -> str:
        folder = Path(copytree(saved / name, tmp_path / "model", dirs_exist_ok=True))
        tensors = change_weights(load_file(folder / WEIGHTS))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
        plain = json.loads((folder / "config.json").read_bytes()) | config
        (folder / "config.json").write_text(json.dumps(plain))
        return str(folder)

    return make


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def compiled(tensors: Tensors) -> Tensors:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


BROKEN: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "names of a compiled model": (compiled, {}, r"names its weights _orig_mod\.\*: .* inside torch\.compile; save"),
    "no output matrix": (without("lm_head.weight"), {}, r"lacks lm_head\.weight, .*tie_word_embeddings"),
    "no down projection": (without(DOWN), {}, rf"lacks {DOWN}, which LlamaForCausalLM"),
    "a layer more": (dict, {"num_hidden_layers": 3}, r"lacks model\.layers\.2\.\S+, .*\(9 weights in all\)"),
    "a layer fewer": (dict, {"num_hidden_layers": 1}, r"holds model\.layers\.1\.\S+, for which .*num_hidden_layers"),
    "another shape": (dict, {"intermediate_size": 64}, r"holds model\S+ \[\d+, \d+\] and .* has \[\d+, \d+\]"),
    "a value head": (lambda t: t | {"v_head.weight": torch.ones(3)}, {}, r"holds v_head\.weight, for which"),
}


@pytest.mark.parametrize("read", [open_folder, load_model, make_meta_model, check_folder])
@pytest.mark.parametrize("name", BROKEN)
def test_weights_of_another_model_are_named(name: str, read: Any, change: Any) -> None:
    change_weights, config, said = BROKEN[name]
    place = change("untied", change_weights, **config)
    with pytest.raises(DataError, match=said) as caught:
        read(place)
    assert "\n" not in str(caught.value)
    assert place in str(caught.value)


def test_every_stage_refuses_before_it_starts(change: Any, tiny_store: Store) -> None:
    place, storage = change("untied", compiled), StorageConfig(root=tiny_store.root.root)
    tasks = {"arabic": TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_text",))}
    evaluation = EvalConfig(name="e", model=place, corpus="corpus/tiny@v1", tasks=tasks, storage=storage)
    refusals: list[Callable[[], None]] = [
        lambda: check(train_config(tiny_store, model=ModelConfig(path=place)), tiny_store),
        lambda: EVALS.check(evaluation, tiny_store),
        lambda: check_export(ExportConfig(name="x", model=place, storage=storage), tiny_store),
        lambda: check_weights(Path(place)),
    ]
    for refuse in refusals:
        with pytest.raises(DataError, match=r"names its weights _orig_mod\.\*"):
            refuse()


def test_buffers_that_older_versions_stored_are_no_weights(change: Any) -> None:
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.1.self_attn.bias": torch.ones(1),
    }
    place = change("tied", lambda tensors: tensors | old)
    model, sources = make_meta_model(place)
    load_shards(model, sources)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(place).parameters(), strict=True))


def test_a_copy_of_the_tied_matrix_is_no_second_one(change: Any) -> None:
    place = change("tied", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    model, sources = make_meta_model(place)
    load_shards(model, sources)
    for found in (model, load_model(place)):
        assert found.config.tie_word_embeddings
        assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    check_weights(Path(place))


def test_two_different_matrices_are_two_whatever_the_config_says(
    change: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print_once.cache_clear()
    place = change("untied", tie_word_embeddings=True)
    model, sources = make_meta_model(place)
    assert len(sources) == 1
    load_shards(model, sources)
    for found in (model, load_model(place)):
        assert not found.config.tie_word_embeddings
        assert not torch.equal(found.get_output_embeddings().weight, found.get_input_embeddings().weight)
    assert not read_config(place).tie_word_embeddings
    assert capsys.readouterr().out.count("the files hold two different matrices") == 1
    (tmp_path / "hf").mkdir()
    write_hf(ExportConfig(name="t", model=place, formats=(Format.hf,)), ExportSource(Path(place), ""), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_bytes())["tie_word_embeddings"] is False
    with pytest.raises(ServingError, match=r"config\.json says tie_word_embeddings .* of which vLLM would use one"):
        check_weights(Path(place))


def write_adapter(folder: str) -> None:
    """Write an adapter into a folder, of which any layer of another name would be a trace."""
    Path(folder, "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base", "target_modules": ["q_proj"], "r": 2})
    )
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)},
        f"{folder}/adapter_model.safetensors",
    )


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_alone_is_refused_with_its_base(change: Any, has_config: bool) -> None:
    place = change("tied")
    write_adapter(place)
    Path(place, WEIGHTS).unlink()
    if not has_config:
        Path(place, "config.json").unlink()
    for read in (load_model, make_meta_model, check_folder):
        with pytest.raises(DataError, match=r"holds an adapter only .* merge it into org/base first"):
            read(place)


def test_an_adapter_beside_a_whole_model_is_not_applied(change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_once.cache_clear()
    place = change("tied")
    before = {name: tensor.clone() for name, tensor in load_model(place).named_parameters()}
    write_adapter(place)
    model, sources = make_meta_model(place)
    load_shards(model, sources)
    for found in (model, load_model(place)):
        assert {name: tensor.shape for name, tensor in found.named_parameters()} == {
            name: tensor.shape for name, tensor in before.items()
        }
        assert all(torch.equal(tensor, before[name]) for name, tensor in found.named_parameters())
    assert capsys.readouterr().out.count("the adapter of adapter_config.json is not applied") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"model_type": "llama", "hid', r"config\.json is cut off or no JSON .*copy"), ("[]", "holds no JSON object")],
)
def test_a_damaged_config_is_one_sentence(text: str, said: str, change: Any, tiny_store: Store) -> None:
    place = change("tied")
    Path(place, "config.json").write_text(text)
    for read in (load_model, make_meta_model, check_folder, read_config):
        with pytest.raises(DataError, match=said):
            read(place)
    with pytest.raises(DataError, match=said):
        check(train_config(tiny_store, model=ModelConfig(path=place)), tiny_store)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_counted_and_named(broken: float, change: Any) -> None:
    def damage(tensors: Tensors) -> Tensors:
        tensors[DOWN][0, 0] = tensors["model.embed_tokens.weight"][95, 3] = broken
        return tensors

    place = change("tied", damage)
    with pytest.raises(
        DataError, match=r"model: 2 of 20 weights hold NaN or infinity, the first is model\.embed_tokens\.weight; "
    ):
        load_model(place)
