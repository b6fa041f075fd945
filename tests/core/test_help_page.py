"""`--help`: the groups of a job, and every field with type, value, choices and docstring."""

import sys
from pathlib import Path

import pytest

from lisan.core.command_line.choices import list_choices
from lisan.core.command_line.config_errors import field_names
from lisan.core.command_line.help_page import WIDTH, read_docstrings
from lisan.core.command_line.run_job import run_job
from lisan.recipes.jobs import JOBS
from lisan.recipes.run_pipeline import PipelineConfig
from lisan.train.config import DpoConfig

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = {**{name: job.config for name, job in JOBS.items()}, "run_pipeline": PipelineConfig}


def read_help(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *overrides, "--help"])
    run_job(str(REPOSITORY / "jobs" / f"{job}.py"), SCHEMAS[job], lambda _: pytest.fail("the job ran"))
    return capsys.readouterr().out


@pytest.mark.parametrize("job", SCHEMAS)
def test_every_field_is_there_within_a_terminal(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = read_help(job, monkeypatch, capsys)
    shown = {line.split("  [")[0].strip().split("=")[0] for line in page.splitlines()}
    assert set(field_names(SCHEMAS[job])) <= shown
    assert max(map(len, page.splitlines())) <= WIDTH


def test_a_field_has_its_value_type_choices_and_docstring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = read_help("train_sft", monkeypatch, capsys, "optim.schedule=wsd")
    assert "Fine-tune on conversations, all weights or LoRA." in page
    assert "  tuning=full  [dora, embeddings, full, lora," in page
    assert "  name  [text, must be set]\n      Name of the artifact that the stage makes." in page
    assert "  optim.peak_lr=5e-06  [number]" in page  # of the job's YAML, not of the dataclass
    assert "  optim.schedule=wsd  [constant | cosine | wsd]" in page
    assert "  tuning.rows=null  [none | new | all or null]" in page
    assert "  mix.stages.NAME.from_step  [whole number, must be set]" in page
    assert "--cfg job prints the config" in page


def test_choices_are_those_of_the_job() -> None:
    conf = REPOSITORY / "conf"
    assert list_choices(conf, "recipe", "train_cpt", SCHEMAS["train_cpt"]) == ["tiny"]
    assert "demo" in list_choices(conf, "recipe", "run_pipeline", PipelineConfig)
    assert list_choices(conf, "recipe", "train_sft", SCHEMAS["train_sft"]) == []


def test_docstrings_are_inherited() -> None:
    said = read_docstrings(DpoConfig)
    assert said["beta"] == "Strength of the pull towards the reference model."
    assert said["name"] == "Name of the artifact that the stage makes."
    assert said["version"] == ""
