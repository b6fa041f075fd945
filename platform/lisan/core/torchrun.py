"""The processes that torchrun started together, as the environment tells of them; outside of torchrun there is one.

In: RANK, WORLD_SIZE and GROUP_WORLD_SIZE. Out: who this process is, and whether a job may run so at all. Always: the first
process begins, tracks and finishes an artifact; the others make the same checks and share its work.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lisan.core.errors import ConfigError, LisanError

PATIENCE_S = 10.0
"In which torchrun ends the others after the first has said what is wrong."


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def num_peers() -> int:
    """Return how many processes there are, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_alone(job: str) -> None:
    """Refuse to do in several processes what is done by one."""
    if num_peers() > 1:
        raise ConfigError(
            f"{job} runs in one process and torchrun started {num_peers()}; start it with python alone, or with a cluster preset "
            "such as cluster=cpu2 where it needs more"
        )


def check_together(num_workers: int, num_nodes: int) -> None:
    """Refuse a cluster that contradicts what torchrun has started."""
    if num_peers() > 1 and num_workers:
        raise ConfigError(
            f"cluster.num_workers={num_workers} starts workers on Ray and torchrun started {num_peers()}; choose cluster=local, or "
            "start the job with python alone"
        )
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", num_nodes))
    if num_peers() > 1 and nodes != num_nodes:
        raise ConfigError(
            f"cluster.num_nodes is {num_nodes} and torchrun runs on {nodes}; set cluster.num_nodes={nodes}"
        )


@contextmanager
def first_speaks() -> Iterator[None]:
    """Let the first process say what all of them find wrong before they have met.

    torchrun ends the others when one fails. They speak too if they live on, for then they alone have failed.
    """
    try:
        yield
    except LisanError:
        if not is_first():
            time.sleep(PATIENCE_S)
        raise
