"""Golden trajectories: loss and gradient norm of twenty steps of each objective, in fp32 on one thread.

A refactor moves no digit of them. A change that is meant to move them records them anew and says why in its commit:

    python tests/golden/trajectories.py
"""

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "platform")]

import numpy as np
import torch
from tiny import make_store, train_alone, train_config

from lisan.core.artifact import Store
from lisan.model.config import ModelConfig
from lisan.train.options import PreferenceLoss

NUM_STEPS = 20
KINDS = {
    "cpt": "documents",
    "cpt_z_loss": "documents",
    "sft": "conversations",
    "dpo": "preferences",
    "dpo_by_length": "preferences",
    "ipo": "preferences",
    "kto": "preferences",
}
CHANGES: dict[str, dict[str, Any]] = {
    "cpt_z_loss": {"optim": {"z_loss": 1e-3}},
    "dpo": {"optim": {"peak_lr": 1e-3}},
    "dpo_by_length": {"length_normalised": True, "beta": 2.0},
    "ipo": {"loss": PreferenceLoss.ipo, "beta": 0.5, "length_normalised": True},
    "kto": {"loss": PreferenceLoss.kto, "beta": 0.5, "optim": {"peak_lr": 1e-3}},
}


def follow(store: Store, folder: Path) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield each objective's name and curves: pretraining from random weights, then the others from its model."""
    loop = {"num_steps": NUM_STEPS, "checkpoint_every": NUM_STEPS}
    for name, kind in KINDS.items():
        start: dict[str, Any] = {} if name == "cpt" else {"model": ModelConfig(path=str(folder / "cpt" / "model"))}
        changes = {**start, **CHANGES.get(name, {})}
        run = train_alone(store, train_config(store, kind, loop=loop, **changes), folder / name)
        yield name, {curve: run.curve(curve) for curve in ("loss", "grad_norm")}


def read(name: str) -> dict[str, Any]:
    """Return the recorded curves of an objective and the environment that recorded them."""
    recorded: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_bytes())
    return recorded


def residuals(found: Sequence[float], golden: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the signed differences of two curves, relative to the recorded one."""
    return (np.array(found) - np.array(golden)) / np.abs(golden)


def environment() -> dict[str, str]:
    from importlib import metadata

    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {"python": platform.python_version(), "machine": platform.machine(), "cpu": cpu_capability(), **versions}


def cpu_capability() -> str:
    """Return the instruction set that torch's kernels use: another one rounds in another order."""
    return torch.backends.cpu.get_cpu_capability()


def record() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        store = make_store(f"{scratch}/store")
        for name, curves in follow(store, Path(scratch)):
            content = {"environment": environment(), "command": "python tests/golden/trajectories.py", **curves}
            (Path(__file__).parent / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    record()
