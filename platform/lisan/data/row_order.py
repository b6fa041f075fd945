"""The rows of a run in the one order that every worker agrees on, whether they lie on storage or are made on the way.

In: a tokens artifact and a plan. Out: for any rank of any number of workers, its rows from a position on. Always: a
position is one integer, all that a run has to remember of its data (rows read so far, or segment and row within it); the
union over the ranks of a step is the same for any number of ranks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.config import load
from lisan.core.errors import DataError
from lisan.data.config import MixConfig, PackingConfig
from lisan.data.corpus_blocks import RecordBlocks
from lisan.data.encode_tokens import tokenizer_of
from lisan.data.mix import Plan, make_plan
from lisan.data.rows import RowBatch, RowReader, rows_from_table
from lisan.data.segments import (
    SEGMENT_BLOCKS,
    SegmentMaker,
    find_break,
    plan_segments,
    position_after,
    position_of,
    source_indices,
    split_position,
)
from lisan.records.kinds import RecordKind
from lisan.tokenizer.tokenizer import open_tokenizer

RowIds = npt.NDArray[np.int64]


class RowOrder(Protocol):
    """Which rows come, one after the other, and how a worker gets its own."""

    @property
    def step_rows(self) -> int: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def languages(self) -> Mapping[str, str]: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_rows(self) -> Mapping[str, int]:
        """Return the rows of each source; an estimate where they are made on the way, as its tokens are."""

    @property
    def num_tokens(self) -> Mapping[str, int]: ...

    def source_of(self, row_ids: RowIds) -> RowIds:
        """Return the index into `sources` of each row."""

    def read(self, position: int, rank: int, world_size: int) -> Iterator[RowBatch]:
        """Yield the rows of a rank, step by step, read or made in this process."""

    def check(self, step: int, rank: int, row_ids: RowIds) -> None:
        """Refuse a rank's rows of a step that are not its own, as far as the rank can tell; DataError."""

    def follow(self, position: int, row_ids: RowIds) -> int:
        """Return the position after the rows of all ranks; DataError when they are not those that come at `position`."""


@dataclass(frozen=True)
class StoredRows:
    """Rows on storage, in the order of a plan; a position counts the rows read so far."""

    reader: RowReader
    plan: Plan
    step_rows: int

    @property
    def sources(self) -> tuple[str, ...]:
        return self.reader.sources

    @property
    def languages(self) -> Mapping[str, str]:
        return self.reader.languages

    @property
    def num_rows(self) -> Mapping[str, int]:
        return self.reader.num_rows

    @property
    def num_tokens(self) -> Mapping[str, int]:
        return self.reader.num_tokens

    @property
    def context_length(self) -> int:
        return self.reader.context_length

    def source_of(self, row_ids: RowIds) -> RowIds:
        return self.reader.source_of(row_ids)

    def read(self, position: int, rank: int, world_size: int) -> Iterator[RowBatch]:
        share = self.step_rows // world_size
        while True:
            first = position + rank * share
            yield self.reader.read(self.plan.rows(first, first + share))
            position += self.step_rows

    def check(self, step: int, rank: int, row_ids: RowIds) -> None:
        self.follow(step * self.step_rows + rank * len(row_ids), row_ids)

    def follow(self, position: int, row_ids: RowIds) -> int:
        expected = self.plan.rows(position, position + len(row_ids))
        if not np.array_equal(expected, row_ids):
            raise DataError(f"expected rows {expected[:4].tolist()}... and received rows {row_ids[:4].tolist()}...")
        return position + len(row_ids)


@dataclass(frozen=True)
class MadeRows:
    """Rows made from a corpus while training runs, segment after segment; a position is a segment and a row of it."""

    maker: SegmentMaker
    languages: Mapping[str, str]
    num_rows: Mapping[str, int]
    num_tokens: Mapping[str, int]
    num_segments: int
    "That the run is expected to take."
    step_rows: int

    @property
    def sources(self) -> tuple[str, ...]:
        return self.maker.blocks.sources

    @property
    def context_length(self) -> int:
        return self.maker.context_length

    def source_of(self, row_ids: RowIds) -> RowIds:
        return source_indices(row_ids)

    def read(self, position: int, rank: int, world_size: int) -> Iterator[RowBatch]:
        """Every rank makes every row, which suits a process on its own; many workers are fed by Ray Data."""
        share = self.step_rows // world_size
        rows = self.maker.rows(position)
        while step := list(islice(rows, self.step_rows)):
            yield rows_from_table(self.maker.table(step[rank * share : (rank + 1) * share]))

    def check(self, step: int, rank: int, row_ids: RowIds) -> None:  # noqa: ARG002  made rows know no steps
        """Rows of one rank follow each other; those between them are seen when all ranks' ids come together."""
        self.follow(position_of(int(row_ids[0])), row_ids)

    def follow(self, position: int, row_ids: RowIds) -> int:
        place = find_break(position, row_ids.tolist())
        if place is not None:
            before = position_after(int(row_ids[place - 1])) if place else position
            expected, received = split_position(before), split_position(position_of(int(row_ids[place])))
            raise DataError(
                f"expected row {expected[1]} of segment {expected[0]} and received row {received[1]} of segment {received[0]}"
            )
        return position_after(int(row_ids[-1]))


def open_order(tokens: Artifact, mix: MixConfig, num_steps: int, step_rows: int) -> RowOrder:
    """Return the order of a run over the rows of a tokens artifact; ConfigError when they cannot feed the mix."""
    if "block_records" not in tokens.facts:
        reader = RowReader(tokens)
        return StoredRows(reader, make_plan(reader.num_rows, mix, num_steps, step_rows), step_rows)
    facts, blocks = tokens.facts["sources"], open_blocks(tokens)
    num_rows, num_tokens = ({source: int(facts[source][key]) for source in sorted(facts)} for key in ("rows", "tokens"))
    num_blocks = blocks.num_blocks
    plan, num_positions = plan_segments(num_blocks, num_rows, mix, num_steps, step_rows)
    maker = SegmentMaker(
        blocks=blocks,
        plan=plan,
        tokenizer=partial(open_tokenizer, tokenizer_of(tokens)),
        context_length=tokens.facts["context_length"],
        packing=load(PackingConfig, tokens.config["packing"]),
        rows_per_block=tuple(num_rows[source] / num_blocks[source] for source in blocks.sources),
    )
    languages = {source: facts[source]["language"] for source in facts}
    return MadeRows(maker, languages, num_rows, num_tokens, -(-num_positions // SEGMENT_BLOCKS), step_rows)


def open_blocks(tokens: Artifact) -> RecordBlocks:
    """Return the records that the rows of this artifact are made from."""
    corpus = Store(tokens.location.root).open(Ref.parse(tokens.config["corpus"], Kind.corpus))
    if tokens.manifest["parents"].get(str(corpus.ref)) != corpus.digest:
        raise DataError(f"{tokens.ref} is to be made from another {corpus.ref} than there is now; encode it again")
    sources = tokens.facts["sources"]
    parts = {source: tuple((path, size) for path, size in sources[source]["corpus_shards"]) for source in sources}
    return RecordBlocks(corpus.location, RecordKind(tokens.config["kind"]), parts, tokens.facts["block_records"])
