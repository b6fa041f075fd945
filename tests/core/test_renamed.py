"""A config key that was renamed is refused with its new name, wherever it is given."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lisan.core import renamed
from lisan.core.command_line.config_errors import field_names
from lisan.core.config import compose, load
from lisan.core.errors import ConfigError
from lisan.recipes.jobs import JOBS


@dataclass(frozen=True, kw_only=True)
class Optim:
    peak_lr: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = "m"
    optim: Optim = field(default_factory=Optim)


@pytest.fixture(autouse=True)
def some_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", {"candidate": "model", "optim.peak": "optim.peak_lr", "opt": "optim"})


OLD_KEYS = [
    ("candidate", "x", "candidate is now called model"),
    ("optim.peak", "1", r"optim\.peak is now called optim\.peak_lr"),
    ("opt.peak_lr", "1", "opt is now called optim"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), OLD_KEYS)
def test_an_old_key_on_the_command_line_is_refused(key: str, value: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("defaults: [job_schema, _self_]\n")
    with pytest.raises(ConfigError, match=sentence):
        compose(tmp_path, "job", Settings, [f"{key}={value}"])


@pytest.mark.parametrize(("key", "value", "sentence"), OLD_KEYS)
def test_an_old_key_in_yaml_is_refused(key: str, value: str, sentence: str, tmp_path: Path) -> None:
    outer, _, inner = key.partition(".")
    lines = f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}"
    (tmp_path / "job.yaml").write_text(f"defaults: [job_schema, _self_]\n{lines}\n")
    with pytest.raises(ConfigError, match=sentence):
        compose(tmp_path, "job", Settings, [])
    nested: dict[str, object] = {outer: {inner: value}} if inner else {outer: value}
    with pytest.raises(ConfigError, match=sentence):
        load(Settings, nested)


@pytest.mark.parametrize("job", sorted(JOBS))
def test_no_key_in_use_counts_as_renamed(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [key for key in field_names(JOBS[job].config) if renamed.find_new_name(key)] == []
