"""The `score_preferences` stage: to the digit what training computes for itself, and refused where it does not belong."""

from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from tiny import ALONE, encode, make_job, no_run, silent, train_alone, train_config, weights

from lisan.cluster.config import Precision
from lisan.core.artifact import Artifact, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import ClusterConfig, StorageConfig, run_stage
from lisan.model.config import ModelConfig
from lisan.records.kinds import RecordKind
from lisan.train.config import ScoreConfig
from lisan.train.options import Method, PreferenceLoss, Quantisation, TuningConfig
from lisan.train.preference import score_parts
from lisan.train.preference.reference import MISMATCHED, REFERENCE, read_scores
from lisan.train.preference.score_parts import ReferenceModel
from lisan.train.preference.score_preferences import SCORES
from lisan.train.run import run_worker
from lisan.train.stages import CPT, DPO


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the tiny store with two models to start from."""
    root = tmp_path_factory.mktemp("scores") / "root"
    copytree(tiny_store.root.root, root)
    made = Store(str(root))
    for name, seed in (("base", 0), ("other", 1)):
        run_stage(CPT, train_config(made, name=name, loop={"seed": seed, "num_steps": 2}), no_run, silent)
    return made


def score(store: Store, **changes: Any) -> Artifact:
    values = {
        "name": "test",
        "tokens": "tokens/preferences@v1",
        "model": ModelConfig(path="model/base@v1"),
        "precision": Precision.float32,
        "micro_rows": 4,
        "storage": StorageConfig(root=store.root.root),
        "cluster": ClusterConfig(threads_per_worker=1),
    }
    return run_stage(SCORES, ScoreConfig(**{**values, **changes}), no_run, silent)


def dpo(store: Store, **changes: Any) -> Any:
    return train_config(store, "preferences", **{"model": ModelConfig(path="model/base@v1"), **changes})


@pytest.fixture(scope="module")
def scored(store: Store) -> Artifact:
    return score(store, mismatched=True)


@pytest.mark.parametrize(("loss", "folders"), [("sigmoid", [""]), ("kto", ["", MISMATCHED])])
def test_the_stage_computes_what_training_would_to_the_digit(
    loss: str, folders: list[str], scored: Artifact, store: Store, tmp_path: Path
) -> None:
    values = {"loss": PreferenceLoss(loss), "loop": {"micro_rows": 4}}
    own = train_alone(store, dpo(store, **values), tmp_path / "own")
    given = train_alone(store, dpo(store, reference="scores/test@v1", **values), tmp_path / "given")
    for folder in folders:
        mine = tmp_path / "own" / "checkpoints" / folder / REFERENCE
        assert pq.read_table(mine).equals(read_scores(scored.location / folder / REFERENCE))
    assert not (tmp_path / "given" / "checkpoints" / REFERENCE).exists()
    assert given.curve("loss") == own.curve("loss")
    mine, theirs = weights(tmp_path / "own"), weights(tmp_path / "given")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_manifest_says_what_was_scored(scored: Artifact) -> None:
    assert scored.facts["rows"] > 0
    assert scored.facts["documents"] % 2 == 0
    assert scored.facts["mean_chosen_logp"] < 0
    assert {"tokens/preferences@v1", "model/base@v1"} == set(scored.manifest["parents"])
    assert sorted(scored.manifest["files"]) == ["mismatched/reference.parquet", "reference.parquet"]


def test_a_killed_job_goes_on_where_it_was(
    scored: Artifact, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_parts, "PART_BATCHES", 2)
    score_part, asked = ReferenceModel.__call__, []

    def die_at_third(self: ReferenceModel, part: Any) -> int:
        asked.append(part.index)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score_part(self, part)

    monkeypatch.setattr(ReferenceModel, "__call__", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        score(store, name="killed")
    again = score(store, name="killed")
    assert "2 of" in capsys.readouterr().out
    assert asked[:4] == [0, 1, 2, 2]
    assert len(asked) == len(set(asked)) + 1
    assert read_scores(again.location / REFERENCE).equals(read_scores(scored.location / REFERENCE))
    assert not list((store.root / "parts").walk())


def test_a_job_that_is_killed_before_its_manifest_scores_nothing_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lisan.core.artifact.hash_files", be_killed)
        with pytest.raises(KeyboardInterrupt):
            score(store, name="late")
    monkeypatch.setattr(ReferenceModel, "__call__", lambda *_: pytest.fail("scored again"))
    assert score(store, name="late").facts["rows"] > 0
    assert not list((store.root / "parts").walk())


@pytest.mark.parametrize(("cluster", "device"), [({}, "cuda:0"), ({"num_workers": 1}, "cpu")])
def test_without_ray_the_device_is_the_one_that_training_would_take(
    cluster: dict[str, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cluster=local` on a machine with a GPU: train_dpo takes it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    job: Any = SimpleNamespace(config=SimpleNamespace(cluster=ClusterConfig(**cluster)), precision=Precision.float32)
    assert ReferenceModel(job).worker.device == device


def test_a_gpu_that_is_not_there_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cluster\.use_gpu is true but this process sees no GPU"):
        score(store, name="gpu", cluster=ClusterConfig(use_gpu=True))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"model": ModelConfig(path="model/other@v1")},
            DataError,
            "scored with model/base@v1, not with this model/other@v1",
        ),
        ({"tokens": "tokens/again@v1"}, DataError, "scored with tokens/preferences@v1, not with this tokens/again@v1"),
        (
            {"precision": Precision.bfloat16},
            DataError,
            "was scored in float32 and this run computes in bfloat16; set precision=float32",
        ),
        (
            {"tuning": TuningConfig(method=Method.lora, quantise_base=Quantisation.nf4)},
            ConfigError,
            "was scored with whole weights and without float8; leave it out with tuning.quantise_base=nf4 or float8=true",
        ),
    ],
)
def test_scores_of_something_else_are_refused(
    changes: dict[str, Any], error: type[Exception], said: str, scored: Artifact, store: Store
) -> None:
    encode(store, RecordKind.preferences, name="again", context_length=128)
    with pytest.raises(error, match=said):
        run_stage(DPO, dpo(store, reference="scores/test@v1", **changes), no_run, silent)


def test_kto_needs_the_exchanged_replies(store: Store) -> None:
    score(store, name="plain")
    config = dpo(store, reference="scores/plain@v1", loss=PreferenceLoss.kto)
    with pytest.raises(ConfigError, match="scores/plain@v1 lacks; score with mismatched=true"):
        run_stage(DPO, config, no_run, silent)


def test_a_folder_whose_weights_have_changed_is_seen_before_the_first_step(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    copytree(Path(store.root.root) / "model/base/v1", folder)
    model = ModelConfig(path=str(folder))
    score(store, name="folder", model=model)
    job = make_job(store, dpo(store, reference="scores/folder@v1", model=model), tmp_path)
    copytree(Path(store.root.root) / "model/other/v1", folder, dirs_exist_ok=True)
    with pytest.raises(DataError, match="another model scored them; score again"):
        run_worker(job, ALONE)


def test_both_passes_are_counted(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = score(store, name="counted", mismatched=True)
    assert f"scored {2 * made.facts['rows']:,}/{2 * made.facts['rows']:,} rows" in capsys.readouterr().out


def test_a_model_that_cannot_be_opened_leaves_no_process_group(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("the model is gone")

    monkeypatch.setattr(score_parts, "open_scorer", fail)
    with pytest.raises(DataError, match="is gone"):
        score(store, name="gone")
    assert not dist.is_initialized()


def test_only_preferences_are_scored(store: Store) -> None:
    with pytest.raises(ConfigError, match="holds conversations; score_preferences needs preferences"):
        score(store, name="chats", tokens="tokens/conversations@v1")
