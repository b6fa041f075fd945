"""Errors that every rank raised are deterministic: do not restart.

`is_unanimous` waits a moment for the other ranks. A rank alone with its error raises it, and Ray Train restarts the group.
Storage errors (ArtifactError) may be temporary and errors of other libraries may be of one machine: neither is asked.
"""

import time

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from lisan.core.errors import ConfigError, DataError, DivergenceError, LisanError

FINAL = (ConfigError, DataError, DivergenceError)
"Kinds that follow from config, rows and weights, which are the same on every rank."
PATIENCE_S = 30.0
"Ranks raise such an error within moments of each other: it follows from set-up or from a sum over all ranks."


def is_unanimous(error: LisanError, patience_s: float = PATIENCE_S) -> bool:
    """Return whether every rank raised an error of this kind; each rank that raised one calls it.

    Counts in the store of the process group: a collective would wait for ranks that are inside a collective of training.
    """
    if not dist.is_initialized():
        return False
    key = f"lisan/deterministic/{type(error).__name__}"
    deadline = time.monotonic() + patience_s
    try:
        store = _get_default_store()
        store.add(key, 1)
        while store.add(key, 0) < dist.get_world_size():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    except RuntimeError:  # the process that holds the store has ended
        return False
    return True
