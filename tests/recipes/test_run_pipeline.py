"""Recipes: steps in order, composed as their own jobs would, checked before the first one runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lisan.core.config import compose
from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.stage import ClusterConfig, StorageConfig
from lisan.recipes import run_pipeline as pipeline
from lisan.recipes.comparison import ComparisonConfig, RowConfig
from lisan.recipes.jobs import JOBS, Job
from lisan.recipes.run_pipeline import PipelineConfig, StepConfig, compose_step, run_pipeline
from lisan.tracking import runs

CONF = Path(__file__).parents[2] / "conf"
TOKENS = {"name": "t", "corpus": "corpus/c@v1", "tokenizer": "tokenizer/t@v1"}
STEPS = {
    "corpus": StepConfig(
        job="build_corpus", use={"data": "world"}, set={"name": "c", "microworld": {"num_documents": 100}}
    ),
    "tokens": StepConfig(job="encode_tokens", use={"cluster": "cpu2"}, set={**TOKENS, "context_length": 128}),
}


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return PipelineConfig(steps=STEPS, storage=StorageConfig(root=str(tmp_path)))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put recorders in the place of the jobs; they return the config that they were given."""
    calls: list[Any] = []

    def record(_: Job, step: Any) -> Any:
        calls.append(step)
        return step

    monkeypatch.setattr(Job, "run", record)
    return calls


def test_every_stage_is_a_job_and_so_are_the_two_that_make_no_artifact() -> None:
    stages = {name: job.stage for name, job in JOBS.items() if job.stage is not None}
    assert set(JOBS) == {*stages, "promote_model", "show_example"}
    assert {name: (stage.job, stage.config) for name, stage in stages.items()} == {
        name: (name, JOBS[name].config) for name in stages
    }


def test_a_step_is_composed_as_its_own_job_would_be(config: PipelineConfig) -> None:
    step = compose_step("tokens", config, CONF)
    overrides = [
        "cluster=cpu2",
        *(f"{key}={value}" for key, value in TOKENS.items()),
        "context_length=128",
        f"storage.root={config.storage.root}",
    ]
    assert step == compose(CONF, "encode_tokens", JOBS["encode_tokens"].config, overrides)


def test_the_pipelines_root_is_every_steps(config: PipelineConfig) -> None:
    assert {compose_step(name, config, CONF).storage.root for name in STEPS} == {config.storage.root}


def test_the_pipelines_cluster_is_every_steps_when_it_has_one(config: PipelineConfig) -> None:
    assert compose_step("tokens", config, CONF).cluster.num_workers == 2
    everywhere = replace(config, cluster=ClusterConfig(num_workers=5))
    assert compose_step("tokens", everywhere, CONF).cluster.num_workers == 5


def test_steps_run_in_order_and_give_their_results(config: PipelineConfig, done: list[Any]) -> None:
    results = run_pipeline(config, CONF)
    assert [step.name for step in done] == ["c", "t"]
    assert list(results) == ["corpus", "tokens"]


def test_only_some_steps_run_when_only_some_are_named(config: PipelineConfig, done: list[Any]) -> None:
    run_pipeline(replace(config, only=("tokens",)), CONF)
    assert [step.name for step in done] == ["t"]


def test_all_steps_are_checked_before_the_first_one_runs(config: PipelineConfig, done: list[Any]) -> None:
    broken = StepConfig(job="encode_tokens", set={**TOKENS, "context_length": 3})
    with pytest.raises(ConfigError, match=r"^steps\.last: context_length must be >= 8, got 3"):
        run_pipeline(replace(config, steps={**STEPS, "last": broken}), CONF)
    assert done == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"only": ("x",)}, "only names x, the recipe has corpus, tokens"),
        (
            {"steps": {"a": StepConfig(job="train_all")}},
            r"steps\.a\.job must be one of build_corpus, .*, got 'train_all'",
        ),
        (
            {"comparison": ComparisonConfig(rows={"r": RowConfig(train="corpus", report="none")})},
            r"comparison\.rows names the step none",
        ),
    ],
)
def test_an_impossible_recipe_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PipelineConfig(**{"steps": STEPS, **values})


def test_no_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run_pipeline needs a recipe: add recipe=demo"):
        run_pipeline(PipelineConfig(storage=StorageConfig(root=str(tmp_path))), CONF)


def test_a_misspelt_group_of_a_step_names_the_step(config: PipelineConfig) -> None:
    wrong = replace(config, steps={"tokens": replace(STEPS["tokens"], use={"cluster": "cpu9"})})
    with pytest.raises(ConfigError, match=r"^steps\.tokens: .*cluster/cpu9"):
        compose_step("tokens", wrong, CONF)


def test_a_comparison_is_made_of_all_results_and_not_of_some(
    config: PipelineConfig, done: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(
        pipeline, "compare", lambda place, results: compared.append((place, dict(results))) or "there/x.json"
    )
    with_rows = replace(
        config, name="x", comparison=ComparisonConfig(rows={"r": RowConfig(train="corpus", report="tokens")})
    )
    run_pipeline(replace(with_rows, only=("corpus",)), CONF)
    assert compared == []
    run_pipeline(with_rows, CONF)
    [(place, results)] = compared
    assert (place.name, place.storage, set(results)) == ("x", config.storage, {"corpus", "tokens"})
    assert capsys.readouterr().out.splitlines()[-1] == "x: ok there/x.json"


def test_existing_artifacts_are_skipped(
    config: PipelineConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import no_run

    monkeypatch.setattr(runs, "open_run", no_run)
    first = run_pipeline(replace(config, only=("corpus",)), CONF)["corpus"]
    capsys.readouterr()
    again = run_pipeline(replace(config, only=("corpus",)), CONF)["corpus"]
    assert "corpus/c@v1 exists, nothing to do" in capsys.readouterr().out
    assert again.manifest == first.manifest


def test_a_step_whose_parent_is_missing_stops_the_recipe(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="corpus/c@v1 does not exist"):
        run_pipeline(replace(config, only=("tokens",)), CONF)
