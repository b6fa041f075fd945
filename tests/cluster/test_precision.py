"""Which precision a device is fast in, and the one that the workers of a run agree on."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from lisan.cluster.config import Precision
from lisan.cluster.precision import Resolved, find_precision, resolve_precision

FAST = Resolved(Precision.bfloat16, "this CPU multiplies bf16 natively")
SLOW = Resolved(Precision.float32, "this CPU multiplies bf16 without native instructions")


def measure_s(dtype: torch.dtype) -> float:
    """Return the shortest of some products."""
    left = torch.ones(512, 512, dtype=dtype)
    taken = []
    for _ in range(8):
        begun = time.perf_counter()
        torch.nn.functional.linear(left, left)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def test_auto_is_the_precision_that_this_machine_multiplies_faster() -> None:
    slower = {Precision.bfloat16: torch.float32, Precision.float32: torch.bfloat16}
    found = find_precision("cpu").precision
    assert measure_s(found.dtype) < measure_s(slower[found])


def test_a_cpu_that_may_not_use_its_bf16_instructions_computes_in_fp32() -> None:
    code = "from lisan.cluster.precision import find_precision; print(find_precision('cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert said == "precision: fp32 (this CPU multiplies bf16 without native instructions)\n"


@pytest.mark.parametrize(
    ("able", "mkldnn", "precision"),
    [
        ({"avx512_bf16": True}, True, "bfloat16"),
        ({"amx_bf16": True}, True, "bfloat16"),
        ({"bf16": True}, True, "bfloat16"),
        ({"amx_bf16": True}, False, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, True, "float32"),
        ({}, True, "float32"),
    ],
)
def test_a_cpu_needs_the_instructions_and_kernels_that_use_them(
    able: dict[str, Any], mkldnn: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr("lisan.cluster.precision._onednn_multiplies_bf16", lambda: mkldnn)
    assert find_precision("cpu").precision == precision


@pytest.mark.parametrize(
    ("asked", "found", "said"),
    [
        ("auto", [FAST], "bf16 (auto: this CPU multiplies bf16 natively)"),
        ("auto", [SLOW], "fp32 (auto: this CPU multiplies bf16 without native instructions)"),
        ("auto", [FAST, FAST], "bf16 (auto: this CPU multiplies bf16 natively)"),
        ("auto", [FAST, SLOW], "fp32 (auto: worker 1 of 2: this CPU multiplies bf16 without native instructions)"),
        ("float32", [FAST], "fp32 (as configured)"),
        ("bfloat16", [FAST], "bf16 (as configured)"),
        (
            "bfloat16",
            [SLOW],
            "bf16 (as configured; this CPU multiplies bf16 without native instructions, precision=auto takes fp32 here)",
        ),
    ],
)
def test_a_run_has_one_precision_and_says_why(asked: str, found: list[Resolved], said: str) -> None:
    assert str(resolve_precision(Precision(asked), found)) == f"precision: {said}"
