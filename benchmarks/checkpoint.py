"""Claim: a checkpoint that is written while training goes on holds training up for less than 5 % of the time that one takes
which training waits for; and a run that is started again is back at its first new step at once.

A model of 28 M parameters with its full training state, weights and both moments in fp32 (337 MB), trains in this process.
Checkpoints of the two kinds alternate, some steps apart, in one run. What counts as held up is the time inside the checkpointer's
calls, which is all of what the loop waits for; beside it stands by how much the steps get slower that compute while a
checkpoint is written, because a CPU that trains also hashes and writes here. Then the run is started again in a new process.

    python benchmarks/checkpoint.py

Prints every figure beside its bar; exits 1 below one of them.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import numpy as np
import torch

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.storage import Location
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.model.load import make_random_model
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Batch, Scorer, collate
from lisan.model.weights.load_shards import load_shards
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.checkpointer import Checkpointer
from lisan.train.objectives import causal_lm
from lisan.train.optim import make_optimizer
from lisan.train.options import LoopConfig, OptimConfig

MAX_STALL_RATIO = 0.05
VOCABULARY = 16_384
SHAPE = ShapeConfig(
    num_layers=8, hidden_size=448, intermediate_size=1216, num_heads=7, num_kv_heads=7, max_positions=512
)
ROWS, CONTEXT = 2, 128
STEPS_APART = 2
"Between two checkpoints, of which the first computes while the last is written."
BOOKS = {"read": {}, "loss": 1.0, "position": 0}
WORKER = Worker()


@dataclass
class Trial:
    """A model in training, with a checkpointer of each kind."""

    scorer: Scorer
    optimizer: torch.optim.Optimizer
    batch: Batch
    step: int = 0
    held_up_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.held_up_s += time.perf_counter() - begun

    def train(self, checkpointer: Checkpointer) -> None:
        """Take a step as the loop does; its time is without what the checkpointer took of it."""
        begun, before = time.perf_counter(), self.held_up_s
        loss = causal_lm(self.scorer, self.batch)
        (loss.total / loss.num_targets).backward()
        with self.held_up():
            checkpointer.wait_for_copy()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.steps_s.append(time.perf_counter() - begun - (self.held_up_s - before))

    def keep(self, checkpointer: Checkpointer) -> tuple[float, float, float]:
        """Keep this step and train on; return the seconds held up, and those of a step beside the writing and without."""
        self.held_up_s = 0.0
        with self.held_up():
            checkpointer.begin(self.step, {}, BOOKS)
        self.steps_s = []
        while checkpointer._thread is not None and checkpointer._thread.is_alive():
            self.train(checkpointer)
        beside = self.steps_s
        with self.held_up():
            checkpointer.finish()
        held_up_s, self.steps_s = self.held_up_s, []
        for _ in range(STEPS_APART):
            self.train(checkpointer)
        return held_up_s, statistics.median(beside or [0.0]), statistics.median(self.steps_s)


def make_trial() -> Trial:
    torch.manual_seed(0)
    model, weights = make_random_model(ModelConfig(shape=SHAPE, tokenizer="none"), VOCABULARY, {}, seed=0)
    load_shards(model, [weights])
    scorer = shard(Scorer(model), WORKER.device, Precision.float32)
    input_ids = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, CONTEXT))
    batch = collate(input_ids, input_ids, [[CONTEXT]] * ROWS)
    return Trial(scorer, make_optimizer(scorer, OptimConfig()), batch)


def open_checkpointer(trial: Trial, folder: Location, is_async: bool) -> Checkpointer:
    config = LoopConfig(async_checkpoints=is_async, keep_checkpoints=1)
    return Checkpointer(trial.scorer, trial.optimizer, folder, config, replace(WORKER))


def measure_stalls(folder: Location, rounds: int) -> dict[str, float]:
    """Alternate checkpoints of both kinds; return medians in seconds, and the parameters."""
    with ProcessGroup(WORKER):
        trial = make_trial()
        with open_checkpointer(trial, folder, True) as beside, open_checkpointer(trial, folder, False) as between:
            for _ in range(2):
                trial.train(beside)
            pairs = [(trial.keep(beside), trial.keep(between)) for _ in range(rounds + 1)][
                1:
            ]  # the first makes buffers
        found = retention.find_latest(folder)
        assert found is not None
        return {
            "async": statistics.median(kept[0] for kept, _ in pairs),
            "sync": statistics.median(kept[0] for _, kept in pairs),
            "beside": statistics.median(kept[1] for kept, _ in pairs),
            "alone": statistics.median(seconds for pair in pairs for _, _, seconds in pair),
            "parameters": sum(parameter.numel() for parameter in trial.scorer.parameters()),
            "bytes": found.num_bytes,
        }


def be_back(folder: Location) -> None:
    """Load the last checkpoint and take a step: what a process does that is started again."""
    with ProcessGroup(WORKER):
        trial = make_trial()
        found = retention.find_latest(folder)
        assert found is not None
        sharded_state.load(trial.scorer, trial.optimizer, found)
        with open_checkpointer(trial, folder, True) as checkpointer:
            trial.train(checkpointer)


def measure_return(folder: Location) -> float:
    """Return the seconds from the start of a new process, its imports included, to the end of its first step."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--back", folder.full_path], check=True)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="checkpoints of each kind (default: 7)")
    parser.add_argument("--back", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.back:
        be_back(Location(arguments.back))
        return 0
    with TemporaryDirectory() as scratch:
        folder = Location(scratch) / "checkpoints"
        found = measure_stalls(folder, arguments.rounds)
        back_s = measure_return(folder)
    ratio = found["async"] / found["sync"]
    passed = ratio < MAX_STALL_RATIO
    print(
        f"{found['parameters'] / 1e6:.1f} M parameters, checkpoints of {found['bytes'] / 1e6:,.0f} MB: training stands still "
        f"{found['sync'] * 1e3:,.0f} ms for one it waits for, {found['async'] * 1e3:,.1f} ms for one beside it"
    )
    print(
        f"a step of {found['alone'] * 1e3:,.0f} ms takes {found['beside'] / found['alone']:.2f} times as long beside one"
    )
    print(f"from a new process to the end of its first step: {back_s:.1f} s")
    print(
        f"{'pass' if passed else 'FAIL'}  held up, as a share of a checkpoint that training waits for: {ratio:.1%}, "
        f"bar < {MAX_STALL_RATIO:.0%}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
