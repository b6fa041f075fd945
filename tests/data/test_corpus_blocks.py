"""Records by number."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import document

from lisan.core.renamed import find_new_name
from lisan.core.storage import Location
from lisan.data.corpus_blocks import BlockReader, RecordBlocks
from lisan.records.kinds import RecordKind
from lisan.records.records import to_table

SIZES = {"ar_text": (10, 7), "en_text": (5,)}


@pytest.fixture
def blocks(tmp_path: Path) -> RecordBlocks:
    """Seventeen Arabic documents in two files and five English ones, four to a block, three to a row group."""
    parts, first = {}, 0
    for source, sizes in SIZES.items():
        parts[source] = tuple((f"{source}-{number}.parquet", size) for number, size in enumerate(sizes))
        first = 0
        for path, size in parts[source]:
            table = to_table([document(source, first + index) for index in range(size)], RecordKind.documents)
            pq.write_table(table, tmp_path / path, row_group_size=3)
            first += size
    return RecordBlocks(Location(str(tmp_path)), RecordKind.documents, parts, 4)


def ids(reader: BlockReader, number: int) -> tuple[int, list[str]]:
    source, table = reader.read(number)
    return source, table["text"].to_pylist()


def test_chunks_hold_every_record_once_in_order(blocks: RecordBlocks) -> None:
    assert blocks.num_blocks == {"ar_text": 5, "en_text": 2}
    reader = blocks.reader()
    found = [ids(reader, number) for number in range(7)]
    assert [source for source, _ in found] == [0] * 5 + [1] * 2
    assert [len(records) for _, records in found] == [4, 4, 2, 4, 3, 4, 1]
    expected = [document(source, index).text for source, sizes in SIZES.items() for index in range(sum(sizes))]
    assert [name for _, records in found for name in records] == expected


def test_any_chunk_is_read_at_any_time_whatever_the_cache_holds(
    blocks: RecordBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = blocks.reader()
    whole = [ids(reader, number) for number in range(7)]
    monkeypatch.setattr("lisan.data.corpus_blocks.CACHE_BYTES", 1)
    small = blocks.reader()
    for number in (6, 0, 3, 3, 2, 5, 0, 1, 4):
        assert ids(small, number) == whole[number]
    assert len(small._groups) == 1


def test_the_old_key_of_the_size_of_a_block_is_refused_with_its_new_name() -> None:
    assert (
        find_new_name("encode_tokens.chunk_records")
        == "encode_tokens.chunk_records is now called encode_tokens.block_records"
    )
