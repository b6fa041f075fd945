"""README's commands: each one is composed by the job it names, so that none can rot. What takes minutes runs in tests/ray."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lisan.core.config import compose
from lisan.recipes.jobs import JOBS
from lisan.recipes.run_pipeline import PipelineConfig
from lisan.serve.app import read_arguments

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def commands() -> list[list[str]]:
    """Return every command of README: those of its shell blocks and those in the running text."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [
        " ".join(text.split())
        for text in re.findall(r"`([^`]*jobs/[a-z_]+\.py[^`]*)`", re.sub(r"```.*?```", "", README, flags=re.S))
    ]
    return [words for text in lines + inline if (words := shlex.split(text, comments=True))]


JOB_COMMANDS = [words for words in commands() if any(word.startswith("jobs/") for word in words)]


@pytest.mark.parametrize("words", JOB_COMMANDS, ids=" ".join)
def test_a_job_command_composes(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISAN_DATA", str(tmp_path))
    place = next(index for index, word in enumerate(words) if word.startswith("jobs/"))
    job = Path(words[place]).stem
    assert (REPOSITORY / words[place]).exists()
    schema = PipelineConfig if job == "run_pipeline" else JOBS[job].config
    config = compose(REPOSITORY / "conf", job, schema, words[place + 1 :])
    assert isinstance(config, schema)


def test_the_serve_command_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    [words] = [words for words in commands() if words[:2] == ["serve", "run"]]
    assert words[2] == "serve_apps.chat:build"
    config = read_arguments(dict(word.split("=", 1) for word in words[3:]))
    assert (config.model, config.alias) == ("lisan-demo", "champion")


@pytest.mark.parametrize("target", [words[1] for words in commands() if words[0] == "make"])
def test_make_has_the_target(target: str) -> None:
    dry = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_what_is_linked_exists(link: str) -> None:
    assert (REPOSITORY / link).exists()


def test_every_job_of_the_repository_is_one_that_the_pipeline_knows() -> None:
    assert {path.stem for path in (REPOSITORY / "jobs").glob("[!_]*.py")} == {*JOBS, "run_pipeline"}
