"""Precision of a computation: its choices and its dtype."""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    auto = "auto"
    "bfloat16 where every device of the run multiplies it natively, float32 elsewhere."
    bfloat16 = "bfloat16"
    float32 = "float32"

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        assert self is not Precision.auto  # resolved before any computation
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype

    @property
    def short(self) -> str:
        return self.value.replace("bfloat", "bf").replace("float", "fp")
