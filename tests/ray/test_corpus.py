"""The corpus stage on Ray Data with two workers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Artifact
from lisan.core.errors import DataError
from lisan.core.stage import ClusterConfig, SilentRun, StorageConfig, run_stage
from lisan.corpus import build_corpus
from lisan.corpus.build_corpus import CORPUS, CorpusConfig
from lisan.corpus.config import RowLayout, SourceConfig, SourceFormat
from lisan.microworld.config import WorldConfig
from lisan.records.kinds import RecordKind

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 4
WORLD = WorldConfig(num_documents=200, num_conversations=50)


@contextmanager
def silent(*_: Any) -> Iterator[SilentRun]:
    yield SilentRun()


def make(root: Path, sources: dict[str, SourceConfig], num_workers: int) -> Artifact:
    config = CorpusConfig(
        name="test",
        sources=sources,
        microworld=WORLD,
        validation_ratio=0.1,
        storage=StorageConfig(root=str(root)),
        cluster=ClusterConfig(num_workers=num_workers, cpus_per_worker=0.5),
    )
    return run_stage(CORPUS, config, silent, say=lambda _: None)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, SourceConfig]:
    """Two generated sources and two files that share every third text; one line is broken."""
    for name in "ab":
        lines = [json.dumps({"text": f"text {n if n % 3 == 0 else f'{n} of {name}'}."}) for n in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]))
    files = {name: SourceConfig(path=(str(tmp_path / f"{name}.jsonl"),), language="en") for name in "ab"}
    return {
        "world": SourceConfig(format=SourceFormat.microworld, world="ar_articles"),
        "chats": SourceConfig(format=SourceFormat.microworld, world="en_chats", kind=RecordKind.conversations),
        **files,
    }


def test_two_workers_make_the_files_that_one_process_makes(sources: dict[str, SourceConfig], tmp_path: Path) -> None:
    here, there = (make(tmp_path / str(workers), sources, workers) for workers in (0, 2))
    assert there.manifest["files"] == here.manifest["files"]
    assert {**there.facts, "seconds": 0} == {**here.facts, "seconds": 0}
    assert there.facts["quarantined"] == 2


def test_duplicates_are_the_same_when_keys_are_partitioned_by_hash(
    sources: dict[str, SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make(tmp_path / "here", sources, 0)
    monkeypatch.setattr(build_corpus, "KEYS_PER_PARTITION", 150)
    there = make(tmp_path / "there", sources, 2)
    assert there.facts["duplicates"] == here.facts["duplicates"] == 134
    assert there.manifest["files"] == here.manifest["files"]


def test_an_error_in_a_task_reaches_the_user_as_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("{broken")
    source = SourceConfig(
        format=SourceFormat.json, path=(str(tmp_path / "f.json"),), language="en", kind=RecordKind.conversations,
        layout=RowLayout.alpaca,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"f\.json is not valid JSON"):
        make(tmp_path / "root", {"s": source}, 2)
