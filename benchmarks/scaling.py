"""Claims: two workers on two cores train 1.7 times as fast as one, and Ray Train costs at most 2 % beside torchrun.

A model of 28 M parameters trains on rows of 512 tokens through the same loop: one worker and two, each pinned to a core of its
own, under torchrun; then one under torchrun and one under Ray Train fed by Ray Data, with a core to spare as machines with GPUs
have. Two workers under Ray Train on the same two cores are measured too, without a bar: Ray's own twenty-odd processes, all but
idle, then run on cores that the workers want whole. Runs alternate, the first interval of each is left out, and medians over the
rounds are compared.

    python benchmarks/scaling.py --root /tmp/scaling

A second call with the same root goes on from what is there. Prints every ratio beside its bar; exits 1 below one of them.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import ray

from lisan.cluster.config import Precision
from lisan.cluster.worker import worker_from_environment
from lisan.core.artifact import Ref, Store
from lisan.core.stage import ClusterConfig, SilentRun, StorageConfig
from lisan.core.storage import Location
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.train.config import TrainConfig, parents_of
from lisan.train.launch import launch_on_ray
from lisan.train.options import LoopConfig
from lisan.train.run import TrainJob, run_worker

MIN_SPEEDUP = 1.7
MAX_OVERHEAD = 0.02
CONTEXT = 512
LOG_EVERY = 2
SOURCES = "[ar_articles,en_articles]"
SHAPE = ShapeConfig(
    num_layers=8, hidden_size=512, intermediate_size=1408, num_heads=8, num_kv_heads=4, max_positions=CONTEXT
)
"28 M parameters with 8,192 pieces."


class FileRun(SilentRun):
    """Keeps the speed of each interval in a file; it pickles into workers."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "train/tokens_per_second" in metrics:
            with self.place.open("a") as file:
                file.write(json.dumps([step, metrics["train/tokens_per_second"]]) + "\n")


def run_job(root: str, name: str, *overrides: str) -> None:
    """Run a job as a user does; a job whose artifact exists does nothing."""
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), f"storage.root={root}", *overrides]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def make_tokens(root: str) -> None:
    """Make the rows, by the stages that users run."""
    corpus, sources = "corpus=corpus/scaling@v1", f"sources={SOURCES}"
    run_job(root, "build_corpus", "data=world", "name=scaling", "microworld.num_documents=6000")
    run_job(root, "expand_tokenizer", "vocabulary=new", "name=scaling", corpus, sources, "num_pieces=8192")
    tokenizer = "tokenizer=tokenizer/scaling@v1"
    run_job(root, "encode_tokens", "name=scaling", corpus, tokenizer, sources, f"context_length={CONTEXT}")


def make_job(root: str, place: Path, num_workers: int, arguments: argparse.Namespace) -> TrainJob:
    """Resolve a training run whose checkpoints and model lie in a folder."""
    store = Store(root)
    config = TrainConfig(
        name="scaling",
        tokens="tokens/scaling@v1",
        model=ModelConfig(shape=SHAPE, tokenizer="tokenizer/scaling@v1"),
        loop=LoopConfig(
            num_steps=arguments.steps,
            step_rows=arguments.rows,
            micro_rows=4,
            log_every=LOG_EVERY,
            checkpoint_every=arguments.steps,
        ),
        precision=Precision(arguments.precision),
        storage=StorageConfig(root=root),
        cluster=ClusterConfig(num_workers=num_workers, cpus_per_worker=0.5, threads_per_worker=1),
    )
    parents = tuple(store.open(ref) for ref in parents_of(config))
    folder = Location(str(place))
    tokens = store.open(Ref.parse(config.tokens))
    return TrainJob(config, tokens, parents, folder / "checkpoints", folder / "model", FileRun(place / "speeds"))


def measure_torchrun(job: TrainJob, place: Path, num_workers: int, pinned: bool) -> float:
    """Return the tokens/s of a run under torchrun."""
    (place / "job").write_bytes(pickle.dumps(replace(job, config=replace(job.config, cluster=ClusterConfig()))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    command += [str(Path(__file__).resolve()), "--be-worker", str(place / "job")] + ["--pinned"] * pinned
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "platform")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return read_speed(place)


def be_worker(job: Path, pinned: bool) -> int:
    """Be one worker that torchrun started."""
    worker = replace(worker_from_environment(), threads=1)
    if pinned:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[worker.local_rank]})
    run_worker(pickle.loads(job.read_bytes()), worker)
    return 0


def measure_ray(job: TrainJob, place: Path) -> float:
    """Return the tokens/s of a run under Ray Train, and leave no Ray behind that would slow the next one."""
    launch_on_ray(job)
    ray.shutdown()
    return read_speed(place)


def read_speed(place: Path) -> float:
    """Return the tokens/s of all intervals but the first."""
    speeds = [json.loads(line)[1] for line in (place / "speeds").read_text().splitlines()][1:]
    return len(speeds) / sum(1 / speed for speed in speeds)


def measure_round(root: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure every way once."""
    found = {}
    ways = (("one", 1, True), ("two", 2, True), ("torchrun", 1, False), ("ray", 1, False), ("ray two", 2, False))
    for name, num_workers, pinned in ways:
        with TemporaryDirectory(dir=root) as folder:
            place = Path(folder)
            job = make_job(root, place, num_workers, arguments)
            by_ray = name.startswith("ray")
            found[name] = measure_ray(job, place) if by_ray else measure_torchrun(job, place, num_workers, pinned)
        print(f"  {name:10} {found[name]:10,.0f} tokens/s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder for artifacts; a temporary one when it is left out")
    parser.add_argument("--rounds", type=int, default=3, help="alternations (default: 3)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run (default: 8)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step over all workers (default: 16)")
    parser.add_argument("--precision", choices=[str(which) for which in Precision], default="auto")
    parser.add_argument("--be-worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be_worker:
        return be_worker(arguments.be_worker, arguments.pinned)
    if len(os.sched_getaffinity(0)) < 2:
        print("not measured: fewer than two cores")
        return 0
    with TemporaryDirectory() as scratch:
        root = arguments.root or scratch
        make_tokens(root)
        rounds = [measure_round(root, arguments) for _ in range(arguments.rounds)]
    speedup = median(found["two"] / found["one"] for found in rounds)
    overhead, crowded = (
        1 - median(found[ray] / found[alone] for found in rounds)
        for ray, alone in (("ray", "torchrun"), ("ray two", "two"))
    )
    results = [
        ("two workers against one", f"{speedup:.2f} x", f">= {MIN_SPEEDUP:g} x", speedup >= MIN_SPEEDUP),
        ("Ray Train against torchrun", f"{overhead:+.1%}", f"<= {MAX_OVERHEAD:.0%}", overhead <= MAX_OVERHEAD),
    ]
    print(f"      Ray Train against torchrun with both cores taken: {crowded:+.1%}, no bar")
    for what, found, bar, passed in results:
        print(f"{'pass' if passed else 'FAIL'}  {what}: {found}, bar {bar}")
    return 0 if all(passed for *_, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
