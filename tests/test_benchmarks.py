"""Benchmarks for machines that the tests do not run on are walked through on this one."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lisan.cluster.precision import find_precision
from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.errors import ConfigError
from lisan.core.storage import Location
from lisan.model.attention.packed import IMPLEMENTATIONS
from lisan.model.config import Attention, ShapeConfig

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
    short = find_precision("cpu").precision.short
    assert any("torch " + torch.__version__ in line and f"{short} measured by a" in line for line in lines)


def test_without_a_gpu_nothing_is_claimed() -> None:
    assert run().stdout == "not measured: no GPU\n"


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("gpu_training")


ARGUMENTS = {"vocabulary": 640, "activation_checkpointing": "none", "compile": False, "context": 64}


@pytest.mark.parametrize("attention", [Attention.sdpa, Attention.flex])
def test_a_model_is_measured_with_the_attention_that_was_asked_for(script: Any, attention: Attention) -> None:
    arguments = argparse.Namespace(**ARGUMENTS, attention=attention.value)
    with ProcessGroup(Worker()):
        scorer = script.build(script.TINY["tiny-lora"], arguments, "cpu")
    assert scorer.model.config._attn_implementation == IMPLEMENTATIONS[attention]


def test_what_a_machine_cannot_compute_is_said_and_the_rest_goes_on(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: str) -> None:
        raise ConfigError("float8=true needs a GPU")

    monkeypatch.setattr(script, "check_float8", refuse)
    arguments = argparse.Namespace(**ARGUMENTS, attention="sdpa")
    case, barred = (script.Case("nano", is_lora=False, float8=True, least_mfu=bar) for bar in (0.0, 0.4))
    assert script.report("float8", case, arguments, Worker(), 1.0)
    assert not script.report("float8", barred, arguments, Worker(), 1.0)
    assert capsys.readouterr().out.count("not measured: float8=true needs a GPU") == 2


def test_checkpoints_of_both_kinds_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = load_script("checkpoint")
    shape = ShapeConfig(
        num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, num_kv_heads=1, max_positions=64
    )
    for name, value in {"SHAPE": shape, "VOCABULARY": 64, "CONTEXT": 16}.items():
        monkeypatch.setattr(script, name, value)
    found = script.measure_stalls(Location(str(tmp_path)), rounds=1)
    assert all(value > 0 for name, value in found.items() if name != "beside")
