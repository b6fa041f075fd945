"""Weights for a model that has none yet: every rank takes its own shard, from files or from a seed.

In: a model whose parameters are on the device `meta`, sharded or not, and the sources of its weights. Out: the same model with
real ones. Always: beside the shards one whole tensor at most is in memory; tied matrices stay tied; what no source
has is refused by name.
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
"What is wanted of each tensor, by name."
Source = Callable[[Parts], Iterator[tuple[str, torch.Tensor]]]
"Yields what it has of the wanted parts, in the order that suits it."


@dataclass(frozen=True)
class Files:
    """Tensors in safetensors files."""

    places: Mapping[str, tuple[Path, str]]
    "The file of each tensor, and its name there."

    def __call__(self, parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
        by_file: dict[Path, list[str]] = {}
        for name in parts:
            if (place := self.places.get(plain_name(name))) is not None:
                by_file.setdefault(place[0], []).append(name)
        for file, names in by_file.items():
            with open_weights(file) as opened:
                for name in names:
                    yield name, _read_part(opened, self.places[plain_name(name)][1], parts[name])


def _read_part(opened: Any, name: str, part: tuple[slice, ...]) -> torch.Tensor:
    found = opened.get_slice(name)
    if any(side.start == side.stop for side in part):  # safetensors reads no empty slice
        return torch.empty([side.stop - side.start for side in part])
    tensor: torch.Tensor = found[part] if part else opened.get_tensor(name)
    return tensor


def plain_name(name: str) -> str:
    """Return the name of a weight in the model without adapters: PEFT puts a layer around those it adapts."""
    return name.replace(".base_layer.", ".")


def fill(model: nn.Module, sources: Iterable[Source], only: Container[int] | None = None) -> None:
    """Give every parameter that is on `meta` its weights, in its own type and on the device of its shards.

    With `only`, just the parameters with these ids.
    """
    empty = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_meta and (only is None or id(parameter) in only)
    }
    filled: dict[int, nn.Parameter] = {}
    for source in sources:
        parts = {name: part_of(parameter) for name, parameter in empty.items() if id(parameter) not in filled}
        for name, tensor in source(parts) if parts else ():
            filled[id(empty[name])] = _place(tensor, empty[name])
    missing = [name for name, parameter in empty.items() if id(parameter) not in filled]
    if missing:
        raise DataError(f"no source has the weights of {missing[0]}, which {type(model).__name__} needs")
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in filled:
                module._parameters[name] = filled[id(parameter)]


def part_of(parameter: torch.Tensor) -> tuple[slice, ...]:
    """Return which part of the whole tensor this rank holds."""
    shape, start = tuple(parameter.shape), (0,) * parameter.ndim
    if isinstance(parameter, DTensor):
        shape, start = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


def _place(tensor: torch.Tensor, like: nn.Parameter) -> nn.Parameter:
    """Make the parameter that stands where an empty one stood."""
    if not isinstance(like, DTensor):
        return nn.Parameter(tensor.to(like.dtype), requires_grad=like.requires_grad)
    # A share of columns is a view of the whole, which FSDP cannot flatten, and which would keep the whole in memory.
    local = tensor.to(like.device_mesh.device_type, like.dtype).contiguous()
    whole = DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return nn.Parameter(whole, requires_grad=like.requires_grad)
