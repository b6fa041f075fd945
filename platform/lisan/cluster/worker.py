"""Runtime facts of one training process, in one frozen object.

`launch.py` fills it from Ray Train, torchrun's environment fills it, a test fills it by hand; the loop cannot tell.
"""

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
    """Report to nobody."""


def never() -> bool:
    """Ask for nothing."""
    return False


@dataclass(frozen=True, kw_only=True)
class Worker:
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    tensor_workers: int = 1
    "Neighbouring ranks that compute the same rows together."
    device: str = "cpu"
    precision: Precision = Precision.auto
    "Of this run, the same on all ranks; auto before it is resolved."
    threads: int = 0
    "Compute threads of this process; 0 leaves torch's choice."
    report: Report = silent
    stream: Callable[[], Iterator[Any]] | None = None
    "Rows of this rank from the step that the run resumes at; null reads them directly."
    validate: Callable[[int], dict[str, float]] | None = None
    """Returns the held-out losses of the checkpoint of a step, measured by somebody else while this process trains; nothing
    where that failed. None where nobody does."""
    collective_timeout_s: int = 600
    "For a collective before the first step and after the last."
    is_interrupted: Callable[[], bool] = never
    "Whether somebody asked the run to end; any rank may know."
    step_timeout_s: int = 0
    "After so long without a finished step the process ends, for somebody to start it again; 0 where nobody would."

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def doing(
        self, name: str | Callable[[], str], write: Callable[[str], None] = write_line
    ) -> AbstractContextManager[None]:
        """Name the work of a block, on the first rank."""
        return doing(name, write) if self.is_first else nullcontext()

    @property
    def data_rank(self) -> int:
        """Number of this worker among those that are dealt rows; the ranks of a tensor group share one."""
        return self.rank // self.tensor_workers

    @property
    def num_data_ranks(self) -> int:
        return self.world_size // self.tensor_workers

    def deal(self, num_rows: int, micro_rows: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Return the rows that this rank computes together, batch by batch, and which of them count as its own.

        Rank, rank + n, ..., and as many batches of as many rows on every rank, because sharded weights are gathered in step:
        where they do not divide, a rank has the last row again.
        """
        step = self.num_data_ranks
        size = micro_rows * step
        places = [np.arange(start + self.data_rank, start + size, step) for start in range(0, num_rows, size)]
        return [(np.minimum(some, num_rows - 1), some < num_rows) for some in places]

    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the rows of all ranks, fp64 so that counts stay exact: the same bits on every rank.

        The ranks of a tensor group have the same rows and the same values: counted once.
        """
        return sum_over_ranks(values) / self.tensor_workers


def worker_from_environment() -> Worker:
    """Read what torchrun sets; outside of it, be the only worker."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Worker(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        device=f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu",
    )


def share_threads(cluster: ClusterConfig, num_processes: int) -> int:
    """Return the compute threads of one of the processes of a machine; 0 leaves it to torch."""
    return cluster.threads_per_worker or (0 if cluster.use_gpu else max(1, (os.cpu_count() or 1) // num_processes))


@dataclass
class ProcessGroup:
    """The process group for the length of a run: the one that exists, or one of our own."""

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
    """Return the precision of a run: bfloat16 for auto only if the devices of all ranks multiply it natively.

    Every rank calls it, inside the process group.
    """
    found = [find_precision(worker.device)] * worker.world_size
    dist.all_gather_object(found, found[0])
    return resolve_precision(asked, found)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks, fp64 so that counts stay exact."""
    total = values.double()
    dist.all_reduce(total)
    return total
