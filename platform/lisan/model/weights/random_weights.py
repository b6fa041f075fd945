"""Records how a constructor initialises its parameters on `meta`, and replays it later, one tensor at a time.

The replayed weights have the bits that the constructor would have made: the same calls take the same random numbers in the
same order.
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
"The recorded random operations; a module that uses any other is refused."


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """One in-place operation on a parameter, or on a view of it."""

    function: Any
    tensor: torch.Tensor
    "On `meta`; held, so that no other tensor gets its storage."
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def storage(self) -> int:
        address: int = self.tensor.untyped_storage()._cdata
        return address

    def run(self, whole: torch.Tensor) -> None:
        """Apply the operation to the real tensor."""
        view = whole.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())
        self.function(view, *self.args, **self.kwargs)


class _Recorder(TorchDispatchMode):
    """Records the in-place operations on `meta` tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RecordedCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and args and args[0].is_meta:
            if torch.Tag.nondeterministic_seeded in func.tags and func not in RANDOM:
                raise NotImplementedError(f"{func} draws random weights and cannot be replayed tensor by tensor")
            self.calls.append(RecordedCall(func, args[0], tuple(args[1:]), kwargs or {}))
        return func(*args, **(kwargs or {}))


@dataclass
class RandomWeights:
    """Seeded random weights by name, not drawn yet."""

    seed: int
    calls: list[RecordedCall] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    "Parameter names by storage address."

    def name_parameters(self, module: nn.Module) -> None:
        """Note the names of a module's recorded parameters."""
        known = {call.storage for call in self.calls}
        for name, parameter in module.named_parameters():
            if parameter.is_meta and parameter.untyped_storage()._cdata in known:
                self.names[parameter.untyped_storage()._cdata] = name

    def __call__(self, parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
        """Draw every tensor in turn and yield the wanted parts.

        Only random calls keep their order across tensors. Other calls on a tensor run right after its last random one, so
        that no second tensor is held.
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
                _make([call])  # overwritten later, but it uses up random numbers


@torch.no_grad()
def _make(calls: list[RecordedCall]) -> torch.Tensor:
    """Return the tensor after the calls; the first call covers it whole."""
    first = calls[0].tensor
    whole = torch.empty(first.shape, dtype=first.dtype)
    assert first.numel() * first.itemsize == first.untyped_storage().nbytes(), calls[0].function
    for call in calls:
        call.run(whole)
    return whole


@contextmanager
def record_random_weights(seed: int) -> Iterator[RandomWeights]:
    """Put the parameters made in this context on `meta` and record how to draw them."""
    from accelerate import init_empty_weights

    found = RandomWeights(seed)
    with _Recorder() as recorder, init_empty_weights(include_buffers=False):
        yield found
    found.calls += recorder.calls
