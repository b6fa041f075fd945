"""The one path from a config to an artifact."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.stage import (
    ClusterConfig,
    Run,
    SilentRun,
    Stage,
    StageConfig,
    StorageConfig,
    check_gpus,
    run_stage,
    warn_of_default_root,
)
from lisan.core.storage import default_root


@dataclass(frozen=True, kw_only=True, slots=True)
class CountConfig(StageConfig):
    upto: int = 3
    after: str | None = None


class Watcher(SilentRun):
    """Keeps what a stage says, and whether its run was opened and closed."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.events: list[str] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # noqa: ARG002
        self.metrics.update(metrics)

    def log_file(self, name: str, content: bytes) -> None:
        self.files[name] = content

    @contextmanager
    def open(self, stage: Stage, config: Any, parents: tuple[Artifact, ...]) -> Iterator[Run]:  # noqa: ARG002
        self.events.append(f"open {stage.job} {[str(parent.ref) for parent in parents]}")
        try:
            yield self
        except BaseException as error:
            self.events.append(type(error).__name__)
            raise
        self.events.append("done")


def count(config: CountConfig, draft: Draft, run: Run) -> dict[str, Any]:
    (draft.location / "numbers").write_bytes(bytes(range(config.upto)))
    return {"rows": config.upto, "label": "text is no metric", "nested": {"a": 1}}


def parents_of(config: CountConfig) -> tuple[Ref, ...]:
    return (Ref.parse(config.after),) if config.after else ()


STAGE = Stage("count_numbers", Kind.corpus, CountConfig, parents_of, count)


@pytest.fixture
def config(tmp_path: Path) -> CountConfig:
    return CountConfig(name="n", storage=StorageConfig(root=str(tmp_path)))


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def run(stage: Stage, config: CountConfig, watcher: Watcher) -> tuple[Artifact, list[str]]:
    said: list[str] = []
    return run_stage(stage, config, watcher.open, said.append), said


def test_a_stage_makes_the_artifact_of_its_config(config: CountConfig, watcher: Watcher) -> None:
    made, said = run(STAGE, config, watcher)
    assert str(made.ref) == "corpus/n@v1"
    assert made.facts["rows"] == 3
    assert made.facts["seconds"] >= 0
    assert [line.split(" ")[1] for line in said] == ["building", "done"]


def test_numbers_and_the_manifest_go_to_the_tracker(config: CountConfig, watcher: Watcher) -> None:
    made, _ = run(STAGE, config, watcher)
    assert set(watcher.metrics) == {"rows", "seconds"}
    assert watcher.files["manifest.json"] == (made.location / "manifest.json").read_bytes()
    assert watcher.events == ["open count_numbers []", "done"]


def test_an_existing_artifact_opens_no_run_and_checks_nothing(config: CountConfig, watcher: Watcher) -> None:
    run(STAGE, config, watcher)
    refuses = replace(STAGE, check=lambda *_: pytest.fail("checked"))
    _, said = run(refuses, config, watcher)
    assert said == ["corpus/n@v1 exists, nothing to do"]
    assert len(watcher.events) == 2


def test_a_missing_parent_is_refused_before_anything_starts(config: CountConfig, watcher: Watcher) -> None:
    with pytest.raises(ArtifactError, match="tokens/t@v1 does not exist"):
        run(STAGE, replace(config, after="tokens/t@v1"), watcher)
    assert watcher.events == []
    assert Store(config.storage.root).root.list() == []


def test_a_check_refuses_before_anything_is_written(config: CountConfig, watcher: Watcher) -> None:
    def refuse(config: CountConfig, store: Store) -> None:
        raise DataError("no numbers")

    with pytest.raises(DataError, match="no numbers"):
        run(replace(STAGE, check=refuse), config, watcher)
    assert Store(config.storage.root).root.list() == []


def test_a_stage_that_fails_closes_its_run_with_the_failure(config: CountConfig, watcher: Watcher) -> None:
    def fail(config: CountConfig, draft: Draft, run: Run) -> dict[str, Any]:
        raise DataError("broken")

    with pytest.raises(DataError):
        run(replace(STAGE, build=fail), config, watcher)
    assert watcher.events == ["open count_numbers []", "DataError"]
    assert Store(config.storage.root).versions(Kind.corpus, "n") == []


def test_an_artifact_under_construction_is_not_started_again(config: CountConfig, watcher: Watcher) -> None:
    """The second would delete what the first has written."""

    def build_twice(config: CountConfig, draft: Draft, run: Run) -> dict[str, Any]:
        (draft.location / "half").write_bytes(b"1")
        with pytest.raises(ArtifactError, match=r"corpus/n@v1 is being built by .* pid \d+ since"):
            run_stage(STAGE, config, watcher.open)
        assert (draft.location / "half").exists()
        return count(config, draft, run)

    run(replace(STAGE, build=build_twice), config, watcher)
    assert watcher.events == ["open count_numbers []", "done"]
    assert not list((Store(config.storage.root).root / "leases").walk())


def test_an_artifact_finished_by_another_process_is_returned(config: CountConfig, watcher: Watcher) -> None:
    finished = replace(STAGE, check=lambda config, _: run(STAGE, config, watcher))
    made, said = run(finished, config, watcher)
    assert said == ["corpus/n@v1 exists, nothing to do"]
    assert made.facts["rows"] == 3


def test_gpus_that_this_machine_has_not_are_refused_before_anything_is_read(
    config: CountConfig, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = replace(config, cluster=ClusterConfig(num_workers=8, use_gpu=True), after="corpus/missing@v1")
    with pytest.raises(ConfigError, match=r"cluster needs 8 GPUs .*, this machine has 0; choose another preset"):
        run(STAGE, wanted, watcher)
    check_gpus(replace(wanted.cluster, address="10.0.0.1:6379"))  # what that cluster has is seen there


def test_a_local_root_on_several_nodes_is_refused(config: CountConfig, watcher: Watcher) -> None:
    nodes = ClusterConfig(num_workers=4, num_nodes=2)
    with pytest.raises(ConfigError, match=r"storage\.root .* is a local path but cluster\.num_nodes is 2"):
        run(STAGE, replace(config, cluster=nodes), watcher)


def test_a_shared_mount_on_several_nodes_is_allowed(config: CountConfig, watcher: Watcher) -> None:
    nodes = ClusterConfig(num_workers=4, num_nodes=2)
    shared = StorageConfig(root=f"file://{config.storage.root}")
    made, _ = run(STAGE, replace(config, cluster=nodes, storage=shared), watcher)
    assert made.location.is_local


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_workers": -1}, "num_workers >= 0 and num_nodes >= 1, got -1 and 1"),
        ({"num_nodes": 0}, "got 0 and 0"),
        (
            {"num_workers": 3, "num_nodes": 2},
            r"cluster\.num_workers \(3\) must be a multiple of cluster\.num_nodes \(2\)",
        ),
    ],
)
def test_an_impossible_cluster_is_refused(values: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClusterConfig(**values)  # type: ignore[arg-type]


def test_a_submitted_job_with_a_default_root_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISAN_HOME", raising=False)
    assert not warn_of_default_root(default_root())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "the cluster has no LISAN_HOME" in warn_of_default_root(default_root())
    assert not warn_of_default_root("s3://bucket/prefix")
    monkeypatch.setenv("LISAN_HOME", "/data")
    assert not warn_of_default_root(default_root())
