"""The loop: one for continued pretraining, fine-tuning and preferences.

In: a sharded `Scorer`, an objective, rows by step. Out: trained weights, checkpoints, metrics. Always: a step divides
by the global number of targets over all ranks and micro batches; the rows of a step are those the plan names, or the
run stops; a run that is resumed computes what an uninterrupted one would have. No Ray in here.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lisan.core.errors import ConfigError, TrainingError
from lisan.core.seed import derive_seed
from lisan.model.score import Scorer, collate
from lisan.tokens.rows import Rows
from lisan.train import checkpoint
from lisan.train.course import Course, LoopConfig
from lisan.train.optim import learning_rate
from lisan.train.throughput import Meter
from lisan.train.worker import Worker, sum_over_ranks


def train(scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker) -> dict[str, float]:
    """Run the steps that are left and return the last metrics.

    Raises TrainingError when the loss is not a number or the rows are not those of the plan.
    """
    first = resume(scorer, optimizer, course, worker)
    meter = Meter(course, worker, first)
    rows_by_step = iter(worker.stream()) if worker.stream else read_directly(course, worker, first)
    scorer.train()
    for step in range(first, course.num_steps):
        rows = next_rows(rows_by_step, course, worker, step)
        meter.waited(step)
        # Dropout draws from the step, so a resumed run draws what the whole one did.
        torch.manual_seed(derive_seed(course.config.seed, "step", step, worker.rank))
        lr = learning_rate(step, course.num_steps, course.optim)
        grad_norm = update(scorer, optimizer, rows, lr, course, meter)
        done = step + 1
        if done % course.config.log_every == 0 or done == course.num_steps:
            meter.log(done, lr, grad_norm)
        if done % course.config.checkpoint_every == 0 or done == course.num_steps:
            keep(scorer, optimizer, done, course, worker, meter.last)
    return meter.last


def resume(scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker) -> int:
    """Load the last checkpoint, if there is one, and return the step to go on with."""
    latest = checkpoint.find_latest(course.checkpoints)
    if latest is None:
        return 0
    checkpoint.load(scorer, optimizer, latest)
    if worker.is_first:
        print(f"  resumed at step {latest.step} of {course.num_steps}", flush=True)
    return latest.step


def keep(
    scorer: Scorer, optimizer: Optimizer, step: int, course: Course, worker: Worker, metrics: dict[str, float]
) -> None:
    """Write a checkpoint, tell the tracker and Ray, and let old ones go."""
    saved = checkpoint.save(scorer, optimizer, step, course.checkpoints)
    if worker.is_first:
        course.run.log_checkpoint(step, str(saved.location), saved.num_bytes, saved.digest)
        if worker.retains:
            checkpoint.remove_old(course.checkpoints, course.config.keep_checkpoints)
    worker.report({"step": step, **metrics}, str(saved.location))


def rank_rows(course: Course, worker: Worker, step: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the row ids of this rank at a step."""
    step_rows = course.config.step_rows
    share = step_rows // worker.world_size
    start = step * step_rows + worker.rank * share
    return course.plan.rows(start, start + share)


def read_directly(course: Course, worker: Worker, first: int) -> Iterator[Rows]:
    """Yield this rank's rows of every step from `first` on, from storage."""
    for step in range(first, course.num_steps):
        yield course.reader.read(rank_rows(course, worker, step))


def next_rows(rows_by_step: Iterator[Rows], course: Course, worker: Worker, step: int) -> Rows:
    """Take the rows of a step and check that they are the planned ones."""
    rows = next(rows_by_step, None)
    expected = rank_rows(course, worker, step)
    if rows is None or not np.array_equal(rows.row_ids, expected):
        got = "nothing" if rows is None else f"rows {rows.row_ids[:4].tolist()}..."
        raise TrainingError(
            f"step {step} of rank {worker.rank} expected rows {expected[:4].tolist()}... and received {got}; "
            "the stream is out of order"
        )
    return rows


def update(scorer: Scorer, optimizer: Optimizer, rows: Rows, lr: float, course: Course, meter: Meter) -> float:
    """Do one optimizer step on this rank's rows and return the global gradient norm."""
    micro = course.config.micro_rows
    parts = [rows.part(start, start + micro) for start in range(0, len(rows), micro)]
    batches = [collate(part.input_ids, part.labels, part.doc_lens) for part in parts]
    num_targets = sum_over_ranks(torch.tensor([sum(map(course.count_targets, batches))], dtype=torch.float64))
    if num_targets.item() == 0:
        raise TrainingError(
            f"no row of step {meter.step} has a trained token; check the roles and labels of the tokens artifact"
        )
    # FSDP averages gradients over ranks; the loss is a mean over all targets of all ranks.
    scale = meter.world_size / num_targets.item()
    for part, batch in zip(parts, batches, strict=True):
        loss = course.objective(scorer, batch.to(meter.device), part)
        (loss.total * scale).backward()
        meter.add(part, loss, batch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = clip_grad_norm_((p for g in optimizer.param_groups for p in g["params"]), course.optim.max_grad_norm)
    grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # type: ignore[operator]
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"gradient norm is {grad_norm} at step {meter.step}; lower optim.peak_lr or look at the rows "
            f"{rows.row_ids[:8].tolist()}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


def check_rows(config: LoopConfig, world_size: int) -> None:
    """Refuse a batch that workers and micro batches cannot share evenly."""
    share, rest = divmod(config.step_rows, world_size)
    if rest:
        raise ConfigError(
            f"loop.step_rows ({config.step_rows}) must be a multiple of the number of workers ({world_size})"
        )
    if share % config.micro_rows and share > config.micro_rows:
        raise ConfigError(
            f"loop.step_rows / workers ({share}) must be a multiple of loop.micro_rows ({config.micro_rows})"
        )
