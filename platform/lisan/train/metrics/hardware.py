"""Peak speed and memory of a worker's device.

A peak comes with the words for its source, because an MFU means nothing without its denominator.

Peaks of GPUs are the vendors' dense bf16 figures; they are not checked on GPUs yet.
"""

import math
import os
import resource
import sys
import time
from dataclasses import dataclass, replace

import torch

TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H200 NVL": 835.0,
    "GH200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "MI300X": 1307.0,
}
"bf16, dense, by a part of the name; a longer name goes before a shorter one that it holds."
MEASURED_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
MEASURE_S = 0.3
"For all sizes together, and a product or two of the largest: a CPU at 0.03 TFLOP/s is through within a second."
MEASURE_AGAIN_S = 0.05
"Several ticks of the scheduler, by which the CPU time of other threads is counted."
BUSY = 0.8
"Share of its threads' time below which a process did not have the machine to itself."


@dataclass(frozen=True)
class Peak:
    """The denominator of MFU, for one worker."""

    tflops: float
    said: str
    is_measured: bool = False


@dataclass(frozen=True)
class Measured:
    """The fastest product of two square matrices that this process has timed."""

    tflops: float
    size: int
    had_ratio: float
    "Share of its threads' time in which the process was running."


_fastest: dict[tuple[str, torch.dtype, int], Measured] = {}
"By device, type and threads."


def find_peak(device: str, dtype: torch.dtype, given: float | None = None) -> Peak:
    """Return the given peak, or else the data sheet's of a GPU in bf16, or else the measured speed of a matrix product."""
    kind = _name(dtype)
    if given:
        return _said(given, f"{kind}, as runtime.peak_tflops says")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    known = look_up(name) if dtype is torch.bfloat16 else None
    if known is not None:
        return _said(known, f"{kind} ({name}, dense, data sheet)")
    key = (device, dtype, torch.get_num_threads())
    if key not in _fastest:
        sizes = MEASURED_SIZES[device.split(":", maxsplit=1)[0]]
        for size in sizes:
            _measure(key, size, MEASURE_S / len(sizes))
    return _measured_peak(key)


def measure_again(device: str, dtype: torch.dtype) -> Peak:
    """Time some more products of the size that was fastest; return the best of all."""
    key = (device, dtype, torch.get_num_threads())
    _measure(key, _fastest[key].size, MEASURE_AGAIN_S)
    return _measured_peak(key)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def _measured_peak(key: tuple[str, torch.dtype, int]) -> Peak:
    device, dtype, threads = key
    found = _fastest[key]
    where = f"{threads} threads" if threads > 1 else "1 thread"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name(device)
    elif found.had_ratio < BUSY:
        where += f" of a busy machine, which left it {found.had_ratio:.0%} of their time"
    size = found.size
    said = _said(found.tflops, f"{_name(dtype)} measured by a {size} x {size} x {size} matmul on {where}")
    return replace(said, is_measured=True)


def _said(tflops: float, rest: str) -> Peak:
    return Peak(tflops, f"{tflops:.3g} TFLOP/s {rest}")


def look_up(name: str) -> float | None:
    """Return the peak of a GPU by its name; None for one that the table does not hold, and for a slice of one (MIG)."""
    if "MIG" in name:
        return None
    words = name.replace("-", " ").split()
    for key in sorted(TFLOPS, key=len, reverse=True):
        parts = key.split()
        if any(words[start : start + len(parts)] == parts for start in range(len(words))):
            return TFLOPS[key]
    return None


def _measure(key: tuple[str, torch.dtype, int], size: int, seconds: float) -> None:
    """Time products of two square matrices for so many seconds, above 0, and remember the fastest."""
    device, dtype, threads = key
    # A GPU is faster on numbers that are all the same than on those of a model. The run's own draws stay as they are.
    draws = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, dtype=dtype, device=device, generator=draws) for _ in range(2))
    torch.mm(left, right)  # the first one also allocates
    begun, used = time.perf_counter(), time.process_time()
    best = math.inf
    while time.perf_counter() < begun + seconds:
        best = min(best, _time_product(left, right))
    had_ratio = min(1.0, (time.process_time() - used) / (time.perf_counter() - begun) / threads)
    found = Measured(2 * size**3 / best / 1e12, size, had_ratio)
    _fastest[key] = max(_fastest.get(key, found), found, key=lambda one: one.tflops)


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait_for(left)
    begun = time.perf_counter()
    torch.mm(left, right)
    _wait_for(left)
    return time.perf_counter() - begun


def _wait_for(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def read_memory(device: str) -> tuple[int, int]:
    """Return the bytes that this worker holds and the most it has held: what torch allocated on a GPU, else of the process."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    import psutil

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident = psutil.Process(os.getpid()).memory_info().rss
    return resident, max(resident, most if sys.platform == "darwin" else 1024 * most)
