"""Folders and files that a config names and that changed in place."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError
from lisan.core.input_digests import digest_inputs, find_change
from lisan.core.stage import Run, SilentRun, Stage, StageConfig, StorageConfig, run_stage
from lisan.core.storage import Location

MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyConfig(StageConfig):
    base: str
    after: str | None = None


def copy(config: CopyConfig, draft: Draft, run: Run) -> dict[str, Any]:
    (draft.location / "f").write_bytes(b"1")
    return {}


STAGE = Stage(
    "copy_model",
    Kind.model,
    CopyConfig,
    lambda config: (Ref.parse(config.after),) if config.after else (),
    copy,
    inputs=lambda config: (config.base,),
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(3 * MEGABYTE))
    return folder


@pytest.fixture
def config(tmp_path: Path, base: Path) -> CopyConfig:
    return CopyConfig(name="m", base=str(base), storage=StorageConfig(root=str(tmp_path / "root")))


def build(config: CopyConfig, said: list[str] | None = None) -> Any:
    return run_stage(STAGE, config, lambda *_: Silent(), [].append if said is None else said.append)


class Silent(SilentRun):
    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_weights_of_the_same_size_are_others(base: Path) -> None:
    before = digest_inputs([str(base)])
    assert list(before) == [f"{base}/config.json", f"{base}/model.safetensors"]
    (base / "model.safetensors").write_bytes(b"\1" * 3 * MEGABYTE)
    (base / "README.md").write_text("no part of a model")
    (base / "logs").mkdir()
    now = digest_inputs([f"{base}"])
    assert [file for file in now if now[file] != before[file]] == [f"{base}/model.safetensors"]


def test_the_first_and_the_last_bytes_of_a_large_file_count(base: Path) -> None:
    file = base / "model.safetensors"
    found = set()
    for place in (0, 3 * MEGABYTE // 2, 3 * MEGABYTE - 1):
        data = bytearray(3 * MEGABYTE)
        data[place] = 1
        file.write_bytes(data)
        found.add(digest_inputs([str(file)])[str(file)])
    assert len(found) == 3


def test_a_copy_of_other_times_is_no_other(base: Path) -> None:
    before = digest_inputs([str(base)])
    for file in base.iterdir():
        file.write_bytes(file.read_bytes())
    assert digest_inputs([str(base)]) == before


def test_a_name_without_local_files_has_no_digest(base: Path) -> None:
    assert digest_inputs(["meta-llama/Llama-3.1-8B", str(base / "gone"), "s3:///no bucket", "ftp://x/y"]) == {}


def test_objects_differ_by_size_and_time(bucket: str) -> None:
    place = Location(bucket)
    (place / "model" / "config.json").write_bytes(b"{}")
    folder = bucket.replace("/prefix", "/prefix/model")
    before = digest_inputs([folder])
    assert list(before) == [folder]
    (place / "model" / "config.json").write_bytes(b"{ }")
    assert find_change(before, digest_inputs([folder])) == folder


def test_an_artifact_is_refused_when_a_folder_of_its_config_has_changed(base: Path, config: CopyConfig) -> None:
    build(config)
    said: list[str] = []
    build(config, said)
    assert said == ["model/m@v1 exists, nothing to do"]
    (base / "model.safetensors").write_bytes(b"\1" * 3 * MEGABYTE)
    with pytest.raises(
        ArtifactError,
        match=r"model/m@v1 was made before .*/base/model\.safetensors changed; bump the version to keep both, or "
        r"delete .*/model/m/v1$",
    ):
        build(config)


def test_a_deleted_input_is_reported(base: Path, config: CopyConfig) -> None:
    build(config)
    (base / "config.json").unlink()
    said: list[str] = []
    build(config, said)
    assert said == [f"model/m@v1 exists, nothing to do; of its input files 1 is gone, first {base}/config.json"]


def test_an_artifact_of_an_older_version_stays(base: Path, config: CopyConfig) -> None:
    made = build(config)
    (made.location / "manifest.json").write_json({k: v for k, v in made.manifest.items() if k != "inputs"})
    (base / "config.json").write_bytes(b"{ }")
    build(config)


def test_a_child_of_an_artifact_rebuilt_from_other_inputs_is_refused(base: Path, config: CopyConfig) -> None:
    made, child = build(config), replace(config, name="child", after="model/m@v1")
    build(child)
    made.location.delete()
    (base / "config.json").write_bytes(b"{ }")
    build(config)
    with pytest.raises(ArtifactError, match="model/child@v1 was made from another model/m@v1"):
        build(child)


def test_checkpoints_made_from_a_folder_that_has_changed_are_refused(base: Path, config: CopyConfig) -> None:
    store, ref = Store(config.storage.root), Ref.parse("model/m@v1")
    store.begin(ref, config, (), digest_inputs([config.base]))
    (store.checkpoints(ref) / "step_00000010" / "f").write_bytes(b"1")
    (base / "config.json").write_bytes(b"{ }")
    with pytest.raises(ArtifactError, match=r"is unfinished, with checkpoints made from another .*/base/config\.json"):
        build(config)
