"""docs/corpus.md: every example is read as it stands there and gives what the page says; every layout and field is on the page."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from lisan.core.artifact import Store
from lisan.core.config import load
from lisan.core.storage import Location
from lisan.corpus.chain import run_read_task
from lisan.corpus.config import CorpusConfig, RowLayout, SourceConfig, SourceFormat, TextUnit
from lisan.corpus.config_checks import check
from lisan.corpus.sources.read_tasks import plan_read_tasks

PAGE = (Path(__file__).parents[1] / "docs/corpus.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([^`\n]+)`:\n```text\n(.*?)```\n", re.DOTALL)


@dataclass(frozen=True)
class Example:
    name: str
    source: dict[str, Any]
    files: list[tuple[str, str]]
    outcome: str


def read_example(section: str) -> Example:
    written, rest = section.split("```\n", 1)
    [(name, source)] = yaml.safe_load(written).items()
    files = list(FILE.finditer(rest))
    return Example(
        name, source, [(file[1], file[2]) for file in files], rest[files[-1].end() :].strip().splitlines()[0]
    )


EXAMPLES = [read_example(section) for section in PAGE.split("```yaml\n")[1:]]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_read_as_the_page_says(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in example.files:
        Path(name).write_text(content, encoding="utf-8")
    config = load(CorpusConfig, {"name": "x", "sources": {example.name: example.source}})
    check(config, Store(str(tmp_path)))
    source = config.sources[example.name]
    [task] = plan_read_tasks(example.name, source)
    facts = run_read_task(task, config, Location(str(tmp_path / "staging")))
    assert example.outcome.startswith(f"{facts['records']} {source.kind}"), facts
    assert not facts.get("quarantined")
    assert not facts["dropped"]
    said = re.search(r"Not used: (.*?)\.", example.outcome)
    assert list(facts["unused"]) == (said[1].split(", ") if said else [])


def test_every_layout_format_unit_and_field_is_on_the_page() -> None:
    sources = [example.source for example in EXAMPLES]
    assert {source.get("layout", "text") for source in sources} == set(RowLayout)
    assert {source.get("unit", "line") for source in sources} == set(TextUnit)
    written = {source.get("format", "jsonl") for source in sources}
    assert written == set(SourceFormat) - {SourceFormat.parquet, SourceFormat.microworld}
    for name in [*(field.name for field in fields(SourceConfig) if field.name != "world"), "parquet", "microworld"]:
        assert f"`{name}`" in PAGE, name
