"""Rows to training workers through Ray Data, in plan order.

In: a tokens artifact, a plan and the step to begin at. Out: for each worker an iterator of `Rows`, one batch a step.
Always: worker r of n gets exactly the rows that the plan names for rank r, in order; the loop checks the ids it
receives.

A block holds one rank's rows of STEPS_PER_BLOCK steps, blocks leave in plan order (`preserve_order`), and the
non-equal splitter deals block i to worker i mod n; so the order is exact without any shuffle or filter. Blocks begin
at the step that training begins at, so a checkpoint may fall anywhere.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from lisan.core.artifact import Artifact
from lisan.tokens.mix import Plan
from lisan.tokens.rows import RowReader, Rows, row_schema, rows_from_table

STREAM = "rows"
STEPS_PER_BLOCK = 8
"Small blocks cost: 8 rows of 512 tokens a block give 700 rows/s, 64 rows 2,500."
BLOCKS_PER_TASK = 4
"Blocks that one read task yields for each rank: enough to hide its start, few enough to begin at once."


@dataclass(frozen=True)
class StreamPlan:
    """What to send: the rows of steps `first_step()`..`num_steps`, `step_rows` of them in each."""

    artifact: Artifact
    plan: Plan
    step_rows: int
    num_steps: int
    first_step: Callable[[], int]
    "Asked at every (re)start of the worker group: the step after the last checkpoint."


class PlanSource(Datasource):
    """Ray Data source that reads rows in plan order, one block a rank and step."""

    def __init__(self, stream: StreamPlan, world_size: int) -> None:
        super().__init__()
        self.stream, self.world_size = stream, world_size

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        stream = self.stream
        length = stream.artifact.facts["context_length"]
        schema = row_schema(length).append(pa.field("row_id", pa.int64()))
        task_steps = STEPS_PER_BLOCK * BLOCKS_PER_TASK
        size = task_steps * stream.step_rows
        metadata = BlockMetadata(num_rows=size, size_bytes=size * length * 8, input_files=None, exec_stats=None)
        # The last block runs past the end of training, so that every block has the same number of rows.
        return [
            ReadTask(
                _Read(stream.artifact, stream.plan, stream.step_rows, self.world_size, start), metadata, schema=schema
            )
            for start in range(stream.first_step(), stream.num_steps, task_steps)
        ]


@dataclass(frozen=True)
class _Read:
    """One read task: runs in a Ray worker and yields a table per rank and step."""

    artifact: Artifact
    plan: Plan
    step_rows: int
    world_size: int
    first_step: int

    def __call__(self) -> Iterable[pa.Table]:
        reader = RowReader(self.artifact)
        share = self.step_rows // self.world_size
        for block in range(BLOCKS_PER_TASK):
            start = (self.first_step + block * STEPS_PER_BLOCK) * self.step_rows
            steps = self.plan.rows(start, start + STEPS_PER_BLOCK * self.step_rows).reshape(STEPS_PER_BLOCK, -1)
            for rank in range(self.world_size):
                yield reader.read_table(steps[:, rank * share : (rank + 1) * share].ravel())


class PlanDataConfig(DataConfig):
    """Hand every worker its part of the plan. Built anew at each start, for whatever number of workers there is."""

    def __init__(self, stream: StreamPlan) -> None:
        super().__init__(enable_shard_locality=False)
        self.stream = stream

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        source = PlanSource(self.stream, world_size)
        dataset = ray.data.read_datasource(
            source, override_num_blocks=max(1, len(source.get_read_tasks(1))), num_cpus=0.5
        )
        share = STEPS_PER_BLOCK * self.stream.step_rows // world_size
        dataset = dataset.repartition(target_num_rows_per_block=share, strict=True)
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        return [{STREAM: split} for split in dataset.streaming_split(world_size, equal=False)]


def placeholder() -> Any:
    """Return the dataset that `TorchTrainer` wants to see before `PlanDataConfig` puts the real one in its place."""
    return ray.data.from_items([0])


def iterate_rows(shard: Any) -> Iterator[Rows]:
    """Yield one step's rows at a time from a worker's shard."""
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        rows = rows_from_table(table)
        share = len(rows) // STEPS_PER_BLOCK
        yield from (rows.part(step * share, (step + 1) * share) for step in range(STEPS_PER_BLOCK))
