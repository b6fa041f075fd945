"""Records by number."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import document

from lisan.core.storage import Location
from lisan.data.on_the_fly.chunks import ChunkReader, Chunks
from lisan.records.kinds import RecordKind
from lisan.records.records import to_table

SIZES = {"ar_text": (10, 7), "en_text": (5,)}


@pytest.fixture
def chunks(tmp_path: Path) -> Chunks:
    """Seventeen Arabic documents in two files and five English ones, four to a chunk, three to a row group."""
    parts, first = {}, 0
    for source, sizes in SIZES.items():
        parts[source] = tuple((f"{source}-{number}.parquet", size) for number, size in enumerate(sizes))
        first = 0
        for path, size in parts[source]:
            table = to_table([document(source, first + index) for index in range(size)], RecordKind.documents)
            pq.write_table(table, tmp_path / path, row_group_size=3)
            first += size
    return Chunks(Location(str(tmp_path)), RecordKind.documents, parts, 4)


def ids(reader: ChunkReader, number: int) -> tuple[int, list[str]]:
    source, table = reader.read(number)
    return source, table["text"].to_pylist()


def test_chunks_hold_every_record_once_in_order(chunks: Chunks) -> None:
    assert chunks.num_chunks == {"ar_text": 5, "en_text": 2}
    reader = chunks.reader()
    found = [ids(reader, number) for number in range(7)]
    assert [source for source, _ in found] == [0] * 5 + [1] * 2
    assert [len(records) for _, records in found] == [4, 4, 2, 4, 3, 4, 1]
    expected = [document(source, index).text for source, sizes in SIZES.items() for index in range(sum(sizes))]
    assert [name for _, records in found for name in records] == expected


def test_any_chunk_is_read_at_any_time_whatever_the_cache_holds(
    chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = chunks.reader()
    whole = [ids(reader, number) for number in range(7)]
    monkeypatch.setattr("lisan.data.on_the_fly.chunks.CACHE_BYTES", 1)
    small = chunks.reader()
    for number in (6, 0, 3, 3, 2, 5, 0, 1, 4):
        assert ids(small, number) == whole[number]
    assert len(small._groups) == 1
