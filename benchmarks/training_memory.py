"""Claim: with a vocabulary of 65,536 pieces training here takes less than 0.7 of the memory that TRL takes.

The model, rows and batch of training_vs_trl.py, its vocabulary grown to 65,536 pieces (49 M parameters), fine-tuning in bf16,
four rows of 1,024 tokens at a time in both, then one row at a time in both. Memory is the peak of the whole process as the
operating system counts it, from the start of Python to the finished model.

    python benchmarks/training_memory.py --root /tmp/training            # needs: pip install trl accelerate datasets

Prints both peaks and their ratio; exits 1 above the bar in one of the two.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from training_vs_trl import REPOSITORY, STEP_ROWS, THREADS, job_overrides, prepare

NUM_PIECES = 65_536
MAX_RATIO = 0.7
STEPS = 3


def peak_bytes(command: list[str]) -> int:
    """Run a command and return the largest memory that it held."""
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def compare(root: Path, folder: Path, rows: int) -> float:
    """Return our peak as a share of TRL's, with so many rows at a time in both."""
    overrides = job_overrides(root, folder, "sft", f"memory-{time.time_ns()}", STEPS)
    job = str(REPOSITORY / "jobs" / "train_sft.py")
    ours = peak_bytes([sys.executable, job, *overrides, f"loop.micro_rows={rows}"])
    peer = str(REPOSITORY / "benchmarks" / "training_vs_trl.py")
    words = ["--root", str(root), "--only", "sft", "--steps", str(STEPS), "--trl", str(folder), "--micro", str(rows)]
    theirs = peak_bytes([sys.executable, peer, *words])
    print(
        f"{rows} rows: {ours / 1e9:.2f} GB, TRL {theirs / 1e9:.2f} GB: {ours / theirs:.2f} (bar {MAX_RATIO})",
        flush=True,
    )
    return ours / theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where artifacts are kept; a temporary folder by default")
    parser.add_argument("--rows", type=int, nargs="+", default=[STEP_ROWS, 1], help="rows computed at a time")
    asked = parser.parse_args()
    with TemporaryDirectory() as scratch:
        root = asked.root or Path(scratch)
        folder = prepare(root, NUM_PIECES)
        ratios = [compare(root, folder, rows) for rows in asked.rows]
    sys.exit(max(ratios) > MAX_RATIO)


if __name__ == "__main__":
    main()
