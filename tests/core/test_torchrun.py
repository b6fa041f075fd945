"""Jobs of which torchrun starts several processes: the first builds, the others share its work and write nothing."""

from pathlib import Path

import pytest
from test_stage import STAGE, CountConfig, Watcher

from lisan.core import torchrun
from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.stage import ClusterConfig, StorageConfig, join_stage, run_stage
from lisan.recipes.jobs import JOBS
from lisan.recipes.run_pipeline import PipelineConfig, run_pipeline


@pytest.fixture
def config(tmp_path: Path) -> CountConfig:
    return CountConfig(name="n", storage=StorageConfig(root=str(tmp_path)))


def be(rank: int, monkeypatch: pytest.MonkeyPatch, num_nodes: int = 1) -> None:
    """Be one of two processes."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("GROUP_WORLD_SIZE", num_nodes)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torchrun, "PATIENCE_S", 0.0)


class Together:
    """A stage that remembers who was asked for what."""

    def __init__(self, kind: Kind = Kind.corpus) -> None:
        self.drafts: list[Draft] = []
        self.stage = STAGE.__class__(
            STAGE.job, kind, CountConfig, STAGE.parents, STAGE.build, None, lambda _, draft: self.drafts.append(draft)
        )


def test_the_others_share_the_work_and_write_and_track_nothing(
    config: CountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, watcher = Together(), Watcher()
    be(1, monkeypatch)
    join_stage(together.stage, config)
    [draft] = together.drafts
    assert Store(config.storage.root).root.list() == []
    be(0, monkeypatch)
    made = run_stage(together.stage, config, watcher.open, lambda _: None)
    assert (draft.location, draft.fingerprint) == (made.location, made.manifest["fingerprint"])
    assert len(together.drafts) == 1


def test_no_process_builds_an_existing_artifact(config: CountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Together()
    run_stage(together.stage, config, Watcher().open, lambda _: None)
    be(1, monkeypatch)
    join_stage(together.stage, config)
    assert together.drafts == []


def test_all_processes_refuse_the_same_configs(config: CountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they have met: who is refused alone would be waited for."""
    together = Together(Kind.model)
    store, ref = Store(config.storage.root), Ref(Kind.model, "n", "v1")
    store.begin(ref, CountConfig(name="n", upto=4), ())
    (store.checkpoints(ref) / "step_00000001" / "checkpoint.json").write_json({})
    for rank, act in ((0, lambda: run_stage(together.stage, config, Watcher().open)), (1, None)):
        be(rank, monkeypatch)
        with pytest.raises(ArtifactError, match=r"unfinished, with checkpoints of another config \(upto: 4 -> 3\)"):
            act() if act else join_stage(together.stage, config)
    assert together.drafts == []


def test_the_first_process_may_be_writing_its_mark(config: CountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Together(Kind.model)
    store, ref = Store(config.storage.root), Ref(Kind.model, "n", "v1")
    store.begin(ref, CountConfig(name="n", upto=4), ())
    (store.checkpoints(ref) / "draft.json.part").write_bytes(b"{")
    be(1, monkeypatch)
    join_stage(together.stage, config)
    assert len(together.drafts) == 1


@pytest.mark.parametrize("job", ["build_corpus", "encode_tokens", "run_evals", "promote_model", "show_example"])
def test_jobs_of_one_process_are_refused(job: str, config: CountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        be(rank, monkeypatch)
        with pytest.raises(ConfigError, match=f"{job} runs in one process and torchrun started 2; start it with"):
            JOBS[job].run(config)


def test_a_recipe_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be(0, monkeypatch)
    with pytest.raises(ConfigError, match="run_pipeline runs in one process"):
        run_pipeline(PipelineConfig(), tmp_path)


def test_only_training_is_shared() -> None:
    assert {name for name, job in JOBS.items() if job.stage is not None and job.stage.join} == {
        "train_cpt",
        "train_sft",
        "train_dpo",
    }


@pytest.mark.parametrize(
    ("cluster", "num_nodes", "said"),
    [
        (ClusterConfig(num_workers=2), 1, r"cluster\.num_workers=2 starts workers on Ray and torchrun started 2"),
        (ClusterConfig(), 2, r"cluster\.num_nodes is 1 and torchrun runs on 2; set cluster\.num_nodes=2"),
    ],
)
def test_a_cluster_that_contradicts_torchrun_is_refused(
    cluster: ClusterConfig, num_nodes: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    be(1, monkeypatch, num_nodes)
    with pytest.raises(ConfigError, match=said):
        join_stage(Together().stage, CountConfig(name="n", storage=StorageConfig(root=str(tmp_path)), cluster=cluster))


def test_the_others_let_the_first_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(ConfigError), torchrun.first_reports():
            raise ConfigError("wrong")
    assert waited == [torchrun.PATIENCE_S]


def test_a_bare_process_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (torchrun.is_first(), torchrun.num_processes()) == (True, 1)
    torchrun.check_alone("any")
