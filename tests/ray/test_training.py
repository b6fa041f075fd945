"""Rung 3: two real Ray workers train, are killed and resume; the result is what one process would have made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(
    root: Path, pair: dict[str, torch.Tensor]
) -> None:
    process = subprocess.Popen(
        command("train_cpt", "name=killed", "cluster=cpu2", *TINY, *STEPS),
        env=setting(root),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoints = root / "checkpoints" / "killed" / "v1"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*/checkpoint.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "model" / "killed" / "v1" / "manifest.json").exists()
    again = job(root, "train_cpt", "name=killed", "cluster=cpu2", *TINY, *STEPS)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    killed = weights(root, "killed")
    assert all(torch.equal(pair[key], killed[key]) for key in pair)


def test_more_workers_than_the_cluster_has_is_refused_in_one_sentence(root: Path) -> None:
    done = job(root, "train_cpt", "name=many", "cluster=gpu8", *TINY, "loop.num_steps=2")
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
        done = submit_when_ready(*TINY[1:], "loop.num_steps=4", "loop.checkpoint_every=4")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        assert weights(root, "tiny")
        failed = submit("optim.peak_lrr=1")
        assert failed.returncode != 0
        assert "did you mean optim.peak_lr?" in failed.stdout
    finally:
        head.terminate()
        head.wait(timeout=60)
