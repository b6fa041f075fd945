"""Every YAML composes with every choice, and every mistake in one is a sentence; the jobs' front door says it."""

import dataclasses
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from lisan.core.artifact import Store
from lisan.core.config import compose, load
from lisan.core.errors import ConfigError
from lisan.core.identity import fingerprint, to_plain
from lisan.recipes.jobs import JOBS
from lisan.recipes.run_pipeline import PipelineConfig, compose_step

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"
SCHEMAS: dict[str, type[Any]] = {**{name: job.config for name, job in JOBS.items()}, "run_pipeline": PipelineConfig}
RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
TOKENIZER = "tokenizer/t@v1"
NEEDED = {
    "build_corpus": ["name=t"],
    "expand_tokenizer": ["name=t", "corpus=corpus/t@v1", "sources=[a]", "base=tokenizer/b@v1"],
    "encode_tokens": ["name=t", "corpus=corpus/t@v1", f"tokenizer={TOKENIZER}"],
    "train_cpt": ["name=t", "tokens=tokens/t@v1", "model.path=model/t@v1"],
    "train_sft": ["name=t", "tokens=tokens/t@v1", "model.path=model/t@v1"],
    "train_dpo": ["name=t", "tokens=tokens/t@v1", "model.path=model/t@v1"],
    "score_preferences": ["name=t", "tokens=tokens/t@v1", "model.path=model/t@v1"],
    "sample_preferences": ["name=t", "prompts.corpus=corpus/t@v1", "policy=model/t@v1"],
    "run_evals": ["name=t", "model=model/t@v1", "corpus=corpus/t@v1"],
    "report_fertility": ["name=t", "corpus=corpus/t@v1", "tokenizers={a: tokenizer/t@v1}"],
    "export_model": ["name=t", "model=model/t@v1"],
    "promote_model": ["model=model/t@v1", "report=report/t@v1"],
    "show_example": ["tokens=tokens/t@v1"],
    "run_pipeline": [],
}
"What each job cannot do without."


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISAN_DATA", str(tmp_path))
    monkeypatch.setenv("LISAN_HOME", str(tmp_path / "home"))


@cache
def groups(job: str) -> tuple[str, ...]:
    """Return the groups that a primary YAML chooses from, recipes apart."""
    defaults = yaml.safe_load((CONF / f"{job}.yaml").read_text())["defaults"]
    return tuple(name for entry in defaults if isinstance(entry, dict) for name in entry if "recipe" not in name)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def choices() -> Iterator[tuple[str, str, str]]:
    for job in SCHEMAS:
        for group in groups(job):
            yield from ((job, group, option) for option in options(group))


def needed(job: str, group: str = "", option: str = "") -> list[str]:
    """Return what must be given beside a choice: a shape takes a tokenizer instead of a path, and so on."""
    given = NEEDED[job]
    if (group, option) == ("suite", "none"):
        given = [*given, "+tasks={mine: {kind: bits_per_byte, sources: [a]}}"]
    if group == "judge":
        more = {"endpoint": ["judge.endpoint.url=http://h/v1"], "reward": ["judge.path=/models/reward"]}
        given = [*given, *more.get(option, ())]
    if (group, option) == ("data", "none"):
        given = [*given, "+sources={web: {format: jsonl, path: [/data/a.jsonl], language: ar}}"]
    if group == "model" and option != "from":
        given = [*(one for one in given if not one.startswith("model.path")), f"model.tokenizer={TOKENIZER}"]
    return given


def compose_job(job: str, *overrides: str) -> Any:
    return compose(CONF, job, SCHEMAS[job], overrides)


def test_every_primary_yaml_is_a_job_and_every_group_is_used() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*SCHEMAS, "front_door"}
    used = {group for job in SCHEMAS for group in groups(job)}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*used, "recipe"}


@pytest.mark.parametrize("job", SCHEMAS)
def test_a_primary_yaml_composes_pickles_and_round_trips(job: str) -> None:
    config = compose_job(job, *needed(job))
    assert isinstance(config, SCHEMAS[job])
    assert pickle.loads(pickle.dumps(config)) == config
    again = load(SCHEMAS[job], to_plain(config))
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.storage = "other"


@pytest.mark.parametrize(("job", "group", "option"), choices())
def test_every_option_of_every_group_composes(job: str, group: str, option: str) -> None:
    if job in ("train_dpo", "score_preferences") and group == "model" and option != "from":
        with pytest.raises(ConfigError, match=r"train_dpo needs model\.path"):
            compose_job(job, f"{group}={option}", *needed(job, group, option))
        return
    config = compose_job(job, f"{group}={option}", *needed(job, group, option))
    assert pickle.loads(pickle.dumps(config)) == config
    assert load(SCHEMAS[job], to_plain(config)) == config


@pytest.mark.parametrize("option", options("tuning"))
def test_a_tuning_says_first_when_one_wants_it(option: str) -> None:
    first = (CONF / "tuning" / f"{option}.yaml").read_text().splitlines()[0]
    assert re.match(r"# \w.{30,}", first)


def first_comments(recipe: str) -> str:
    lines = (CONF / "recipe" / f"{recipe}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    return "\n".join(comments)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_its_hypothesis_its_command_and_its_result(recipe: str) -> None:
    comments = first_comments(recipe)
    for word in ("Hypothesis: ", "Command: ", "Result: "):
        assert f"# {word}" in comments
    assert re.search(rf"python jobs/(\w+)\.py .*recipe={recipe}\b", comments)


@cache
def composed(recipe: str) -> tuple[Any, dict[str, Any]]:
    """Return a recipe as the command in its first comments composes it, and its steps by name."""
    found = re.search(r"python jobs/(\w+)\.py ((?:[\w.]+=[^\s()]+ ?)*)", first_comments(recipe))
    assert found is not None
    config = compose_job(found[1], *found[2].split())
    steps = config.steps if isinstance(config, PipelineConfig) else ()
    return config, {name: compose_step(name, config, CONF) for name in steps}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_with_every_step(recipe: str) -> None:
    config, steps = composed(recipe)
    assert steps or not isinstance(config, PipelineConfig)
    for step in (config, *steps.values()):
        assert pickle.loads(pickle.dumps(step)) == step
        assert step.storage == config.storage


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_steps_need_only_what_earlier_steps_make(recipe: str) -> None:
    config, steps = composed(recipe)
    made: set[str] = set()
    for name, step in steps.items():
        stage = JOBS[config.steps[name].job].stage
        if stage is not None:
            assert {str(parent) for parent in stage.parents(step)} <= made, name
            made.add(f"{stage.kind}/{step.name}@{step.version}")


def test_the_command_line_wins_over_the_recipe() -> None:
    config = compose_job("train_cpt", "recipe=tiny", "cluster=cpu2", "optim.peak_lr=1e-3", "loop.num_steps=70")
    assert (config.optim.peak_lr, config.loop.num_steps, config.cluster.num_workers) == (1e-3, 70, 2)
    assert config.model.shape is not None


@pytest.mark.parametrize(
    ("job", "overrides", "said"),
    [
        ("train_cpt", ["optim.peak_lrr=1"], r"peak_lrr.*did you mean optim\.peak_lr\?"),
        ("train_cpt", ["optim.peak_lr=fast"], r"peak_lr.*fast|fast.*peak_lr"),
        ("train_cpt", ["loop.num_steps=9"], r"optim\.warmup_steps=20 is longer than the run of 9 steps"),
        (
            "train_cpt",
            ["recipe=demo"],
            r"recipe=demo is for run_pipeline: python jobs/run_pipeline\.py .*of train_cpt: tiny",
        ),
        ("run_pipeline", ["recipe=tiny"], r"recipe=tiny is for train_cpt: .*recipes of run_pipeline: demo,"),
        ("train_cpt", ["optim.peak_lr=-0.001"], r"optim\.peak_lr must be > 0, got -0\.001"),
        ("train_cpt", ["loop.step_rows=many"], r"step_rows.*many|many.*step_rows"),
        ("train_cpt", ["precision=float8"], r"float8"),
        ("train_cpt", ["cluster=cpu3"], r"cpu3"),
        ("train_cpt", ["model.path=null"], r"model needs exactly one of path .* and shape"),
        ("train_cpt", ["model=nano"], r"exactly one of path"),
        ("train_cpt", ["model=nano", "model.path=null"], r"model\.tokenizer must be set"),
        ("train_cpt", ["recipe=nothing"], r"Could not find 'recipe/nothing'"),
        (
            "train_cpt",
            ["cluster.num_workers=3", "cluster.num_nodes=2"],
            r"cluster\.num_workers \(3\) must be a multiple of",
        ),
        ("train_dpo", ["beta=0"], r"beta must be > 0.*got 0"),
        ("encode_tokens", ["kind=questions"], r"kind=questions is for evaluation"),
        ("encode_tokens", ["kind=conversations"], r"packing\.overflow=split"),
        ("expand_tokenizer", ["base=null", "gates.min_factor=1", "num_pieces=12"], r"num_pieces.*>= 260, got 12"),
        ("run_evals", ["suite=none"], r"run_evals needs tasks"),
        ("run_evals", ["+tasks={mine: {kind: guess, sources: [a]}}"], r"guess"),
        ("build_corpus", ["data=world", "sources.en_articles.format=exe"], r"exe"),
        ("build_corpus", ["data=none"], r"sources must be set"),
        ("run_pipeline", ["+steps={a: {job: train_everything}}"], r"steps\.a\.job must be one of .*'train_everything'"),
        ("run_pipeline", ["recipe=demo", "only=[nothing]"], r"only names nothing, the recipe has world"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_key_and_value(job: str, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose_job(job, *NEEDED[job], *overrides)
    assert "\n" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize(
    ("job", "missing"),
    [
        (job, one)
        for job in SCHEMAS
        for one in NEEDED[job]
        if not one.startswith(("base", "num_pieces", "model", "policy"))
    ],
)
def test_a_field_that_is_not_set_is_named(job: str, missing: str) -> None:
    if job == "build_corpus":
        assert compose_job(job).name == "world"  # the group data names the corpus
        return
    key = missing.split("=", maxsplit=1)[0]
    with pytest.raises(ConfigError, match=rf"{key} must be set: add {key}=\.\.\."):
        compose_job(job, *(one for one in NEEDED[job] if one != missing))


def test_real_data_needs_the_folder_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISAN_DATA")
    with pytest.raises(ConfigError, match="LISAN_DATA") as caught:
        compose_job("build_corpus", "data=real")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        ("run_evals", ["suite=none", "+tasks={mine: {kind: bits_per_byte, sources: [a]}}"]),
        ("build_corpus", ["data=none", "+sources={web: {format: jsonl, path: [/data/a.jsonl], language: ar}}"]),
    ],
)
def test_the_empty_groups_are_filled_as_their_comments_say(job: str, overrides: list[str]) -> None:
    compose_job(job, *NEEDED[job], *overrides)


def test_a_step_that_cannot_be_composed_names_itself() -> None:
    config = compose_job("run_pipeline", "recipe=demo", "steps.base.set.optim.peak_lr=-1")
    with pytest.raises(ConfigError, match=r"^steps\.base: optim\.peak_lr must be > 0, got -1"):
        compose_step("base", config, CONF)


def run_job(job: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does."""
    setting = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *overrides],
        cwd=REPOSITORY,
        env=setting,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def assert_is_one_sentence(done: subprocess.CompletedProcess[str], kind: str, said: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{kind}: ")
    assert re.search(said, lines[0]), lines[0]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def home(tiny_store: Store, tmp_path: Path) -> str:
    """A root of its own with a tokenizer that is not the one the tokens were encoded with."""
    from lisan.core.stage import StorageConfig, run_stage
    from lisan.tokenizer.expand.config import TokenizerConfig
    from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER as STAGE

    copytree(tiny_store.root.root, tmp_path / "root")
    storage = StorageConfig(root=str(tmp_path / "root"))
    from tiny import no_run, silent

    run_stage(
        STAGE,
        TokenizerConfig(name="other", corpus="corpus/tiny@v1", sources=("en_text",), num_pieces=280, storage=storage),
        no_run,
        silent,
    )
    return storage.root


@pytest.mark.parametrize(
    ("overrides", "kind", "said"),
    [
        (
            [
                "name=t",
                "tokens=tokens/documents@v1",
                "model=nano",
                "model.tokenizer=tokenizer/tiny@v1",
                "loop.num_stepz=2",
            ],
            "ConfigError",
            r"loop\.num_stepz.*did you mean loop\.num_steps\?",
        ),
        (
            ["name=t", "tokens=tokens/documents@v9", "model=nano", "model.tokenizer=tokenizer/tiny@v1"],
            "ArtifactError",
            r"tokens/documents@v9 does not exist; versions: v1$",
        ),
        (
            ["name=t", "tokens=tokens/documents@v1", "model=nano", "model.tokenizer=tokenizer/other@v1"],
            "DataError",
            r"tokens/documents@v1 was encoded with another tokenizer than tokenizer/other@v1 \(638 and 280 pieces\)",
        ),
        (
            [
                "name=t",
                "tokens=tokens/documents@v1",
                "model=nano",
                "model.tokenizer=tokenizer/tiny@v1",
                "loop.step_rows=3",
                "cluster=cpu2",
            ],
            "ConfigError",
            r"loop\.step_rows \(3\) must be a multiple of the number of workers \(2\)",
        ),
    ],
)
def test_the_front_door_says_what_is_wrong_in_one_line(overrides: list[str], kind: str, said: str, home: str) -> None:
    assert_is_one_sentence(run_job("train_cpt", *overrides, LISAN_HOME=home), kind, said)
    assert not (Path(home) / "model" / "t").exists()


def test_a_root_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_job("build_corpus", "data=world", "name=t", LISAN_HOME=str(tmp_path / "file"))
    assert_is_one_sentence(
        done, "ArtifactError", "cannot write .*/file/leases/corpus/t.*Not a directory; .*set storage.root elsewhere"
    )


def test_a_job_prints_its_config_and_runs_nothing(tmp_path: Path) -> None:
    done = run_job("train_cpt", "--cfg", "job", *NEEDED["train_cpt"], LISAN_HOME=str(tmp_path / "home"))
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["optim"]["peak_lr"] == 3e-5
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("job", sorted(SCHEMAS))
def test_the_first_comment_of_a_job_has_a_command_that_composes(job: str) -> None:
    comment = re.match(r"(?:#.*\n)*", (CONF / f"{job}.yaml").read_text())
    assert comment is not None
    lines = comment[0].replace("# ", "").replace("\\\n", " ").replace("#", "")
    commands = re.findall(rf"python jobs/{job}\.py (.*)", lines)
    assert commands
    for command in commands:
        compose(CONF, job, SCHEMAS[job], shlex.split(command))
