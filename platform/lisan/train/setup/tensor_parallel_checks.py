"""What tensor parallelism asks of a run: blocks that can be split, trained whole, in a way that has been seen to be right.

In: a training config and its parents. Out: nothing, or one sentence. Always: before a worker starts, but for what a hub id
holds.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lisan.core.artifact import Artifact
from lisan.model.folder import read_config
from lisan.model.folder_tensors import make_empty
from lisan.model.parallel.tensor_parallel import check_sizes, check_tensor_parallel
from lisan.train.setup.base_model import open_places


def check_model(config: Any, parents: Iterable[Artifact]) -> None:
    """Refuse to split a model that cannot be; what a hub id holds is first seen by a worker."""
    tensor_parallel_size, places = config.sharding.tensor_parallel_size, open_places(config, parents)
    if tensor_parallel_size == 1:
        return
    if not places.model:
        names = ("num_heads", "num_kv_heads", "intermediate_size")
        check_sizes({f"shape.{name}": getattr(config.model.shape, name) for name in names}, tensor_parallel_size)
    elif (Path(places.model) / "config.json").exists():
        check_tensor_parallel(make_empty(read_config(Path(places.model)), "meta"), tensor_parallel_size)
