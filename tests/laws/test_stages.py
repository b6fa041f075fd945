"""Laws of stages: twice is once, history is never overwritten, what is not finished is not there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny import no_run, train_config

from lisan.cluster.config import Precision
from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError
from lisan.core.stage import ClusterConfig, Run, Stage, StorageConfig, TrackingConfig, run_stage
from lisan.core.storage import Location
from lisan.data.config import EncodeConfig
from lisan.data.encode_tokens import TOKENS
from lisan.evaluate.config import EvalConfig, TaskConfig, TaskKind
from lisan.evaluate.run_evals import EVALS
from lisan.model.config import ModelConfig
from lisan.records.kinds import RecordKind
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.train.stages import CPT, DPO, SFT


@pytest.fixture
def root(tiny_store: Store, tmp_path: Path) -> str:
    copytree(tiny_store.root.root, tmp_path / "root")
    return str(tmp_path / "root")


def evaluation(root: str, model: str) -> EvalConfig:
    task = TaskConfig(kind=TaskKind.multiple_choice, sources=("en_questions",))
    return EvalConfig(
        name="t",
        model=model,
        corpus="corpus/tiny@v1",
        tasks={"choice": task},
        context_length=96,
        storage=StorageConfig(root=root),
    )


def training(root: str, kind: str, model: str) -> Any:
    changes = {} if kind == "documents" else {"model": ModelConfig(path=model)}
    return train_config(Store(root), kind, loop={"num_steps": 2}, **changes)


CASES: dict[str, tuple[Stage, Callable[[str, str], Any], dict[str, Any]]] = {
    "tokenizer": (
        TOKENIZER,
        lambda root, _: TokenizerConfig(
            name="t", corpus="corpus/tiny@v1", sources=("en_text",), num_pieces=300, storage=StorageConfig(root=root)
        ),
        {"min_count": 3},
    ),
    "tokens": (
        TOKENS,
        lambda root, _: EncodeConfig(
            name="t",
            corpus="corpus/tiny@v1",
            tokenizer="tokenizer/tiny@v1",
            context_length=64,
            storage=StorageConfig(root=root),
        ),
        {"context_length": 80},
    ),
    "cpt": (CPT, lambda root, model: training(root, "documents", model), {"precision": Precision.auto}),
    "sft": (SFT, lambda root, model: training(root, "conversations", model), {"precision": Precision.auto}),
    "dpo": (DPO, lambda root, model: training(root, "preferences", model), {"beta": 0.3}),
    "report": (EVALS, evaluation, {"batch_rows": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_twice_is_once_and_another_config_needs_another_version(case: str, root: str, base_model: str) -> None:
    stage, make, change = CASES[case]
    config = make(root, base_model)
    said: list[str] = []
    first = run_stage(stage, config, no_run, said.append)
    before = stamps(first)
    again = run_stage(stage, config, no_run, said.append)
    assert said[-1] == f"{first.ref} exists, nothing to do"
    assert again.manifest == first.manifest
    assert stamps(again) == before

    key, value = next(iter(change.items()))
    with pytest.raises(ArtifactError, match=rf"{key}: .*{value}'?\); bump the version"):
        run_stage(stage, replace(config, **change), no_run, said.append)
    assert stamps(again) == before
    bumped = run_stage(stage, replace(config, **change, version="v2"), no_run, said.append)
    assert bumped.ref.version == "v2"
    assert stamps(again) == before


def stamps(artifact: Artifact) -> dict[str, int]:
    folder = Path(artifact.location.full_path)
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_where_a_stage_runs_is_no_part_of_what_it_makes(root: str) -> None:
    stage, make, _ = CASES["tokens"]
    config = make(root, "")
    first = run_stage(stage, config, no_run, lambda _: None)
    elsewhere = replace(config, cluster=ClusterConfig(num_workers=64), tracking=TrackingConfig(experiment="other"))
    assert run_stage(stage, elsewhere, no_run, lambda _: None).manifest == first.manifest


class CrashError(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("case", CASES)
def test_a_crash_before_the_manifest_leaves_nothing_visible(
    case: str, root: str, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, make, _ = CASES[case]
    config = make(root, base_model)
    ref = Ref(stage.kind, config.name, config.version)
    store = Store(root)
    write = Location.write_json

    def dies_at_the_manifest(place: Location, value: Any) -> None:
        if place.name == "manifest.json":
            raise CrashError
        write(place, value)

    monkeypatch.setattr(Location, "write_json", dies_at_the_manifest)
    with pytest.raises(CrashError):
        run_stage(stage, config, no_run, lambda _: None)
    monkeypatch.undo()
    assert list(store.location(ref).walk())
    assert store.versions(ref.kind, ref.name) == []
    with pytest.raises(ArtifactError, match=f"{ref} does not exist"):
        store.open(ref)
    assert run_stage(stage, config, no_run, lambda _: None).ref == ref


def test_leftovers_of_a_crash_are_no_part_of_the_next_artifact(root: str) -> None:
    def leaves_a_file(config: Any, draft: Draft, run: Run) -> dict[str, Any]:
        (draft.location / "rows" / "half.arrow").write_bytes(b"half")
        raise CrashError

    stage, make, _ = CASES["tokens"]
    config = make(root, "")
    with pytest.raises(CrashError):
        run_stage(replace(stage, build=leaves_a_file), config, no_run, lambda _: None)
    artifact = run_stage(stage, config, no_run, lambda _: None)
    assert not any("half" in name for name in artifact.manifest["files"])
    assert {file.name for file, _ in artifact.location.walk()} >= {"manifest.json"}
    assert not (artifact.location / "draft.json").exists()


def test_a_parent_that_was_made_again_with_another_config_is_noticed(root: str) -> None:
    stage, make, _ = CASES["tokens"]
    run_stage(stage, make(root, ""), no_run, lambda _: None)
    store = Store(root)
    store.location(Ref.parse("tokenizer/tiny@v1")).delete()
    other = TokenizerConfig(
        name="tiny", corpus="corpus/tiny@v1", sources=("en_text",), num_pieces=280, storage=StorageConfig(root=root)
    )
    run_stage(TOKENIZER, other, no_run, lambda _: None)
    with pytest.raises(ArtifactError, match="was made from another tokenizer/tiny@v1"):
        run_stage(stage, make(root, ""), no_run, lambda _: None)


def test_checkpoints_of_another_config_are_never_resumed(
    root: str, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training(root, "documents", base_model)
    monkeypatch.setattr(Draft, "commit", lambda *_: (_ for _ in ()).throw(CrashError()))
    with pytest.raises(CrashError):
        run_stage(CPT, config, no_run, lambda _: None)
    monkeypatch.undo()
    with pytest.raises(
        ArtifactError, match=r"unfinished, with checkpoints of another config \(optim.peak_lr: 0.005 -> 0.1\)"
    ):
        run_stage(CPT, replace(config, optim=replace(config.optim, peak_lr=0.1)), no_run, lambda _: None)


def test_every_artifact_names_its_parents_its_files_and_its_code(root: str) -> None:
    store = Store(root)
    tokens = store.open(Ref.parse("tokens/documents@v1"))
    assert set(tokens.manifest["parents"]) == {"corpus/tiny@v1", "tokenizer/tiny@v1"}
    assert {
        file.relative_to(tokens.location): size for file, size in tokens.location.walk() if file.name != "manifest.json"
    } == {name: facts["bytes"] for name, facts in tokens.manifest["files"].items()}
    assert {"torch", "ray", "python"} <= set(tokens.manifest["versions"])
    assert tokens.manifest["commit"]
    assert RecordKind.documents == tokens.facts["record_kind"]
    assert tokens.ref.kind is Kind.tokens
