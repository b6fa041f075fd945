"""Benchmarks for machines that the tests do not run on are walked through on this one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu_training.py"), *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def test_training_on_a_gpu_is_measured_through_the_loop_that_trains() -> None:
    lines = run("--tiny").stdout.splitlines()
    for case in ("tiny-full", "tiny-lora"):
        [line] = [line for line in lines if line.startswith(case)]
        assert float(line.split()[1].replace(",", "")) > 0
    assert any("torch " + torch.__version__ in line and "no MFU" in line for line in lines)


def test_without_a_gpu_nothing_is_claimed() -> None:
    assert run().stdout == "not measured: no GPU\n"
