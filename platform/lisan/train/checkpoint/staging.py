"""Copies the training state to main memory while the next step computes.

The copy is the state at `begin`: the loop waits for it before it changes a weight. Its buffers are allocated once.

The copy from a GPU (pinned memory, a stream of its own) is not tested yet.
"""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

State = dict[str, Any]


class Staging:
    """Buffers as large as this rank's share of the state."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._buffers: dict[tuple[int, str], torch.Tensor] = {}
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._settled: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Record an event on the device, in the training thread: work queued before it is part of the copy."""
        if self._stream is not None:
            self._settled = torch.cuda.Event()
            self._settled.record(torch.cuda.current_stream(self.device))

    @torch.no_grad()
    def copy(self, state: State) -> State:
        """Return the state over the buffers; on any thread."""
        leaves, spec = tree_flatten(state)
        with torch.cuda.stream(self._stream):  # nothing where there is none
            if self._stream is not None and self._settled is not None:
                self._stream.wait_event(self._settled)
            copied = [self._copy_leaf(*leaf) for leaf in enumerate(leaves)]
        if self._stream is not None:
            self._stream.synchronize()
        whole: State = tree_unflatten(copied, spec)
        return whole

    def _copy_leaf(self, place: int, leaf: Any) -> Any:
        if isinstance(leaf, DTensor):
            # The constructor keeps the shard in main memory; `from_local` would send it back to the mesh's device.
            return DTensor(self._copy_tensor(place, leaf.to_local()), leaf._spec, requires_grad=False)
        return self._copy_tensor(place, leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _copy_tensor(self, place: int, tensor: torch.Tensor) -> torch.Tensor:
        if not hasattr(tensor, "__tensor_flatten__"):
            return self._copy_plain((place, ""), tensor)
        # Moments in bytes are a tensor of several; a plain copy would restore them.
        names, made_with = tensor.__tensor_flatten__()  # type: ignore[operator]
        inner = {name: self._copy_plain((place, name), getattr(tensor, name)) for name in names}
        copied: torch.Tensor = type(tensor).__tensor_unflatten__(inner, made_with)  # type: ignore[attr-defined]
        return copied

    def _copy_plain(self, place: tuple[int, str], tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = self._stream is not None
            buffer = self._buffers[place] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return buffer.copy_(tensor, non_blocking=True)
