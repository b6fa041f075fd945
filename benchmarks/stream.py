"""Claim: Ray Data keeps two training workers in rows: they wait for data less than 2 % of the time.

Three sources of the generated world are packed, and an 11 M parameter model trains on them for some steps, on two workers
fed by Ray Data, as users run it. Then the stream alone is read by two actors as fast as it goes, beside the same rows read
directly in one process.

    python benchmarks/stream.py --root /tmp/stream

A second call with the same root goes on from what is there. Prints every figure beside its bar; exits 1 below one of them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import ray

from lisan.cluster.ray import connect
from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.stage import ClusterConfig, TrackingConfig
from lisan.data.config import MixConfig
from lisan.data.ray_stream import STREAM, PlanDataConfig, StreamPlan, iterate_rows
from lisan.data.row_order import open_order
from lisan.tracking.runs import metric_history

MAX_WAIT_RATIO = 0.02
MAX_FIRST_BATCH_S = 5.0
MIN_ROWS_PER_SECOND = 1000.0
"Of 512 tokens, both workers together: what seven H200 take of a 1 B model at 40 % of their peak."
WEIGHTS = {"ar_articles": 0.45, "en_articles": 0.45, "parallel": 0.1}
CONTEXT = 512
STEP_ROWS = 8
LOG_EVERY = 4


def run_job(root: str, name: str, *overrides: str) -> None:
    """Run a job as a user does; a job whose artifact exists does nothing."""
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), f"storage.root={root}", *overrides]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def make_tokens(root: str) -> Artifact:
    """Return rows of the three sources, made by the stages that users run."""
    sources = f"sources=[{','.join(WEIGHTS)}]"
    run_job(root, "build_corpus", "data=world", "name=stream", "microworld.num_documents=6000")
    run_job(
        root, "expand_tokenizer", "vocabulary=new", "name=stream", "corpus=corpus/stream@v1", sources, "num_pieces=4096"
    )
    run_job(
        root,
        "encode_tokens",
        "name=stream",
        "corpus=corpus/stream@v1",
        "tokenizer=tokenizer/stream@v1",
        sources,
        f"context_length={CONTEXT}",
    )
    return Store(root).open(Ref.parse("tokens/stream@v1"))


def measure_wait(root: str, num_steps: int) -> tuple[float, float]:
    """Train on two workers; return the share of time spent waiting for rows, and tokens/s, after the first interval."""
    name = f"stream-{num_steps}"
    weights = ",".join(f"{source}: {weight}" for source, weight in WEIGHTS.items())
    run_job(
        root,
        "train_cpt",
        "model=mini",
        "model.tokenizer=tokenizer/stream@v1",
        "tokens=tokens/stream@v1",
        f"name={name}",
        "cluster=cpu2",
        f"+mix.weights={{{weights}}}",
        "mix.max_epochs=100",
        "optim.peak_lr=1e-3",
        f"loop.num_steps={num_steps}",
        f"loop.step_rows={STEP_ROWS}",
        f"loop.micro_rows={STEP_ROWS // 2}",
        f"loop.log_every={LOG_EVERY}",
        f"loop.checkpoint_every={num_steps}",
    )
    model = Store(root).open(Ref.parse(f"model/{name}@v1"))
    waits, speeds = (
        dict(metric_history(TrackingConfig(), root, model, f"train/{key}"))
        for key in ("data_wait_ratio", "tokens_per_second")
    )
    later = [step for step in waits if step > LOG_EVERY]
    seconds = {step: LOG_EVERY * STEP_ROWS * CONTEXT / speeds[step] for step in later}
    waited = sum(waits[step] * seconds[step] for step in later)
    return waited / sum(seconds.values()), len(later) * LOG_EVERY * STEP_ROWS * CONTEXT / sum(seconds.values())


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Reader:
    """Stands where a training worker stands and does nothing with its rows."""

    def read(self, shard: Any, num_steps: int) -> tuple[float, float]:
        """Return the clock at the first step and at the last."""
        times = [time.time() for _ in self._rows(shard, num_steps)]
        return times[0], times[-1]

    def _rows(self, shard: Any, num_steps: int) -> Iterator[Any]:
        for _, rows in zip(range(num_steps), iterate_rows(shard, STEP_ROWS // 2), strict=False):
            yield rows


def measure_stream(tokens: Artifact, num_steps: int) -> tuple[float, float]:
    """Return the seconds until both workers have their first rows, and the rows/s of both after that."""
    order = open_order(tokens, MixConfig(weights=WEIGHTS, max_epochs=1e9), num_steps, STEP_ROWS)
    connect(ClusterConfig(num_workers=2))
    readers = [Reader.remote() for _ in range(2)]
    ray.get([reader.__ray_ready__.remote() for reader in readers])
    begun = time.time()
    stream = StreamPlan(order, num_steps, lambda: (0, 0))
    shards = [config[STREAM] for config in PlanDataConfig(stream).configure({}, 2, None, None)]
    clocks = ray.get([reader.read.remote(shard, num_steps) for reader, shard in zip(readers, shards, strict=True)])
    ray.shutdown()
    first, last = (max(times) for times in zip(*clocks, strict=True))
    return first - begun, STEP_ROWS * (num_steps - 1) / (last - first)


def measure_direct(tokens: Artifact, num_steps: int) -> float:
    """Return the rows/s of one process that reads the same rows from storage, a worker's share at a time."""
    order = open_order(tokens, MixConfig(weights=WEIGHTS, max_epochs=1e9), num_steps, STEP_ROWS)
    begun = time.perf_counter()
    for rank in range(2):
        for _ in zip(range(num_steps), order.read(0, rank, 2), strict=False):
            pass
    return num_steps * STEP_ROWS / (time.perf_counter() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder for artifacts; a temporary one when it is left out")
    parser.add_argument("--steps", type=int, default=32, help="steps to train (default: 32)")
    parser.add_argument("--stream-steps", type=int, default=4000, help="steps to stream (default: 4000)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        root = arguments.root or scratch
        tokens = make_tokens(root)
        first_s, streamed = measure_stream(tokens, arguments.stream_steps)
        direct = measure_direct(tokens, arguments.stream_steps)
        wait, speed = measure_wait(root, arguments.steps)
    results = [
        (
            f"wait for data, {speed:,.0f} tokens/s on two workers",
            f"{wait:.2%}",
            f"< {MAX_WAIT_RATIO:.0%}",
            wait < MAX_WAIT_RATIO,
        ),
        (
            f"rows/s of {CONTEXT} tokens through Ray Data ({streamed / direct:.1%} of {direct:,.0f} read directly)",
            f"{streamed:,.0f}",
            f">= {MIN_ROWS_PER_SECOND:,.0f}",
            streamed >= MIN_ROWS_PER_SECOND,
        ),
        ("first rows on both workers", f"{first_s:.1f} s", f"< {MAX_FIRST_BATCH_S:g} s", first_s < MAX_FIRST_BATCH_S),
    ]
    for what, found, bar, passed in results:
        print(f"{'pass' if passed else 'FAIL'}  {what}: {found}, bar {bar}")
    return 0 if all(passed for *_, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
