"""Finds the precision in which each device multiplies fast, and resolves one precision for all devices of a run.

Measured on one core with AVX512-BF16: a linear layer of 512 x 512 reaches 0.49 TFLOP/s in bfloat16 and 0.10 in float32; the same
core restricted to AVX2 reaches 0.02 and 0.11.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lisan.cluster.config import Precision


@dataclass(frozen=True)
class Resolved:
    """A precision other than auto, with its reason as text."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"precision: {self.precision.short} ({self.reason})"


def find_precision(device: str) -> Resolved:
    """Return bfloat16 where this process's device multiplies it natively, else float32."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = _cpu_multiplies_bf16()
    kind = "GPU" if device.startswith("cuda") else "CPU"
    how = "natively" if is_native else "without native instructions"
    precision = Precision.bfloat16 if is_native else Precision.float32
    return Resolved(precision, f"this {kind} multiplies bf16 {how}")


def _cpu_multiplies_bf16() -> bool:
    """Check the instructions of the CPU and whether torch's kernels may use them: ONEDNN_MAX_CPU_ISA can forbid it.

    oneDNN alone returns True on every CPU with AVX512, where it computes bf16 slower than fp32.
    """
    able = torch.cpu.get_capabilities()
    has_instructions = any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last is ARM's
    return has_instructions and _onednn_multiplies_bf16()


def _onednn_multiplies_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(asked: Precision, found: Sequence[Resolved]) -> Resolved:
    """Return the precision of a run from the configured one and those of all its devices."""
    slow = next((rank for rank, one in enumerate(found) if one.precision is Precision.float32), None)
    reason = found[slow or 0].reason
    if slow is not None and len(found) > 1:
        reason = f"worker {slow} of {len(found)}: {reason}"
    if asked is Precision.auto:
        return Resolved(found[slow or 0].precision, f"auto: {reason}")
    if asked is Precision.bfloat16 and slow is not None:
        return Resolved(asked, f"as configured; {reason}, precision=auto takes fp32 here")
    return Resolved(asked, "as configured")
