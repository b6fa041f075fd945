"""The loop: one for continued pretraining, fine-tuning and preferences.

In: a sharded `Scorer`, an objective, rows by step. Out: trained weights, checkpoints, metrics. Always: a step divides
by the global number of targets over all ranks and micro batches; the rows of a step are those the plan names, or the
run stops; a run that is resumed computes what an uninterrupted one would have. No Ray in here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from lisan.cluster.worker import Worker, never
from lisan.core.errors import ConfigError, DataError, Interrupted, TrainingError
from lisan.core.interrupt import Interruption
from lisan.core.seed import derive_seed
from lisan.data.rows import RowBatch
from lisan.model.score import Batch, Scorer, collate
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.checkpointer import Keeper
from lisan.train.checkpoint.schedule import CheckpointTimes
from lisan.train.metrics.data_ledger import Ledger
from lisan.train.metrics.meter import Meter
from lisan.train.objectives import Loss
from lisan.train.optim import learning_rate, set_rate
from lisan.train.options import LoopConfig, OptimConfig
from lisan.train.plan import Course
from lisan.train.spike_guard import Guard
from lisan.train.validation import VALIDATION_LOSS, log_losses
from lisan.train.watchdog import Watchdog

Books = tuple[Ledger, Guard]
"What is opened from a checkpoint and closed with it."
Measured = tuple[RowBatch, Loss, Batch]


def train(scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker) -> dict[str, float]:
    """Run the steps that are left and return the last metrics.

    Raises DivergenceError when the loss is not a number, TrainingError when the rows are not those of the plan, DataError when
    none of their tokens is trained, ArtifactError when a checkpoint cannot be written, Interrupted after the checkpoint that is
    written when the run is asked to end.
    """
    with (
        worker.doing(course.progress.describe, write=course.progress.say),
        Interruption() as interruption,
        Keeper(scorer, optimizer, course, worker) as keeper,
        Watchdog(worker) as watchdog,
    ):
        if worker.is_interrupted is never:
            worker = replace(worker, is_interrupted=interruption)
        return take_steps(scorer, optimizer, course, worker, keeper, watchdog)


def take_steps(
    scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker, keeper: Keeper, watchdog: Watchdog
) -> dict[str, float]:
    ledger, guard = books = Ledger(course.order, worker), Guard(course.config.guard)
    latest = resume(scorer, optimizer, course, worker, books)
    first = latest.step if latest else 0
    precisions = go_on_in(latest, worker)
    meter = Meter(course, worker, first, guard.num_skipped)
    if latest is not None:
        meter.last = dict(latest.facts.get(retention.METRICS, {}))
        keeper.tell_again(latest)
    rows_by_step = (
        worker.stream()
        if worker.stream
        else course.order.read(ledger.position, worker.data_rank, worker.num_data_ranks)
    )
    times = CheckpointTimes(course.config, course.num_steps, worker)
    grad_norm = math.nan
    scorer.train()
    for step in range(first, course.num_steps):
        with meter.waiting(step):
            rows = next_rows(rows_by_step, course, worker, step)
        ledger.add(rows)
        # Dropout draws from the step, so a resumed run draws what the whole one did; ranks with the same rows draw the same.
        torch.manual_seed(derive_seed(course.config.seed, "step", step, worker.data_rank))
        lr = learning_rate(step, course.num_steps, course.optim)
        measured, loss = accumulate(scorer, rows, course, meter, times)
        norm = clip(optimizer, course.optim)
        refusal = guard.refuse(step, loss, norm, partial(gather_row_ids, rows, worker))
        if refusal:
            meter.skip(refusal, guard.num_skipped)
        else:
            grad_norm = norm
            keeper.wait_for_copy()
            take_step(optimizer, lr)
            for one in measured:
                meter.add(*one)
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % course.config.log_every == 0 or done == course.num_steps:
            meter.log(done, lr, grad_norm)
            keeper.look()
        with watchdog.paused():
            course.progress.begin(f"validation or checkpoint after step {done}")
            validated = validate(scorer, done, times.is_planned(done), course, worker)
            if times.is_kept(done):
                facts = close_books(books, meter, validated, course)
                keeper.begin(done, {**meter.last, **validated}, {**facts, retention.PRECISION: precisions})
            if times.is_ending:
                keeper.finish()
                raise Interrupted(f"the run was asked to end after step {done}")
        meter.finish_step(done)
        watchdog.beat(done)
    with watchdog.paused():
        keeper.finish()
    return meter.last


def resume(
    scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker, books: Books
) -> retention.Checkpoint | None:
    """Load the last checkpoint and its books, and return it; None where there is none."""
    latest = retention.find_latest(course.checkpoints)
    if latest is None:
        return None
    sharded_state.load(scorer, optimizer, latest)
    for book in books:
        book.open(latest)
    if worker.is_first:
        print(f"  resumed at step {latest.step} of {course.num_steps}", flush=True)
    return latest


def go_on_in(latest: retention.Checkpoint | None, worker: Worker) -> str:
    """Return the precision of the run, with those that its earlier steps were computed in; say a change."""
    known: str = latest.facts.get(retention.PRECISION, "") if latest else ""
    if latest is None or not known or known.endswith(worker.precision):
        return worker.precision.value
    changed = f"{known} up to step {latest.step}, then {worker.precision}"
    if worker.is_first:
        print(f"  precision: {changed}", flush=True)
    return changed


def close_books(books: Books, meter: Meter, validated: Mapping[str, float], course: Course) -> dict[str, Any]:
    """Return what a checkpoint keeps beside the state, with the loss that it is compared by, or none unless it is measured."""
    facts = {name: fact for book in books for name, fact in book.close().items()}
    _, guard = books
    # A training loss is never ranked among held-out ones.
    has_validation = course.validate is not None or meter.worker.validate is not None
    loss = validated.get(VALIDATION_LOSS) if has_validation else guard.recent_loss
    return {**facts, retention.METRICS: meter.last, retention.LOSS: loss}


def validate(scorer: Scorer, step: int, is_kept: bool, course: Course, worker: Worker) -> dict[str, float]:
    """Measure and log the losses on held-out rows, if this is a step for it."""
    every = course.validate_every
    if course.validate is None or not (step % every == 0 or step == course.num_steps if every else is_kept):
        return {}
    losses = course.validate(scorer)
    if worker.is_first:
        log_losses(course.run, step, course.num_steps, losses)
    return losses


def next_rows(rows_by_step: Iterator[RowBatch], course: Course, worker: Worker, step: int) -> RowBatch:
    """Take the rows of a step and check that they are the planned ones."""
    rows = next(rows_by_step, None)
    where = f"step {step} of rank {worker.rank}"
    if rows is None:
        raise TrainingError(f"{where} received nothing; the stream ended before the run")
    try:
        course.order.check(step, worker.data_rank, rows.row_ids)
    except DataError as error:
        raise TrainingError(f"{where} {error}; the stream is out of order") from error
    return rows


def accumulate(
    scorer: Scorer, rows: RowBatch, course: Course, meter: Meter, times: CheckpointTimes
) -> tuple[list[Measured], float]:
    """Add up the gradients of this rank's rows; return what each micro batch made and the mean loss over all ranks."""
    micro = course.config.micro_rows
    parts = [rows.part(start, start + micro) for start in range(0, len(rows), micro)]
    batches = [collate(part.input_ids, part.labels, part.doc_lens) for part in parts]
    worker = meter.worker
    own = torch.tensor([sum(map(course.count_targets, batches)), *times.wishes()], dtype=torch.float64)
    num_targets, *wishes = worker.sum_over_data(own).tolist()
    times.hear(wishes)
    if num_targets == 0:
        raise DataError(
            f"no row of step {meter.step} has a trained token; check the roles and labels of the tokens artifact"
        )
    objective = partial(course.objective, kl=course.anchor(scorer, parts)) if course.anchor else course.objective
    measured: list[Measured] = []
    for part, batch in zip(parts, batches, strict=True):
        loss = objective(scorer, batch.to(meter.device), part)
        # FSDP averages gradients over ranks; the loss is a mean over all targets of all ranks.
        (loss.total * (worker.num_data_ranks / num_targets)).backward()
        measured.append((part, replace(loss, total=loss.total.detach()), batch))
    total = worker.sum_over_data(torch.stack([loss.total.double().cpu() for _, loss, _ in measured]).sum())
    return measured, total.item() / num_targets


def clip(optimizer: Optimizer, config: OptimConfig) -> float:
    """Scale the gradients down to their largest norm and return the norm they had over all ranks."""
    by_mesh: dict[Any, list[torch.Tensor]] = {}
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    # Weights that lie on different meshes, as split ones do, cannot be reduced together.
    norms = [_whole(get_total_norm([p.grad for p in some if p.grad is not None])) for some in by_mesh.values()]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    for some in by_mesh.values():
        clip_grads_with_norm_(some, config.max_grad_norm, norm)
    return float(norm)


def _whole(norm: torch.Tensor) -> torch.Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_row_ids(rows: RowBatch, worker: Worker) -> list[int]:
    """Return the row ids of a step from all ranks."""
    shares: list[list[int]] = [[] for _ in range(worker.world_size)]
    dist.all_gather_object(shares, rows.row_ids.tolist())
    return [row_id for share in shares[:: worker.tensor_parallel_size] for row_id in share]


def take_step(optimizer: Optimizer, lr: float) -> None:
    set_rate(optimizer, lr)
    optimizer.step()


def check_rows(config: LoopConfig, world_size: int, tensor_parallel_size: int = 1) -> None:
    """Refuse a batch that workers and micro batches cannot share evenly."""
    share, rest = divmod(config.step_rows, world_size // tensor_parallel_size)
    if rest and tensor_parallel_size > 1:
        raise ConfigError(
            f"loop.step_rows ({config.step_rows}) must be a multiple of the number of groups of workers that compute the same rows "
            f"({world_size} / sharding.tensor_parallel_size={tensor_parallel_size})"
        )
    if rest:
        raise ConfigError(
            f"loop.step_rows ({config.step_rows}) must be a multiple of the number of workers ({world_size})"
        )
    if share % config.micro_rows and share > config.micro_rows:
        raise ConfigError(
            f"loop.step_rows / workers ({share}) must be a multiple of loop.micro_rows ({config.micro_rows})"
        )
