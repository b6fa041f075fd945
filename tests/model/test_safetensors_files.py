"""Which files of a folder are the model's weights, what is said of a broken one, and how new ones are cut."""

import json
from fnmatch import fnmatch
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SHAPE, make_model, save_model

from lisan.core.errors import DataError
from lisan.export.config import ExportConfig
from lisan.export.formats import ExportSource, write_hf
from lisan.model.adapters.save_merged import write_config, write_weights
from lisan.model.config import ModelConfig
from lisan.model.folder_tensors import iter_state
from lisan.model.load import load_model
from lisan.model.meta_model import make_meta_model
from lisan.model.weights.load_shards import load_shards
from lisan.model.weights.safetensors_files import INDEX, WEIGHTS, WeightWriter, list_weights, read_tensors, weight_files

SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder as Mistral's: sharded weights with their index, and all of them once more in one file of other names."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 96, {}, 0)
    write_weights(model, folder, torch.float32, max_bytes=40_000)
    write_config(model, folder, torch.float32)
    save_file({f"layers.{name}": tensor for name, tensor in iter_state(folder)}, folder / "consolidated.safetensors")
    return folder


def test_weights_are_the_files_that_transformers_reads(tmp_path: Path) -> None:
    assert list_weights(tmp_path) == []
    with pytest.raises(DataError, match=r"has no \*\.safetensors; save the model"):
        weight_files(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert list_weights(tmp_path) == ["a.safetensors", "b.safetensors"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}))
    assert list_weights(tmp_path) == ["b.safetensors"]
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert list_weights(tmp_path) == [WEIGHTS]


def test_an_index_that_names_what_is_not_there_is_one_sentence(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(DataError, match=rf"lacks {SHARDS[1]}, which its {INDEX} names; copy or download"):
        make_meta_model(str(sharded))
    (sharded / INDEX).write_text("[]")
    with pytest.raises(DataError, match=rf"{INDEX} has no weight_map"):
        weight_files(sharded)


def test_the_same_weights_under_other_names_are_left_where_they_are(sharded: Path, tmp_path: Path) -> None:
    assert list_weights(sharded) == SHARDS
    model, sources = make_meta_model(str(sharded))
    assert len(sources) == 1, "each rank reads its own shards"
    load_shards(model, sources)
    whole = dict(load_model(str(sharded)).named_parameters())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.named_parameters())
    (tmp_path / "hf").mkdir()
    write_hf(ExportConfig(name="t", model=str(sharded)), ExportSource(sharded, ""), tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"config.json", INDEX, *SHARDS}


def test_an_index_that_is_not_read_is_not_exported(sharded: Path, tmp_path: Path) -> None:
    index = (sharded / INDEX).read_bytes()
    save_model(load_model(str(sharded)), sharded, torch.float32)
    (sharded / INDEX).write_bytes(index)
    (tmp_path / "hf").mkdir()
    write_hf(ExportConfig(name="t", model=str(sharded)), ExportSource(sharded, ""), tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"config.json", "generation_config.json", WEIGHTS}


def test_of_a_hub_id_only_what_is_read_is_fetched(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: str, allow_patterns: list[str]) -> str:
        for path in sharded.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                copy(path, tmp_path)
        return str(tmp_path)

    config = type(load_model(str(sharded)).config).from_pretrained(sharded)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    _, sources = make_meta_model("org/model")
    assert len(sources) == 1
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(SHARDS)


def read_state(place: str) -> Any:
    return list(iter_state(Path(place)))


@pytest.mark.parametrize("read", [make_meta_model, load_model, read_state])
def test_a_file_that_is_cut_off_is_one_sentence(read: Any, sharded: Path) -> None:
    broken = sharded / SHARDS[1]
    broken.write_bytes(broken.read_bytes()[:-10])
    with pytest.raises(
        DataError, match=rf"{SHARDS[1]} is cut off or no safetensors file .*; copy or download it again"
    ):
        read(str(sharded))


def test_what_is_no_safetensors_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "new_rows.donor").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"new_rows\.donor is cut off or no safetensors file"):
        read_tensors(tmp_path / "new_rows.donor")


def test_files_are_no_larger_than_asked_but_for_one_tensor(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path, max_bytes=40)
    sizes = {"d": 5, "a": 5, "c": 1, "b": 20}
    for name, size in sizes.items():
        writer.add(name, torch.full((size,), float(size)))
    writer.close()
    index = json.loads((tmp_path / INDEX).read_bytes())
    assert index["metadata"]["total_size"] == 4 * sum(sizes.values())
    assert list(index["weight_map"].items()) == [("a", SHARDS[0]), ("b", SHARDS[2]), ("c", SHARDS[1]), ("d", SHARDS[0])]
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, *SHARDS}
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].tolist() == [sizes[name]] * sizes[name]


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path, 40, lambda tensors: {f"{name}.x": tensor for name, tensor in tensors.items()})
    writer.add("a", torch.ones(3))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    assert load_file(tmp_path / WEIGHTS).keys() == {"a.x"}
