"""Plain technical English: words of the private language and "what is" clauses are counted in docstrings, comments and messages."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_house import PACKAGE, REPOSITORY, name_of, sources

WORLD = PACKAGE / "microworld"
"Its strings are the generated text itself."
FORBIDDEN = re.compile(
    r"\b(farewell|flight|gauge|keeper|outbox|verdict|whoever|doorway|the books|its books|tells? of|told of|tale|peers|courses?)\b",
    re.IGNORECASE,
)
CLAUSE = re.compile(
    r"\bwhat (?:is|are|was|were|the|a|an|it|they|of|to|has|have|can|does|do|makes|one|each|every|somebody|no|our|we|there)\b",
    re.IGNORECASE,
)
MAX_CLAUSES_PER_1000 = 1.0
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def prose_of(file: Path) -> Iterator[str]:
    """Yield the docstrings, messages and comments of a Python file; a page is its whole text."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value
    yield from (
        one.string for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.type == tokenize.COMMENT
    )


PROSE = [pytest.param(file, id=name_of(file)) for file in (*sources(), *PAGES) if not file.is_relative_to(WORLD)]


@pytest.mark.parametrize("file", PROSE)
def test_no_word_of_the_private_language(file: Path) -> None:
    assert not [found[0] for text in prose_of(file) for found in FORBIDDEN.finditer(text)]


def test_few_sentences_are_built_on_what_is() -> None:
    prose = "\n".join(text for file in sources() if not file.is_relative_to(WORLD) for text in prose_of(file))
    num_words = len(re.findall(r"[A-Za-z']+", prose))
    assert 1000 * len(CLAUSE.findall(prose)) / num_words < MAX_CLAUSES_PER_1000
