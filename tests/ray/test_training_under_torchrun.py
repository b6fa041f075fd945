"""Two processes of torchrun train what one process trains, and say in one sentence what cannot be trained."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from safetensors.torch import load_file
from tiny import largest_difference

from lisan.core.artifact import Store

REPOSITORY = Path(__file__).parents[2]
PAIR = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = [
    "model=nano",
    "model.shape.num_layers=2",
    "model.shape.hidden_size=32",
    "model.shape.intermediate_size=64",
    "model.shape.num_heads=2",
    "model.shape.num_kv_heads=2",
    "model.tokenizer=tokenizer/tiny@v1",
    "tokens=tokens/conversations@v1",
    "precision=float32",
    "save_precision=float32",
    "loop.step_rows=8",
    "loop.micro_rows=4",
    "loop.num_steps=6",
    "optim.warmup_steps=4",
    "loop.checkpoint_every=3",
    "loop.log_every=3",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("torchrun") / "root"
    copytree(tiny_store.root.root, root)
    return root


def train(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the job as a user does, with or without torchrun before it."""
    before, overrides = [word for word in words if word in PAIR], [word for word in words if word not in PAIR]
    command = [sys.executable, *before, "jobs/train_sft.py", f"storage.root={root}", *TINY, *overrides]
    setting = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=setting, cwd=REPOSITORY, text=True, capture_output=True, timeout=200, check=False
    )


def test_two_processes_train_what_one_trains_and_the_first_alone_begins_and_finishes(root: Path) -> None:
    for name, words in (("alone", []), ("pair", PAIR)):
        done = train(root, *words, f"name={name}")
        assert done.returncode == 0, done.stderr
        for said in (f"model/{name}@v1 building", f"model/{name}@v1 done", "page: "):
            assert done.stdout.count(said) == 1, done.stdout
    manifests, weights = {}, {}
    for name in ("alone", "pair"):
        folder = root / "model" / name / "v1"
        manifests[name] = json.loads((folder / "manifest.json").read_bytes())["facts"]
        weights[name] = load_file(folder / "model.safetensors")
    # Gradients are summed in another order over two ranks; Adam turns that into differences of this size.
    assert largest_difference(weights["alone"], weights["pair"]) < 1e-4
    for fact in ("steps", "rows_hash", "tokens_seen"):
        assert manifests["alone"][fact] == manifests["pair"][fact]
    again = train(root, *PAIR, "name=pair")
    assert (again.returncode, again.stdout.count("exists, nothing to do")) == (0, 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loop.step_rows=7", r"loop.step_rows (7) must be a multiple of the number of workers (2)"),
        ("tracking.uri=http://127.0.0.1:9", "tracking.uri http://127.0.0.1:9 does not work as an MLflow store"),
        ("optim.peak_lrr=1", "did you mean optim.peak_lr?"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_nobody_waits(override: str, said: str, root: Path) -> None:
    done = train(root, *PAIR, "name=refused", override)
    assert done.returncode != 0
    assert done.stderr.count(said) == 1, done.stderr
    assert (
        "lisan" not in done.stderr.partition("Traceback")[2].partition("Root Cause")[0]
    )  # torchrun's own, of its launch
    assert not (root / "model" / "refused" / "v1" / "manifest.json").exists()
