"""Rung 3, drills: a worker that hangs and a node that is lost; each run ends by itself and has read the same rows."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from drill import WAIT_S, Node, books, free_port, start, wait_until, workers_below

from lisan.core.artifact import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drills") / "root"
    copytree(tiny_store.root.root, root)
    return root


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


def test_a_worker_that_stands_still_is_replaced(root: Path, undisturbed: dict[str, Any]) -> None:
    process = start(root, "stopped", "cluster=cpu2", "runtime.step_timeout_s=4")
    wait_until(lambda: books(root, "stopped")["step"], process)
    stopped = workers_below(process.pid)[1]
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert_came_back(root, "stopped", process, undisturbed)
        assert not stopped.is_running()
    finally:
        if stopped.is_running():
            stopped.kill()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def nodes(port: int, tmp_path: Path) -> Iterator[list[Node]]:
    head = Node(tmp_path / "head.txt", "--head", f"--port={port}", "--include-dashboard=false")
    found = [head]
    try:
        head.wait()
        found.append(Node(tmp_path / "second.txt", f"--address=127.0.0.1:{port}"))
        found[1].wait()
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
    process = start(root, "lost", "cluster=cpu2", "cluster.num_nodes=2", "runtime.step_timeout_s=20", **environment)
    wait_until(lambda: books(root, "lost")["step"], process)
    assert [len(workers_below(node.process.pid)) for node in nodes] == [1, 1]
    second.kill()
    assert_came_back(root, "lost", process, undisturbed)
    assert head.process.poll() is None


def test_a_worker_that_is_killed_is_one_line_and_ctrl_c_leaves_a_checkpoint(
    root: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(root, "killed", "cluster=cpu2")
    wait_until(lambda: books(root, "killed")["step"], process)
    workers_below(process.pid)[1].kill()
    wait_until(lambda: books(root, "killed")["step"] > 5, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to Ray's processes too
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said
    assert (
        len(re.findall(r"rank \d ended: its process was killed, .*; attempt 2 of 4 goes on from step \d+", said)) == 1
    )
    assert "Traceback" not in said
    step = books(root, "killed")["step"]
    assert f"interrupted; the same command goes on from step {step}" in said
    assert_came_back(root, "killed", start(root, "killed", "cluster=cpu2"), undisturbed)
