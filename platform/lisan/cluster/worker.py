"""Runtime facts of one training process, in one frozen object, and its process group."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from lisan.cluster.config import Precision
from lisan.cluster.precision import Resolved, find_precision, resolve_precision
from lisan.core.progress import doing, write_line
from lisan.core.stage import ClusterConfig

Report = Callable[[Mapping[str, float], str | None], None]
"Called on every rank with metrics and, after a checkpoint, its folder."


def silent(metrics: Mapping[str, float], checkpoint: str | None) -> None:
    """Discard a report."""


def never() -> bool:
    """Answer that no end was requested."""
    return False


@dataclass(frozen=True, kw_only=True)
class Worker:
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    tensor_parallel_size: int = 1
    "Neighbouring ranks that compute the same rows by tensor parallelism."
    device: str = "cpu"
    precision: Precision = Precision.auto
    "Precision of the run, equal on all ranks; auto before it is resolved."
    threads: int = 0
    "Compute threads of this process; 0 means torch's default."
    report: Report = silent
    stream: Callable[[], Iterator[Any]] | None = None
    "Rows of this rank from the step at which the run resumes; None reads them from storage."
    validate: Callable[[int], dict[str, float]] | None = None
    """Returns the held-out losses of a step's checkpoint, measured asynchronously by another process; empty after a failure.
    None when there is no such process."""
    collective_timeout_s: int = 600
    "Timeout in s of a collective before the first step and after the last."
    is_interrupted: Callable[[], bool] = never
    "Tells whether the run was asked to end; the request may reach any rank."
    step_timeout_s: int = 0
    "Time in s without a finished step after which the process ends, to be restarted; 0 for never."

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def doing(
        self, name: str | Callable[[], str], write: Callable[[str], None] = write_line
    ) -> AbstractContextManager[None]:
        """Name the activity of a block, on the first rank only."""
        return doing(name, write) if self.is_first else nullcontext()

    @property
    def data_rank(self) -> int:
        """Data-parallel rank of this worker; the ranks of a tensor-parallel group share one."""
        return self.rank // self.tensor_parallel_size

    @property
    def num_data_ranks(self) -> int:
        return self.world_size // self.tensor_parallel_size

    def deal(self, num_rows: int, micro_rows: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Return the batches of this rank: row ids, and a mask that is False for repeated rows.

        The rows are rank, rank + n, ... Every rank has as many batches of as many rows, because ranks gather sharded weights
        together; where rows do not divide, the last row is repeated.
        """
        step = self.num_data_ranks
        size = micro_rows * step
        batches = [np.arange(start + self.data_rank, start + size, step) for start in range(0, num_rows, size)]
        return [(np.minimum(row_ids, num_rows - 1), row_ids < num_rows) for row_ids in batches]

    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the rows of all ranks in fp64, so that counts stay exact, with the same bits on every rank.

        The ranks of a tensor-parallel group have the same rows and values, which count once.
        """
        return sum_over_ranks(values) / self.tensor_parallel_size


def worker_from_environment() -> Worker:
    """Return the worker that the environment of torchrun describes, or the only worker without torchrun."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Worker(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        device=f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu",
    )


def share_threads(cluster: ClusterConfig, num_processes: int) -> int:
    """Return the compute threads of one of `num_processes` on a machine; 0 means torch's default."""
    return cluster.threads_per_worker or (0 if cluster.use_gpu else max(1, (os.cpu_count() or 1) // num_processes))


@dataclass
class ProcessGroup:
    """Context with a process group: an existing one, or one that is created and destroyed."""

    worker: Worker
    timeout_s: int = 600
    _owned: bool = field(default=False, init=False)

    def __enter__(self) -> None:
        if self.worker.threads:
            torch.set_num_threads(self.worker.threads)
        if self.worker.device.startswith("cuda"):
            torch.cuda.set_device(self.worker.device)
        if dist.is_initialized():
            return
        from datetime import timedelta

        backend = "cpu:gloo,cuda:nccl" if self.worker.device.startswith("cuda") else "gloo"
        options: dict[str, Any] = {"timeout": timedelta(seconds=self.timeout_s)}
        if self.worker.world_size == 1:
            options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, **options)
        self._owned = True

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._owned = False
            dist.destroy_process_group()


def agree_on_precision(asked: Precision, worker: Worker) -> Resolved:
    """Return the precision of a run: for auto, bfloat16 only if the devices of all ranks multiply it natively.

    A collective: every rank must call it inside the process group.
    """
    found = [find_precision(worker.device)] * worker.world_size
    dist.all_gather_object(found, found[0])
    return resolve_precision(asked, found)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks in fp64, so that counts stay exact."""
    total = values.double()
    dist.all_reduce(total)
    return total
