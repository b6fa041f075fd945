"""Random weights without memory for them: what a constructor draws is written down, and drawn when it is wanted.

In: the code that makes a module. Out: that module with parameters on the device `meta`, and a `Drawing` that makes the same
weights later, one tensor at a time. Always: the same bits as the constructor would have made, because the same calls
meet the same random numbers in the same order. `load` and `adapter` write down, `fill` draws.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lisan.model.weights.load_shards import Parts, plain_name

RANDOM = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}
"The calls that take random numbers; a module that takes any other way is refused by `Drawing`."


@dataclass(frozen=True, eq=False)
class Call:
    """One change in place of a parameter, or of a view of it."""

    function: Any
    place: torch.Tensor
    "On the device `meta`; kept, so that its storage stays its own."
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def storage(self) -> int:
        address: int = self.place.untyped_storage()._cdata
        return address

    def run(self, whole: torch.Tensor) -> None:
        """Do to a real tensor what was done to the parameter that it stands for."""
        place = whole.as_strided(self.place.shape, self.place.stride(), self.place.storage_offset())
        self.function(place, *self.args, **self.kwargs)


class _Recorder(TorchDispatchMode):
    """Writes down what changes tensors on `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and args and args[0].is_meta:
            if torch.Tag.nondeterministic_seeded in func.tags and func not in RANDOM:
                raise NotImplementedError(f"{func} draws weights in a way that cannot be repeated tensor by tensor")
            self.calls.append(Call(func, args[0], tuple(args[1:]), kwargs or {}))
        return func(*args, **(kwargs or {}))


@dataclass
class Drawing:
    """Random weights that are yet to be drawn, by name."""

    seed: int
    calls: list[Call] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    "Of the parameters, by their storage."

    def keep(self, module: nn.Module) -> None:
        """Remember the names of a module's parameters that were written down."""
        known = {call.storage for call in self.calls}
        for name, parameter in module.named_parameters():
            if parameter.is_meta and parameter.untyped_storage()._cdata in known:
                self.names[parameter.untyped_storage()._cdata] = name

    def __call__(self, parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
        """Draw all, whole and one after the other, and yield the wanted parts.

        Only random calls must keep their order among all tensors: what else is done to a tensor follows its last one at once,
        so that no second tensor is held.
        """
        torch.manual_seed(self.seed)
        wanted = {plain_name(name): name for name in parts}
        begin: dict[int, int] = {}
        for index, call in enumerate(self.calls):
            if call.storage not in begin or call.function in RANDOM:
                begin[call.storage] = index
        for index, call in enumerate(self.calls):
            if begin[call.storage] == index:
                whole = _make([later for later in self.calls[index:] if later.storage == call.storage])
                name = wanted.get(self.names.get(call.storage, ""))
                if name is not None:
                    yield name, whole[parts[name]].clone()
            elif call.function in RANDOM:
                _make([call])  # overwritten later, but its random numbers are used up


@torch.no_grad()
def _make(calls: list[Call]) -> torch.Tensor:
    """Return the tensor that is left after calls of which the first covers it."""
    place = calls[0].place
    whole = torch.empty(place.shape, dtype=place.dtype)
    assert place.numel() * place.itemsize == place.untyped_storage().nbytes(), calls[0].function
    for call in calls:
        call.run(whole)
    return whole


@contextmanager
def drawing(seed: int) -> Iterator[Drawing]:
    """Put parameters that are made in here on `meta` and write down how they would have been drawn."""
    from accelerate import init_empty_weights

    found = Drawing(seed)
    with _Recorder() as recorder, init_empty_weights(include_buffers=False):
        yield found
    found.calls += recorder.calls
