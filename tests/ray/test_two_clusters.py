"""A second Ray that is started on the machine, as `serve run` beside a job does, disturbs no run of the first."""

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from time import sleep

import pytest
from drill import WAIT_S, Node, books, free_port, start, wait_until, workers_below

from lisan.core.artifact import Store
from lisan.core.stage import ClusterConfig

ENDLESS = ["loop.num_steps=100000", "mix.max_epochs=100000", "loop.checkpoint_every=20"]
CLEANER_ROUNDS_S = 5.0
"Ray Train's cleaner asks every second whether the controller of its run lives."

pytestmark = pytest.mark.ray


@pytest.fixture
def root(tiny_store: Store, tmp_path: Path) -> Path:
    copytree(tiny_store.root.root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Node]:
    """A second cluster, with the dashboard that answers Ray's state API."""
    port = free_port()
    ports = [f"--{name}-port={free_port()}" for name in ("dashboard", "dashboard-agent-listen", "ray-client-server")]
    node = Node(tmp_path / "second.txt", "--head", f"--port={port}", *ports)
    try:
        node.wait()
        yield node
    finally:
        node.kill()


def test_a_training_run_keeps_its_workers_while_another_cluster_starts(
    root: Path, request: pytest.FixtureRequest
) -> None:
    process = start(root, "beside", "cluster=cpu2", *ENDLESS)
    try:
        wait_until(lambda: books(root, "beside")["step"], process)
        workers = {worker.pid for worker in workers_below(process.pid)}
        request.getfixturevalue("cluster")
        sleep(CLEANER_ROUNDS_S)
        step = books(root, "beside")["step"]
        wait_until(lambda: books(root, "beside")["step"] > step, process)
        assert {worker.pid for worker in workers_below(process.pid)} == workers
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=WAIT_S)
    assert "resumed at step" not in said


def test_what_a_stage_starts_beside_another_cluster_knows_its_own(cluster: Node) -> None:
    import ray

    from lisan.cluster.ray import answer, connect, map_on_ray

    connect(ClusterConfig())
    try:
        found = map_on_ray(lambda row: answer(row, lambda _: os.environ["RAY_ADDRESS"]), [1, 2])
        assert set(found) == {ray.get_runtime_context().gcs_address}
        assert "RAY_ADDRESS" not in os.environ
    finally:
        ray.shutdown()
