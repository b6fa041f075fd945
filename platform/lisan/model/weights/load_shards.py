"""Loads the weights of a model on `meta`: every rank takes its own shard, from files or from a seed.

At most one whole tensor is in memory beside the shards. Tied matrices stay tied. A weight that no source has is refused by
name.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lisan.core.errors import DataError
from lisan.model.weights.safetensors_files import open_weights

Parts = Mapping[str, tuple[slice, ...]]
"The wanted slices of each tensor, by name."
Source = Callable[[Parts], Iterator[tuple[str, torch.Tensor]]]
"Yields the wanted parts that it has, in its own order."


@dataclass(frozen=True)
class FileSource:
    """Tensors in safetensors files."""

    locations: Mapping[str, tuple[Path, str]]
    "File of each tensor, and its name in the file."

    def __call__(self, parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
        by_file: dict[Path, list[str]] = {}
        for name in parts:
            if (location := self.locations.get(plain_name(name))) is not None:
                by_file.setdefault(location[0], []).append(name)
        for file, names in by_file.items():
            with open_weights(file) as opened:
                for name in names:
                    yield name, _read_part(opened, self.locations[plain_name(name)][1], parts[name])


def _read_part(opened: Any, name: str, part: tuple[slice, ...]) -> torch.Tensor:
    found = opened.get_slice(name)
    if any(side.start == side.stop for side in part):  # safetensors reads no empty slice
        return torch.empty([side.stop - side.start for side in part])
    tensor: torch.Tensor = found[part] if part else opened.get_tensor(name)
    return tensor


def plain_name(name: str) -> str:
    """Return the name of a weight in the model without adapters: PEFT wraps adapted layers."""
    return name.replace(".base_layer.", ".")


def load_shards(model: nn.Module, sources: Iterable[Source], only: Container[int] | None = None) -> None:
    """Load every parameter that is on `meta`, in its own dtype and on the device of its shards.

    With `only`, load the parameters with these ids. DataError for a parameter that no source has.
    """
    empty = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_meta and (only is None or id(parameter) in only)
    }
    loaded: dict[int, nn.Parameter] = {}
    for source in sources:
        parts = {name: part_of(parameter) for name, parameter in empty.items() if id(parameter) not in loaded}
        for name, tensor in source(parts) if parts else ():
            loaded[id(empty[name])] = _make_parameter(tensor, empty[name])
    missing = [name for name, parameter in empty.items() if id(parameter) not in loaded]
    if missing:
        raise DataError(f"no source has the weights of {missing[0]}, which {type(model).__name__} needs")
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in loaded:
                module._parameters[name] = loaded[id(parameter)]


def part_of(parameter: torch.Tensor) -> tuple[slice, ...]:
    """Return the slices of the whole tensor that this rank holds."""
    shape, start = tuple(parameter.shape), (0,) * parameter.ndim
    if isinstance(parameter, DTensor):
        shape, start = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


def _make_parameter(tensor: torch.Tensor, like: nn.Parameter) -> nn.Parameter:
    """Make the parameter that replaces the one on `meta`."""
    if not isinstance(like, DTensor):
        return nn.Parameter(tensor.to(like.dtype), requires_grad=like.requires_grad)
    # A shard of columns is a view of the whole: FSDP cannot flatten it, and it would keep the whole in memory.
    local = tensor.to(like.device_mesh.device_type, like.dtype).contiguous()
    whole = DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return nn.Parameter(whole, requires_grad=like.requires_grad)
