"""Rows to training workers through Ray Data, in the order of the run.

In: an order and the position to begin at. Out: for each worker an iterator of `Rows`, one batch a step. Always: worker r
of n gets exactly the rows of rank r, in order; the loop checks the ids it receives.

Blocks leave in order (`preserve_order`), and the non-equal splitter deals block i to worker i mod n; so the order is exact
without any shuffle or filter. Of stored rows a block holds one rank's rows of STEPS_PER_BLOCK steps. Rows that are made on
the way come as they are packed; Ray Data cuts them into blocks of one rank's rows of one step. Blocks begin at the step
that training begins at, so a checkpoint may fall anywhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from lisan.data.row_order import MadeRows, RowOrder, StoredRows
from lisan.data.rows import BATCH_ROWS, RowBatch, row_schema, rows_from_table
from lisan.data.segments import SegmentMaker, split_position

STREAM = "rows"
STEPS_PER_BLOCK = 8
"Small blocks cost: 8 rows of 512 tokens a block give 700 rows/s, 64 rows 2,500."
BLOCKS_PER_TASK = 4
"Blocks that one read task yields for each rank: enough to hide its start, few enough to begin at once."

SPARE_SEGMENTS = 4
"Tasks for this many times the segments that a run is expected to take, because its rows were estimated; the rest never starts."


@dataclass(frozen=True)
class StreamPlan:
    """The rows to send: those of an order from the position of a run to its end."""

    order: RowOrder
    num_steps: int
    start: Callable[[], tuple[int, int]]
    "Asked at every (re)start of the worker group: step and position after the last checkpoint."


class PlanSource(Datasource):
    """Ray Data source of rows in order, read or made by its tasks."""

    def __init__(self, stream: StreamPlan, world_size: int) -> None:
        super().__init__()
        self.stream, self.world_size = stream, world_size

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        length = self.stream.order.context_length
        schema = row_schema(length).append(pa.field("row_id", pa.int64()))
        size = STEPS_PER_BLOCK * BLOCKS_PER_TASK * self.stream.order.step_rows
        metadata = BlockMetadata(num_rows=size, size_bytes=size * length * 8, input_files=None, exec_stats=None)
        return [ReadTask(task, metadata, schema=schema) for task in list_tasks(self.stream, self.world_size)]


def list_tasks(stream: StreamPlan, world_size: int) -> Sequence[Callable[[], Iterable[pa.Table]]]:
    """Return what runs in Ray workers, each to yield tables that follow those of the one before."""
    (step, position), order = stream.start(), stream.order
    if isinstance(order, StoredRows):
        starts = range(step, stream.num_steps, STEPS_PER_BLOCK * BLOCKS_PER_TASK)
        return [_Read(order, stream.num_steps, world_size, start) for start in starts]
    assert isinstance(order, MadeRows)
    segment, row = split_position(position)
    left = order.num_segments * (stream.num_steps - step) / stream.num_steps
    return [
        _Make(order.maker, segment + place, 0 if place else row)
        for place in range(math.ceil(SPARE_SEGMENTS * left) + 2)
    ]


@dataclass(frozen=True)
class _Read:
    """Read stored rows: yields a table per rank and STEPS_PER_BLOCK steps."""

    order: StoredRows
    num_steps: int
    world_size: int
    first_step: int

    def __call__(self) -> Iterable[pa.Table]:
        step_rows = self.order.step_rows
        share = step_rows // self.world_size
        stop = min(self.first_step + BLOCKS_PER_TASK * STEPS_PER_BLOCK, self.num_steps)
        # The last block runs past the end of training, so that every block has the same number of rows.
        for start in range(self.first_step, stop, STEPS_PER_BLOCK):
            rows = self.order.plan.rows(start * step_rows, (start + STEPS_PER_BLOCK) * step_rows)
            steps = rows.reshape(STEPS_PER_BLOCK, -1)
            for rank in range(self.world_size):
                yield self.order.reader.read_table(steps[:, rank * share : (rank + 1) * share].ravel())


@dataclass(frozen=True)
class _Make:
    """Make the rows of one segment: yields a table per BATCH_ROWS of them."""

    maker: SegmentMaker
    segment: int
    first_row: int

    def __call__(self) -> Iterable[pa.Table]:
        rows = islice(self.maker.segment(self.segment, self.maker.blocks.reader()), self.first_row, None)
        while batch := list(islice(rows, BATCH_ROWS)):
            yield self.maker.table(batch)


class PlanDataConfig(DataConfig):
    """Hand every worker its part of the order. Built at each start, for any number of workers."""

    def __init__(self, stream: StreamPlan) -> None:
        super().__init__(enable_shard_locality=False)
        self.stream = stream

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        source, share = PlanSource(self.stream, world_size), self.stream.order.step_rows // world_size
        dataset = ray.data.read_datasource(
            source, override_num_blocks=max(1, len(source.get_read_tasks(1))), num_cpus=0.5
        )
        if isinstance(self.stream.order, StoredRows):
            dataset.context.target_max_block_size = self._block_bytes(share)
        else:
            dataset = dataset.repartition(target_num_rows_per_block=share, strict=True)
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        return [{STREAM: split} for split in dataset.streaming_split(world_size, equal=False)]

    def _block_bytes(self, share: int) -> int:
        """Return the size above which Ray Data sends the output of a read task, just below that of one block.

        So every block leaves as it was made, without a second round of tasks to cut it. A row has 8 bytes a token and 4 a
        document; Ray would cut a block at 1.5 times the size, which no row with documents of two tokens reaches.
        """
        return int(0.99 * STEPS_PER_BLOCK * share * self.stream.order.context_length * 8)


def placeholder() -> Any:
    """Return the dataset that `TorchTrainer` wants to see before `PlanDataConfig` puts the real one in its place."""
    return ray.data.from_items([0])


def iterate_rows(shard: Any, share: int) -> Iterator[RowBatch]:
    """Yield one step's rows at a time, `share` of them, from a worker's shard."""
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        rows = rows_from_table(table)
        yield from (rows.part(start, start + share) for start in range(0, len(rows), share))
