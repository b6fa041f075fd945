"""How long a job takes until it answers: CPU seconds of `--help` and of a refused key, against `import hydra` alone.

    python benchmarks/startup.py [--first-step]

Prints one line a job and exits 1 where one takes more than BAR times the import. With --first-step also the seconds from enter to
the first step of a small training run on two workers of a Ray that the job starts, on generated data.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BAR = 3.0
ROUNDS = 3
WORLD = ["data=world", "name=w", "microworld.num_documents=200", "microworld.num_conversations=10"]
PREPARED = [
    ("build_corpus", [*WORLD, "microworld.num_preferences=10", "microworld.num_questions=10"]),
    ("expand_tokenizer", ["vocabulary=new", "name=t", "corpus=corpus/w@v1", "sources=[en_articles]", "num_pieces=512"]),
    (
        "encode_tokens",
        ["name=t", "corpus=corpus/w@v1", "tokenizer=tokenizer/t@v1", "sources=[en_articles]", "context_length=128"],
    ),
]
TRAINED = ["name=m", "tokens=tokens/t@v1", "model=nano", "model.tokenizer=tokenizer/t@v1", "cluster=cpu2"]
STEPS = ["loop.num_steps=2", "loop.log_every=1", "optim.warmup_steps=1", "loop.step_rows=4", "loop.micro_rows=2"]


def measure_cpu_s(command: list[str], answer: str = "") -> float:
    """Return the least CPU seconds that a command took in some rounds; it must print the answer."""
    taken = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert answer in done.stdout + done.stderr, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def compare_with_import() -> bool:
    """Print every job's ratio; return whether all are within the bar."""
    base = measure_cpu_s(["-c", "import hydra"])
    print(f"import hydra: {base:.2f} s of CPU")
    worst = 0.0
    for job in sorted((REPOSITORY / "jobs").glob("[!_]*.py")):
        helped = measure_cpu_s([str(job), "--help"], "Fields, as field=value") / base
        refused = measure_cpu_s([str(job), "no_such_field=1"], "no_such_field is not a field") / base
        worst = max(worst, helped, refused)
        print(f"{job.stem:<20} --help {helped:.1f}x  refused key {refused:.1f}x", flush=True)
    print(f"largest {worst:.1f}x, bar {BAR:g}x")
    return worst <= BAR


def time_first_step() -> float:
    """Return the seconds from enter to the line of the first step."""
    with tempfile.TemporaryDirectory() as root:
        environment = {**os.environ, "LISAN_HOME": root}
        for job, overrides in PREPARED:
            subprocess.run(
                [sys.executable, f"jobs/{job}.py", *overrides],
                cwd=REPOSITORY,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        start = time.monotonic()
        command = [sys.executable, "jobs/train_cpt.py", *TRAINED, *STEPS]
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            first = next(
                (time.monotonic() - start for line in run.stdout if re.search(r"step 1\b", line)), float("nan")
            )
            run.stdout.read()
        return first


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-step", action="store_true")
    asked = parser.parse_args()
    is_within = compare_with_import()
    if asked.first_step:
        print(f"enter to the first step on two workers: {time_first_step():.1f} s")
    sys.exit(not is_within)
