"""What the drills share: jobs started as users start them, and Ray nodes of this machine that are a test's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
TINY = [
    "model=nano",
    "model.shape.num_layers=2",
    "model.shape.hidden_size=64",
    "model.shape.intermediate_size=128",
    "model.shape.num_heads=2",
    "model.shape.num_kv_heads=2",
    "tokens=tokens/documents@v1",
    "model.tokenizer=tokenizer/tiny@v1",
    "precision=float32",
    "save_precision=float32",
    "loop.step_rows=8",
    "loop.micro_rows=4",
    "loop.log_every=5",
    "loop.num_steps=100",
    "loop.checkpoint_every=5",
    "loop.num_epochs=100",
    "mix.max_epochs=100",
]
WAIT_S = 120.0
HEAD_WAIT_S = 60.0


def start(root: Path, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Start a run as a user does, on storage that several nodes may share."""
    return subprocess.Popen(
        [
            sys.executable,
            "jobs/train_cpt.py",
            f"name={name}",
            f"storage.root=file://{root}",
            f"tracking.uri=file://{root}/mlruns",  # a database in a file is refused for several nodes
            *TINY,
            *overrides,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_ALLOW_FILE_STORE": "true", **environment},
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_until(holds: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Return what holds as soon as it does, while the process lives."""
    deadline = time.monotonic() + WAIT_S
    while not (found := holds()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def books(root: Path, name: str) -> dict[str, Any]:
    """Return what the last checkpoint of a run says it has read, and the hash of all row ids in order."""
    last = max((root / "checkpoints" / name / "v1").glob("step_*/checkpoint.json"), default=None)
    facts = json.loads(last.read_bytes()) if last else {"step": 0, "rows_hash": "", "read": {}}
    return {key: facts[key] for key in ("step", "rows_hash", "read")}


def workers_below(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in child.name()]


class Node:
    """A Ray node of this machine that is a test's own: `ray stop` would end every Ray there is."""

    def __init__(self, complaints: Path, *arguments: str) -> None:
        self.complaints = complaints
        # A node counts as lost after two seconds of silence instead of half a minute.
        health = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "1000"}
        environment = {f"RAY_health_check_{name}": value for name, value in health.items()}
        self.output = complaints.with_suffix(".out")
        with open(complaints, "wb") as stderr, open(self.output, "wb") as stdout:
            self.process = subprocess.Popen(
                [str(RAY), "start", *arguments, "--num-cpus=3", "--disable-usage-stats", "--block"],
                env={**os.environ, "RAY_AUTH_MODE": "disabled", **environment},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when the node is part of its cluster."""
        deadline = time.monotonic() + HEAD_WAIT_S
        while b"Ray runtime started" not in self.output.read_bytes():
            assert self.process.poll() is None, self.complaints.read_text()
            assert time.monotonic() < deadline, self.complaints.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End everything on the node at once, as a loss of power would."""
        whole = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for process in whole:
            process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
