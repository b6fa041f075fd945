"""Refuses tensor parallelism for models, tunings and options that it was not tested with, before a worker starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lisan.core.artifact import Artifact
from lisan.model.folder import read_config
from lisan.model.folder_tensors import make_empty
from lisan.model.parallel.tensor_parallel import check_sizes, check_tensor_parallel
from lisan.train.setup.base_model import open_places


def check_model(config: Any, parents: Iterable[Artifact]) -> None:
    """Refuse a model that cannot be split; that of a hub id is checked in the worker."""
    tensor_parallel_size, places = config.sharding.tensor_parallel_size, open_places(config, parents)
    if tensor_parallel_size == 1:
        return
    if not places.model:
        names = ("num_heads", "num_kv_heads", "intermediate_size")
        check_sizes({f"shape.{name}": getattr(config.model.shape, name) for name in names}, tensor_parallel_size)
    elif (Path(places.model) / "config.json").exists():
        check_tensor_parallel(make_empty(read_config(Path(places.model)), "meta"), tensor_parallel_size)
