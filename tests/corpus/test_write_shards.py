from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lisan.core.storage import Location
from lisan.corpus import write_shards
from lisan.corpus.chain import run_read_task
from lisan.corpus.config import CorpusConfig, SourceConfig
from lisan.corpus.sources.read_tasks import FileRange, ReadTask
from lisan.corpus.write_shards import Shard, read_keys, write_shard
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS


@pytest.fixture
def staging(tmp_path: Path) -> Location:
    """Two tasks of five documents; the second and third of each are equal but for a full stop."""
    place = Location(str(tmp_path / "staging"))
    for index in range(2):
        path = tmp_path / f"{index}.jsonl"
        words = ["zero", "one", "one.", "two", "three"]
        path.write_text("".join(f'{{"text": "{word} {index}"}}\n' for word in words))
        config = CorpusConfig(
            name="t", sources={"s": SourceConfig(path=(str(path),), language="en")}, validation_ratio=0
        )
        run_read_task(ReadTask("s", index, (FileRange(str(path), path.name),)), config, place)
    return place


def rows(target: Location, split: str = "train") -> list[str]:
    table = pq.read_table((target / "documents" / "s" / split / "part-00000.parquet").full_path, partitioning=None)
    assert table.schema.names == SCHEMAS[RecordKind.documents].names
    texts: list[str] = table["text"].to_pylist()
    return texts


def test_pieces_are_joined_in_order_without_their_duplicates(staging: Location, tmp_path: Path) -> None:
    target = Location(str(tmp_path / "out"))
    facts = write_shard(Shard("s", RecordKind.documents, 0, (0, 1), {1: np.array([4])}), True, staging, target)
    assert rows(target) == ["zero 0", "one. 0", "two 0", "three 0", "zero 1", "one. 1", "two 1"]
    assert facts["duplicates"] == 3
    assert facts["splits"]["train"] == {"records": 7, "bytes": sum(map(len, rows(target))), "words": 14}


def test_duplicates_stay_when_nobody_asked(staging: Location, tmp_path: Path) -> None:
    target = Location(str(tmp_path / "out"))
    write_shard(Shard("s", RecordKind.documents, 0, (0,), {}), False, staging, target)
    assert len(rows(target)) == 5


def test_keys_know_their_piece_and_row(staging: Location) -> None:
    keys = read_keys(staging, "s", 1, number=17)
    assert keys["task"].to_pylist() == [17] * 5
    assert keys["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert keys["length"].to_pylist() == [6, 5, 6, 5, 7]


def test_row_groups_stay_below_their_size(staging: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "SLICE_ROWS", 1)
    monkeypatch.setattr(write_shards, "ROW_GROUP_BYTES", 300)
    target = Location(str(tmp_path / "out"))
    write_shard(Shard("s", RecordKind.documents, 0, (0, 1), {}), False, staging, target)
    file = pq.ParquetFile((target / "documents/s/train/part-00000.parquet").full_path)
    assert file.num_row_groups > 1
    assert file.metadata.num_rows == 10
