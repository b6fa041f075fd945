"""Rows that are made while training runs, for corpora too large to tokenise first.

In: a plan over chunks of records, a tokenizer, the packing. Out: rows in an order of their own, segment after segment. A
segment is SEGMENT_CHUNKS places of the plan: its records are shuffled, encoded and packed source by source, and the rows
of the sources interleaved. Always: a segment depends on nothing but the plan and its number, so that it can be made
anywhere, twice, by any number of workers; the id of a row says which row comes next, so that the order can be checked and
resumed from the id alone.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from lisan.core.errors import DataError
from lisan.core.seed import derive_seed, stream
from lisan.corpus.records import Record
from lisan.tokens.chunks import ChunkReader, Chunks
from lisan.tokens.examples import encode_records
from lisan.tokens.mix import Plan
from lisan.tokens.packing import PackingConfig, PackingCounts, Row, pack

SEGMENT_CHUNKS = 64
"64 chunks of 64 documents are about 2 million tokens: two seconds of a core, and under 1 % of padding where it ends."

# A row id, from the highest bit: segment 32, index 20, source 10, last of its segment 1. A position has the first two.
_SOURCE_BITS, _INDEX_BITS = 10, 20
_INDEX_SHIFT = _SOURCE_BITS + 1


def row_id(segment: int, index: int, source: int, is_last: bool) -> int:
    return (segment << _INDEX_BITS | index) << _INDEX_SHIFT | source << 1 | is_last


def split_position(position: int) -> tuple[int, int]:
    """Return the segment and the row within it."""
    return position >> _INDEX_BITS, position & (1 << _INDEX_BITS) - 1


def position_after(row: int) -> int:
    """Return the position of the row that follows."""
    position = row >> _INDEX_SHIFT
    return (position >> _INDEX_BITS) + 1 << _INDEX_BITS if row & 1 else position + 1


def source_indices(row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index of the source of each row."""
    return row_ids >> 1 & (1 << _SOURCE_BITS) - 1


def find_break(position: int, row_ids: Iterable[int]) -> int | None:
    """Return the first place at which rows do not follow each other from `position` on; None when all do."""
    for place, row in enumerate(row_ids):
        if row >> _INDEX_SHIFT != position:
            return place
        position = position_after(row)
    return None


@dataclass(frozen=True)
class SegmentMaker:
    """Everything that it takes to make any segment, in any process."""

    chunks: Chunks
    plan: Plan
    "Over chunks."
    tokenizer: Callable[[], Any]
    "Opens the tokenizer where it is needed."
    context_length: int
    packing: PackingConfig
    rows_per_chunk: tuple[float, ...]
    "By source, as measured on a sample: rows of the sources are spread over the segment in this proportion."

    def rows(self, position: int) -> Iterator[tuple[int, Row]]:
        """Yield row ids and rows from a position on, without end."""
        reader = self.chunks.reader()
        segment, skipped = split_position(position)
        while True:
            yield from islice(self.segment(segment, reader), skipped, None)
            segment, skipped = segment + 1, 0

    def segment(self, number: int, reader: ChunkReader) -> Iterator[tuple[int, Row]]:
        """Yield the rows of one segment."""
        records = self._records(number, reader)
        if not records:
            raise DataError(f"segment {number} of the corpus holds no records; check the weights of the mix")
        tokenizer, counts = self.tokenizer(), PackingCounts()
        packed = {
            source: pack(encode_records(tokenizer, part), self.context_length, self.packing, counts)
            for source, (part, _) in records.items()
        }
        expected = {source: num_chunks * self.rows_per_chunk[source] for source, (_, num_chunks) in records.items()}
        rows = interleave(packed, expected, stream(self.plan.seed, "interleave", number))
        index = -1
        for index, (source, row, is_last) in enumerate(mark_last(rows)):
            yield row_id(number, index, source, is_last), row
        if index < 0:
            raise DataError(f"no record of segment {number} fits context_length={self.context_length}; raise it")

    def _records(self, number: int, reader: ChunkReader) -> dict[int, tuple[list[Record], int]]:
        """Return the records of each source, shuffled, and the number of chunks they come from."""
        found: dict[int, tuple[list[Record], int]] = {}
        first = number * SEGMENT_CHUNKS
        for chunk in self.plan.rows(first, first + SEGMENT_CHUNKS).tolist():
            source, records = reader.read(chunk)
            before, count = found.get(source, ([], 0))
            found[source] = before + records, count + 1
        for source, (records, _) in found.items():
            random.Random(derive_seed(self.plan.seed, "segment", number, source)).shuffle(records)
        return found


def interleave(
    rows: dict[int, Iterator[Row]], expected: dict[int, float], generator: random.Random
) -> Iterator[tuple[int, Row]]:
    """Merge the rows of several sources, each spread over the whole by the number of rows that is expected of it."""
    left = dict(expected)
    waiting = dict(rows)
    while waiting:
        sources = sorted(waiting)
        source = generator.choices(sources, [max(left[source], 0.5) for source in sources])[0]
        row = next(waiting[source], None)
        if row is None:
            del waiting[source]
        else:
            left[source] -= 1
            yield source, row


def mark_last(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row, bool]]:
    """Tell of every row whether it is the last one."""
    iterator = iter(rows)
    held = next(iterator, None)
    while held is not None:
        following = next(iterator, None)
        yield *held, following is None
        held = following
