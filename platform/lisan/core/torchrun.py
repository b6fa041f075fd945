"""The processes that torchrun started, read from RANK, WORLD_SIZE and GROUP_WORLD_SIZE; without torchrun there is one.

The first process starts, tracks and finishes an artifact; the others make the same checks and share its work.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lisan.core.errors import ConfigError, LisanError

PATIENCE_S = 10.0
"Time in which torchrun ends the other processes after the first one failed."


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def num_processes() -> int:
    """Return the number of processes, including this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_alone(job: str) -> None:
    """Refuse several processes for a job that runs in one."""
    if num_processes() > 1:
        raise ConfigError(
            f"{job} runs in one process and torchrun started {num_processes()}; start it with python alone, or with a "
            "cluster preset such as cluster=cpu2 where it needs more"
        )


def check_together(num_workers: int, num_nodes: int) -> None:
    """Refuse a cluster config that contradicts the processes of torchrun."""
    if num_processes() > 1 and num_workers:
        raise ConfigError(
            f"cluster.num_workers={num_workers} starts workers on Ray and torchrun started {num_processes()}; choose "
            "cluster=local, or start the job with python alone"
        )
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", num_nodes))
    if num_processes() > 1 and nodes != num_nodes:
        raise ConfigError(
            f"cluster.num_nodes is {num_nodes} and torchrun runs on {nodes}; set cluster.num_nodes={nodes}"
        )


@contextmanager
def first_reports() -> Iterator[None]:
    """Let the first process report an error that all of them find before they have connected.

    torchrun ends the others when one fails; a process that lives on after PATIENCE_S has an error of its own and reports it.
    """
    try:
        yield
    except LisanError:
        if not is_first():
            time.sleep(PATIENCE_S)
        raise
