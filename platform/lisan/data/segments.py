"""Rows that are made while training runs, for corpora too large to tokenise first.

In: a plan over blocks of records, a tokenizer, the packing. Out: rows in an order of their own, segment after segment. A
segment is SEGMENT_BLOCKS places of the plan: its records are shuffled, encoded and packed source by source, and the rows
of the sources interleaved. Always: a segment depends on nothing but the plan and its number, so that it can be made
anywhere, twice, by any number of workers; the id of a row says which row comes next, so that the order can be checked and
resumed from the id alone.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lisan.core.errors import DataError
from lisan.core.seed import derive_seed, stream
from lisan.data.config import SOURCE_BITS, MixConfig, MixStageConfig, PackingConfig
from lisan.data.corpus_blocks import BlockReader, RecordBlocks
from lisan.data.examples import count_spelt_controls_in, encode_table
from lisan.data.mix import Plan, make_plan
from lisan.data.packing import PackedRow, PackingCounts, fit, pack
from lisan.data.rows import lay_out_table

SEGMENT_BLOCKS = 64
"64 blocks of 64 documents are about 2 million tokens: two seconds of a core, and under 1 % of padding where it ends."

SAMPLE_BLOCKS = 8
"Of each source, read to learn how many rows it will give."

# A row id, from the highest bit: segment 32, index 20, source 10, last of its segment 1. A position has the first two.
_INDEX_BITS = 20
_INDEX_SHIFT = SOURCE_BITS + 1


def row_id(segment: int, index: int, source: int, is_last: bool) -> int:
    return (segment << _INDEX_BITS | index) << _INDEX_SHIFT | source << 1 | is_last


def split_position(position: int) -> tuple[int, int]:
    """Return the segment and the row within it."""
    return position >> _INDEX_BITS, position & (1 << _INDEX_BITS) - 1


def position_of(row: int) -> int:
    return row >> _INDEX_SHIFT


def position_after(row: int) -> int:
    """Return the position of the row that follows."""
    position = position_of(row)
    return (position >> _INDEX_BITS) + 1 << _INDEX_BITS if row & 1 else position + 1


def source_indices(row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index of the source of each row."""
    return row_ids >> 1 & (1 << SOURCE_BITS) - 1


def find_break(position: int, row_ids: Iterable[int]) -> int | None:
    """Return the first place at which rows do not follow each other from `position` on; None when all do."""
    for place, row in enumerate(row_ids):
        if position_of(row) != position:
            return place
        position = position_after(row)
    return None


@dataclass(frozen=True)
class SegmentMaker:
    """Everything that it takes to make any segment, in any process."""

    blocks: RecordBlocks
    plan: Plan
    "Over blocks."
    tokenizer: Callable[[], Any]
    "Opens the tokenizer where it is needed."
    context_length: int
    packing: PackingConfig
    rows_per_block: tuple[float, ...]
    "By source, as measured on a sample: rows of the sources are spread over the segment in this proportion."

    def rows(self, position: int) -> Iterator[tuple[int, PackedRow]]:
        """Yield row ids and rows from a position on, without end."""
        reader = self.blocks.reader()
        segment, skipped = split_position(position)
        while True:
            yield from islice(self.segment(segment, reader), skipped, None)
            segment, skipped = segment + 1, 0

    def segment(self, number: int, reader: BlockReader) -> Iterator[tuple[int, PackedRow]]:
        """Yield the rows of one segment."""
        records = self._records(number, reader)
        if not records:
            raise DataError(f"segment {number} of the corpus holds no records; check the weights of the mix")
        tokenizer, kind, counts = self.tokenizer(), self.blocks.kind, PackingCounts()
        packed = {
            source: pack(encode_table(tokenizer, table, kind), self.context_length, self.packing, counts)
            for source, (table, _) in records.items()
        }
        expected = {source: num_blocks * self.rows_per_block[source] for source, (_, num_blocks) in records.items()}
        rows = interleave(packed, expected, stream(self.plan.seed, "interleave", number))
        index = -1
        for index, (source, row, is_last) in enumerate(mark_last(rows)):
            if index >> _INDEX_BITS:
                raise DataError(
                    f"segment {number} of the corpus gives more than {1 << _INDEX_BITS:,} rows of {self.context_length} tokens; "
                    "encode with smaller block_records, or a longer context_length"
                )
            yield row_id(number, index, source, is_last), row
        if index < 0:
            raise DataError(f"no record of segment {number} fits context_length={self.context_length}; raise it")

    def table(self, rows: Sequence[tuple[int, PackedRow]]) -> pa.Table:
        """Return rows in the form that travels, with their ids."""
        return lay_out_table([row for _, row in rows], [number for number, _ in rows], self.context_length)

    def _records(self, number: int, reader: BlockReader) -> dict[int, tuple[pa.Table, int]]:
        """Return the records of each source, shuffled, and the number of blocks they come from."""
        found: dict[int, list[pa.Table]] = {}
        first = number * SEGMENT_BLOCKS
        for block in self.plan.rows(first, first + SEGMENT_BLOCKS).tolist():
            source, table = reader.read(block)
            found.setdefault(source, []).append(table)
        return {source: (self._shuffle(tables, number, source), len(tables)) for source, tables in found.items()}

    def _shuffle(self, tables: list[pa.Table], number: int, source: int) -> pa.Table:
        table = pa.concat_tables(tables)
        generator = np.random.default_rng(derive_seed(self.plan.seed, "segment", number, source))
        return table.take(generator.permutation(table.num_rows))


def estimate_rows(
    blocks: RecordBlocks, tokenizer: Any, context_length: int, packing: PackingConfig
) -> dict[str, dict[str, int]]:
    """Estimate rows, tokens and targets of each source from SAMPLE_BLOCKS blocks spread over it.

    The other counts, of records dropped and the like, are those of the sample.
    """
    reader, first, found = blocks.reader(), 0, {}
    for source, num_blocks in blocks.num_blocks.items():
        numbers = np.unique(np.linspace(first, first + num_blocks - 1, SAMPLE_BLOCKS).astype(int))
        table = pa.concat_tables([reader.read(number)[1] for number in numbers.tolist()])
        counts = PackingCounts(spelt_controls=count_spelt_controls_in(tokenizer, table, blocks.kind))
        items = fit(encode_table(tokenizer, table, blocks.kind), context_length, packing.overflow, counts)
        sizes = [(len(example), int((example.labels >= 0).sum())) for item in items for example in item]
        share = blocks.num_records(source) / table.num_rows
        tokens, targets = (round(share * size) for size in map(sum, zip(*sizes, strict=True))) if sizes else (0, 0)
        found[source] = {"rows": -(-tokens // context_length), "tokens": tokens, "targets": targets, **asdict(counts)}
        first += num_blocks
    return found


def plan_segments(
    num_blocks: Mapping[str, int], num_rows: Mapping[str, int], mix: MixConfig, num_steps: int, step_rows: int
) -> tuple[Plan, int]:
    """Plan a run over blocks, and tell how many of them it takes.

    Weights count tokens, so that the share of a source is its weight over the tokens of its block; a stage begins about where
    its step does, to a segment.
    """
    make_plan(num_rows, mix, num_steps, step_rows)  # its errors name rows and steps
    sizes = {source: num_rows[source] / count for source, count in num_blocks.items()}
    begun, place, last = 0, 0, -1
    stages: dict[str, MixStageConfig] = {}
    rate = 1.0
    for number, (_, from_step, weights) in enumerate(mix.phases()):
        place = max(math.ceil(place + (from_step - begun) * step_rows / rate), last + 1)
        given = weights or num_rows
        shares = {source: given.get(source, 0.0) / size for source, size in sizes.items()}
        rate = sum(given.get(source, 0.0) for source in sizes) / sum(shares.values())
        stages[f"part_{number}"] = MixStageConfig(from_step=place, weights=shares)
        begun, last = from_step, place
    num_positions = math.ceil(place + (num_steps - begun) * step_rows / rate) + 1
    plan = make_plan(num_blocks, MixConfig(stages=stages, max_epochs=math.inf, seed=mix.seed), num_positions, 1)
    return plan, num_positions


def interleave(
    rows: dict[int, Iterator[PackedRow]], expected: dict[int, float], generator: random.Random
) -> Iterator[tuple[int, PackedRow]]:
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


def mark_last(rows: Iterable[tuple[int, PackedRow]]) -> Iterator[tuple[int, PackedRow, bool]]:
    """Return for every row whether it is the last one."""
    iterator = iter(rows)
    held = next(iterator, None)
    while held is not None:
        following = next(iterator, None)
        yield *held, following is None
        held = following
