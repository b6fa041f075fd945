"""Text that is given to a text field stays as it was typed, on the command line and in YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lisan.core.command_line.overrides import quote_text
from lisan.core.config import SIGNED, compose
from lisan.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Source:
    format: str = "text"
    path: tuple[str, ...] = ()
    where: dict[str, str] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = "n"
    path: str | None = None
    rate: float = 1.0
    count: int = 1
    is_on: bool = False
    names: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict, metadata=SIGNED)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text("defaults: [job_schema, _self_]\n")
    return tmp_path


TEXTS = [
    "1e3",
    "1_000",
    "1.10",
    "0x10",
    "on",
    "true",
    "null",
    "~",
    "1:30",
    "2024-01-01",
    ".5",
    "007",
    "-1",
    "a: b",
    "نموذج",
]


@pytest.mark.parametrize(
    "text",
    [*TEXTS, "/m/epoch=3", "a#b", "~x", "a,b", "it's fine\\", "a b (c)", "[", "http://h/v1?a=1&b=2", "x'\\'y", "C:\\n"],
)
def test_the_command_line_keeps_text(text: str, conf: Path) -> None:
    config = compose(conf, "job", Settings, [f"name={text}"])
    assert config.name == text


@pytest.mark.parametrize("text", ["1e3", "1_000", "1.10", "on", "1", "/m/epoch=3"])
def test_items_and_values_are_text_too(text: str, conf: Path) -> None:
    given = [
        f"names=[{text},b]",
        f"labels={{a: {text}}}",
        f"sources={{web: {{format: {text}, path: [{text}], limit: 3}}}}",
    ]
    config = compose(conf, "job", Settings, given)
    assert (config.names, config.labels) == ((text, "b"), {"a": text})
    assert config.sources == {"web": Source(format=text, path=(text,), limit=3)}


@pytest.mark.parametrize("text", [text for text in TEXTS if text not in ("null", "~", "a: b")])
def test_yaml_keeps_text(text: str, conf: Path) -> None:
    (conf / "job.yaml").write_text(
        f"defaults: [job_schema, _self_]\nname: {text}\nnames: [{text}]\nlabels: {{a: {text}}}\nfree: {{name: {text}}}\n"
    )
    config = compose(conf, "job", Settings, [])
    assert (config.name, config.names, config.labels) == (text, (text,), {"a": text})
    assert str(config.free["name"]) == text


def test_fields_of_other_types_are_read_as_before(conf: Path) -> None:
    (conf / "job.yaml").write_text(
        "defaults: [job_schema, _self_]\nrate: 1e-3\ncount: 1_000\nis_on: on\nweights: {a: 1e2}\npath: null\n"
    )
    config = compose(conf, "job", Settings, [])
    assert (config.rate, config.count, config.is_on, config.weights, config.path) == (
        1e-3,
        1000,
        True,
        {"a": 100.0},
        None,
    )
    again = compose(
        conf, "job", Settings, ["rate=2e-3", "count=2_000", "is_on=false", "weights={b: 5e-1}", "path=null"]
    )
    assert (again.rate, again.count, again.is_on, again.path) == (2e-3, 2000, False, None)
    assert again.weights == {"a": 100.0, "b": 0.5}


def test_quotes_and_escapes_of_hydra_keep_their_meaning(conf: Path) -> None:
    config = compose(conf, "job", Settings, ["name='a, b'", r"path=/m/epoch\=3", 'labels={a: "x, y"}'])
    assert (config.name, config.path, config.labels) == ("a, b", "/m/epoch=3", {"a": "x, y"})


def test_interpolations_are_resolved(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert compose(conf, "job", Settings, ["path=${oc.env:PLACE}/a=b"]).path == "/data/a=b"


def test_the_home_folder_is_written_out(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/she")
    config = compose(conf, "job", Settings, ["path=~/m", "names=[~/a]"])
    assert (config.path, config.names) == ("/home/she/m", ("/home/she/a",))


def test_dictionaries_take_new_keys_with_and_without_a_plus(conf: Path) -> None:
    for given in (["weights={a: 1}"], ["+weights={a: 1}"], ["weights.a=1"], ["+weights.a=1"]):
        assert compose(conf, "job", Settings, given).weights == {"a": 1.0}
    assert compose(conf, "job", Settings, ["sources={a: {where: {told: en}}}", "sources.a.where.x=on"]).sources == {
        "a": Source(where={"told": "en", "x": "on"})
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("names=web", r"names takes a list, written 'names=\[a,b\]', got 'web'; for this one alone: 'names=\[web\]'"),
        ("weights=3", r"weights takes a mapping, written 'weights=\{name: value\}', got '3'"),
        ("sources={web: {formt: text}}", r"sources\.web\.formt is not a field; did you mean sources\.web\.format\?"),
        ("sources.web.formt=text", r"sources\.web\.formt is not a field; did you mean sources\.web\.format\?"),
        ("sources.web.format=x", r"sources\.web is not there yet; give all .* 'sources=\{web: \{format: \.\.\.\}\}'"),
        ("nam=x", r"nam is not a field; did you mean name\?; --help shows every field"),
        ("name", r"job: name sets nothing: write name=value"),
        ("rate=nan", "rate must be a finite number, got nan"),
        ("weights={a: .inf}", "finite|could not be converted"),
        ("rate=-1", r"rate must be >= 0, got -1\.0"),
        ("weights={a: -1}", r"weights\.a must be >= 0, got -1\.0"),
        ("sources={web: {limit: -2}}", r"sources\.web\.limit must be >= 0, got -2"),
    ],
)
def test_a_mistake_is_one_sentence(given: str, said: str, conf: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose(conf, "job", Settings, [given])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("names: web", r"names takes a list, written \[a, b\]"),
        ("weights: 3", r"weights takes a mapping, written \{name: value\}"),
        ("sources: {web: {formt: text}}", r"sources\.web\.formt is not a field; did you mean sources\.web\.format\?"),
        ("nam: x", r"nam is not a field; did you mean name\?"),
    ],
)
def test_a_mistake_in_yaml_is_one_too(lines: str, said: str, conf: Path) -> None:
    (conf / "job.yaml").write_text(f"defaults: [job_schema, _self_]\n{lines}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        compose(conf, "job", Settings, [])
    assert "\n" not in str(caught.value)


def test_in_a_sweep_a_comma_stays_between_alternatives() -> None:
    given = ["name=a,1e3", "names=[a,b],[c]", "name=choice(a,b)", "rate=1,2", "--multirun"]
    assert quote_text(Settings, given) == [
        "name='a','1e3'",
        "names=['a','b'],['c']",
        "name=choice(a,b)",
        "rate=1,2",
        "--multirun",
    ]
