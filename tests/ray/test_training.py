"""Rung 3: two real Ray workers train, are killed and resume; the result is what one process would have made."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
PYTHON = sys.executable
TINY = [
    "model=nano",
    "model.shape.num_layers=2",
    "model.shape.hidden_size=64",
    "model.shape.intermediate_size=128",
    "model.shape.num_heads=2",
    "model.shape.num_kv_heads=2",
    "tokens=tokens/t@v1",
    "model.tokenizer=tokenizer/t@v1",
    "precision=float32",
    "save_precision=float32",
    "loop.step_rows=8",
    "loop.micro_rows=4",
    "loop.log_every=5",
]

pytestmark = pytest.mark.ray


def job(root: Path, name: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does."""
    return subprocess.run(
        command(name, *overrides),
        env=setting(root, **environment),
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )


def command(name: str, *overrides: str) -> list[str]:
    return [PYTHON, f"jobs/{name}.py", *overrides]


def setting(root: Path, **environment: str) -> dict[str, str]:
    return {**os.environ, "LISAN_HOME": str(root), "OMP_NUM_THREADS": "1", **environment}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a small world, its tokenizer and its tokens."""
    root = tmp_path_factory.mktemp("root")
    for name, *overrides in (
        ("build_corpus", "data=world", "name=t", "microworld.num_documents=300"),
        (
            "expand_tokenizer",
            "vocabulary=new",
            "name=t",
            "corpus=corpus/t@v1",
            "sources=[en_articles]",
            "num_pieces=512",
        ),
        (
            "encode_tokens",
            "name=t",
            "corpus=corpus/t@v1",
            "tokenizer=tokenizer/t@v1",
            "sources=[en_articles]",
            "context_length=64",
        ),
    ):
        done = job(root, name, *overrides)
        assert done.returncode == 0, done.stderr
    return root


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "model" / name / "v1" / "model.safetensors")


STEPS = ["loop.num_steps=30", "loop.checkpoint_every=5"]


@pytest.fixture(scope="module")
def pair(root: Path) -> dict[str, torch.Tensor]:
    """The weights that two Ray workers make without a disturbance."""
    done = job(root, "train_cpt", "name=pair", "cluster=cpu2", *TINY, *STEPS)
    assert done.returncode == 0, done.stderr
    return weights(root, "pair")


def test_two_ray_workers_train_what_one_process_trains(root: Path, pair: dict[str, torch.Tensor]) -> None:
    done = job(root, "train_cpt", "name=alone", "cluster=local", *TINY, *STEPS)
    assert done.returncode == 0, done.stderr
    alone = weights(root, "alone")
    # Gradients are summed in another order over two ranks; Adam turns that into differences of this size.
    assert max(float((alone[key] - pair[key]).abs().max()) for key in alone) < 2e-3
    assert books(root, "alone") == books(root, "pair")


@pytest.mark.slow
def test_ray_workers_that_split_blocks_read_the_rows_themselves_and_train_the_same(
    root: Path, pair: dict[str, torch.Tensor]
) -> None:
    done = job(root, "train_cpt", "name=split", "cluster=cpu2", "sharding.tensor_parallel_size=2", *TINY, *STEPS)
    assert done.returncode == 0, done.stderr
    split = weights(root, "split")
    assert max(float((split[key] - pair[key]).abs().max()) for key in split) < 2e-3
    assert books(root, "split") == books(root, "pair")


def books(root: Path, name: str) -> dict[str, Any]:
    """Return what the last checkpoint of a run says it has read, and the hash of all row ids in order."""
    last = max((root / "checkpoints" / name / "v1").glob("step_*/checkpoint.json"))
    facts = json.loads(last.read_bytes())
    return {key: facts[key] for key in ("step", "rows_hash", "read")}


def start(root: Path, name: str) -> subprocess.Popen[str]:
    """Start a run on two workers and return when it has made a checkpoint."""
    process = subprocess.Popen(
        command("train_cpt", f"name={name}", "cluster=cpu2", *TINY, *STEPS),
        env=setting(root),
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    checkpoints = root / "checkpoints" / name / "v1"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*/checkpoint.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    ("number", "cluster"),
    [("pair", "cpu2"), *(pytest.param(*to, marks=pytest.mark.slow) for to in (("one", "cpu1"), ("none", "local")))],
)
def test_a_killed_run_goes_on_with_any_number_of_workers_and_reads_the_same_rows(
    number: str, cluster: str, root: Path, pair: dict[str, torch.Tensor]
) -> None:
    name = f"killed_{number}"
    process = start(root, name)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (root / "model" / name / "v1" / "manifest.json").exists()
    assert books(root, name)["step"] < books(root, "pair")["step"]
    again = job(root, "train_cpt", f"name={name}", f"cluster={cluster}", *TINY, *STEPS)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    assert books(root, name) == books(root, "pair")
    killed = weights(root, name)
    away = max(float((pair[key] - killed[key]).abs().max()) for key in pair)
    assert away < 2e-3 if cluster != "cpu2" else away == 0


def test_a_killed_worker_comes_back_and_the_run_ends_the_same(root: Path, pair: dict[str, torch.Tensor]) -> None:
    process = start(root, "wounded")
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in child.name()
    ]
    assert len(workers) == 2
    workers[0].kill()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "resumed at step" in said
    assert books(root, "wounded") == books(root, "pair")
    wounded = weights(root, "wounded")
    assert all(torch.equal(pair[key], wounded[key]) for key in pair)
    first, *lines = map(
        json.loads, (root / "checkpoints" / "wounded" / "v1" / "metrics.jsonl").read_text().splitlines()
    )
    assert first["header"]["resumed"]
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20, 25, 30]
    assert "page: " in said
    assert "MFU of " in said
    assert (root / "model" / "wounded" / "v1" / "run.html").exists()


def test_more_workers_than_the_cluster_has_is_refused_in_one_sentence(root: Path) -> None:
    done = job(root, "train_cpt", "name=many", "cluster=gpu8", *TINY, "loop.num_steps=20")
    assert done.returncode == 1
    assert "cluster needs 8 GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_submitted_job_trains_leaves_its_artifacts_and_tells_the_truth(root: Path) -> None:
    """`ray start --head`, then `ray job submit` as README has it, with a smaller model."""
    scripts = Path(PYTHON).parent
    environment = setting(root, RAY_AUTH_MODE="token", PATH=f"{scripts}:{os.environ['PATH']}")
    environment.pop("RAY_ADDRESS", None)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(scripts / words[0]), *words[1:]],
            env=environment,
            cwd=REPOSITORY,
            text=True,
            capture_output=True,
            timeout=240,
            check=False,
        )

    def submit(*overrides: str) -> subprocess.CompletedProcess[str]:
        return run(
            "ray",
            "job",
            "submit",
            "--address",
            "http://127.0.0.1:8275",
            "--working-dir",
            ".",
            "--",
            "python",
            "jobs/train_cpt.py",
            "recipe=tiny",
            "cluster=cpu2",
            "optim.peak_lr=1e-3",
            *overrides,
        )

    def submit_when_ready(*overrides: str) -> subprocess.CompletedProcess[str]:
        """Submit as soon as the dashboard and its agent are up, which is some seconds after the head."""
        deadline = time.monotonic() + 90
        while True:
            done = submit(*overrides)
            if "submitted successfully" in done.stdout or time.monotonic() > deadline:
                return done
            time.sleep(2)

    run("ray", "get-auth-token", "--generate")
    # --block keeps the cluster the test's own: `ray stop` would end every Ray of the machine.
    head = subprocess.Popen(
        [
            str(scripts / "ray"),
            "start",
            "--head",
            "--port",
            "6391",
            "--disable-usage-stats",
            "--block",
            "--dashboard-port",
            "8275",
            "--dashboard-agent-listen-port",
            "52399",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        done = submit_when_ready(*TINY[1:], "loop.num_steps=4", "optim.warmup_steps=4", "loop.checkpoint_every=4")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        assert weights(root, "tiny")
        failed = submit("optim.peak_lrr=1")
        assert failed.returncode != 0
        assert "did you mean optim.peak_lr?" in failed.stdout
    finally:
        head.terminate()
        head.wait(timeout=60)
