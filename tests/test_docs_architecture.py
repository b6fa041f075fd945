"""Holds docs/architecture.md and CONTRIBUTING.md to the code: the picture of the rooms, and every path that they name."""

import re
from pathlib import Path

import pytest
from test_house import PACKAGE, imports, room, sources

from lisan.recipes.jobs import JOBS

REPOSITORY = Path(__file__).parents[1]
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
PATH = re.compile(r"`(\w[\w.]*/[\w./]*(?:\.py|\.yaml|\.md|/))`")


def imported_rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports; recipes import the stages of jobs by name."""
    found: dict[str, set[str]] = {path.name: set() for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    for file in sources():
        if file.is_relative_to(PACKAGE) and file.parent != PACKAGE:
            own = file.relative_to(PACKAGE).parts[0]
            found[own] |= {room(name) for name in imports(file) if name.startswith("lisan.")} - {own}
    for job in JOBS.values():
        found["recipes"] |= {path.split(".")[0] for path in (job.config_path, job.action_path)}
    return found


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    return graph[start].union(*(reachable(one, graph) for one in graph[start]))


def test_the_picture_shows_the_imports_between_rooms() -> None:
    graph = imported_rooms()
    wanted = {
        (own, other)
        for own, others in graph.items()
        for other in others
        if not any(other in reachable(one, graph) for one in others - {other})
    }
    picture = ARCHITECTURE.read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
    assert set(re.findall(r"(\w+) --> (\w+)", picture)) == wanted
    assert set(re.findall(r"\w+", picture)) - {"flowchart", "BT"} == set(graph)


@pytest.mark.parametrize("page", [ARCHITECTURE, REPOSITORY / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_path_of_the_page_exists(page: Path) -> None:
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert named
    missing = [path for path in named if not any((base / path).exists() for base in (REPOSITORY, PACKAGE))]
    assert not missing
