"""Rung 3, drills: a worker that hangs and a node that is lost; each run ends by itself and has read the same rows."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import psutil
import pytest

from lisan.core.artifact import Store

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

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drills") / "root"
    copytree(tiny_store.root.root, root)
    return root


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


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[str, Any]:
    """The books of a run in one process that nothing happens to; they are those of any number of workers."""
    process = start(root, "undisturbed", "cluster=local")
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    return books(root, "undisturbed")


def assert_came_back(root: Path, name: str, process: subprocess.Popen[str], undisturbed: dict[str, Any]) -> str:
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert "resumed at step" in said
    assert books(root, name) == undisturbed
    assert (root / "model" / name / "v1" / "manifest.json").exists()
    return said


def workers_below(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in child.name()]


def test_a_worker_that_stands_still_is_replaced(root: Path, undisturbed: dict[str, Any]) -> None:
    process = start(root, "stopped", "cluster=cpu2", "cluster.step_timeout_s=4")
    wait_until(lambda: books(root, "stopped")["step"], process)
    stopped = workers_below(process.pid)[1]
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert_came_back(root, "stopped", process, undisturbed)
        assert not stopped.is_running()
    finally:
        if stopped.is_running():
            stopped.kill()


class Node:
    """A Ray node of this machine that is a test's own: `ray stop` would end every Ray there is."""

    def __init__(self, complaints: Path, *arguments: str) -> None:
        self.complaints = complaints
        # A node counts as lost after two seconds of silence instead of half a minute.
        health = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "1000"}
        environment = {f"RAY_health_check_{name}": value for name, value in health.items()}
        with open(complaints, "wb") as stderr:
            self.process = subprocess.Popen(
                [str(RAY), "start", *arguments, "--num-cpus=3", "--disable-usage-stats", "--block"],
                env={**os.environ, "RAY_AUTH_MODE": "disabled", **environment},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def wait_for(self, port: int) -> None:
        """Return when somebody listens on this port."""
        deadline = time.monotonic() + HEAD_WAIT_S
        while not is_open(port):
            assert self.process.poll() is None, self.complaints.read_text()
            assert time.monotonic() < deadline, self.complaints.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End everything on the node at once, as a loss of power would."""
        whole = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for process in whole:
            process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nodes(port: int, tmp_path: Path) -> Iterator[list[Node]]:
    head = Node(tmp_path / "head.txt", "--head", f"--port={port}", "--include-dashboard=false")
    found = [head]
    try:
        head.wait_for(port)
        found.append(Node(tmp_path / "second.txt", f"--address=127.0.0.1:{port}"))
        yield found
    finally:
        for node in found:
            if node.process.poll() is None:
                node.kill()


def test_a_run_on_two_nodes_survives_the_loss_of_one(
    root: Path, undisturbed: dict[str, Any], nodes: list[Node], port: int
) -> None:
    head, second = nodes
    environment = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "disabled"}
    process = start(root, "lost", "cluster=cpu2", "cluster.num_nodes=2", "cluster.step_timeout_s=20", **environment)
    wait_until(lambda: books(root, "lost")["step"], process)
    assert [len(workers_below(node.process.pid)) for node in nodes] == [1, 1]
    second.kill()
    assert_came_back(root, "lost", process, undisturbed)
    assert head.process.poll() is None
