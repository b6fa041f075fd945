"""Errors that all workers of a run come to alike: starting them again would end the same way.

In: what a worker has raised. Out: whether all others have raised the same kind. Always: nobody waits for a worker that goes on,
or is gone, longer than a moment: who is alone with its error raises it, and the group is started again.

Storage that fails (ArtifactError) may be back a minute later, and what is no sentence of ours may be of one machine: never asked.
"""

import time

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from lisan.core.errors import ConfigError, DataError, DivergenceError, LisanError

FINAL = (ConfigError, DataError, DivergenceError)
"Kinds that follow from config, rows and weights, which are the same on every rank."
PATIENCE_S = 30.0
"Ranks come to such an error within moments of each other, for it is of their set-up or of what they have just added up."


def is_unanimous(error: LisanError, patience_s: float = PATIENCE_S) -> bool:
    """Return whether every rank ends with an error of this kind; asked by those that do.

    Through the store of the group and not a collective, which the others, in the midst of one of training, would never join.
    """
    if not dist.is_initialized():
        return False
    key = f"lisan/verdict/{type(error).__name__}"
    deadline = time.monotonic() + patience_s
    try:
        store = _get_default_store()
        store.add(key, 1)
        while store.add(key, 0) < dist.get_world_size():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    except RuntimeError:  # whoever holds the store is gone
        return False
    return True
