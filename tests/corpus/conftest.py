import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Artifact
from lisan.core.stage import SilentRun, StorageConfig, run_stage
from lisan.corpus.build_corpus import CORPUS, CorpusConfig
from lisan.corpus.config import SourceConfig

Build = Callable[..., Artifact]


@contextmanager
def silent(*_: Any) -> Iterator[SilentRun]:
    yield SilentRun()


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a corpus of these sources under a temporary root."""

    def run(sources: Mapping[str, SourceConfig], root: str = "root", **options: Any) -> Artifact:
        config = CorpusConfig(
            name="test", sources=dict(sources), storage=StorageConfig(root=str(tmp_path / root)), **options
        )
        return run_stage(CORPUS, config, silent, say=lambda _: None)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a file of bytes, text, or one JSON row a line; return its path."""

    def put(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            text = (
                content
                if isinstance(content, str)
                else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
            )
            content = text.encode()
        path.write_bytes(content)
        return str(path)

    return put
