"""The training loop of continued pretraining, fine-tuning and preference training.

Takes a sharded `Scorer`, a plan and rows by step; trains the weights, writes checkpoints and logs metrics. A step divides its
loss by the global number of targets over all ranks and micro batches. The rows of a step are those of the plan, or the run stops.
A resumed run computes the same as an uninterrupted one.
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
from lisan.train.checkpoint.checkpointer import Checkpointer
from lisan.train.checkpoint.schedule import CheckpointSchedule
from lisan.train.metrics.data_ledger import POSITION, READ, ROWS_HASH, DataLedger
from lisan.train.metrics.meter import Meter, StepRange
from lisan.train.objectives import Loss
from lisan.train.optim import learning_rate, set_rate
from lisan.train.options import LoopConfig, OptimConfig
from lisan.train.plan import TrainPlan
from lisan.train.spike_guard import SpikeGuard
from lisan.train.validation import VALIDATION_LOSS, log_losses
from lisan.train.watchdog import Watchdog

Measured = tuple[RowBatch, Loss, Batch]
GUARD = "guard"
"Fact of a checkpoint: state of the spike guard."


def train(scorer: Scorer, optimizer: Optimizer, plan: TrainPlan, worker: Worker) -> dict[str, float]:
    """Take the remaining steps and return the last metrics.

    Raises DivergenceError for a loss that is not finite, TrainingError for rows that are not those of the plan, DataError when no
    token of a step is trained, ArtifactError when a checkpoint cannot be written, and Interrupted after the checkpoint of an
    interrupted run.
    """
    with (
        worker.doing(plan.progress.describe, write=plan.progress.say),
        Interruption() as interruption,
        Checkpointer(scorer, optimizer, plan.checkpoints, plan.config, worker, plan.log) as checkpointer,
        Watchdog(worker) as watchdog,
    ):
        if worker.is_interrupted is never:
            worker = replace(worker, is_interrupted=interruption)
        return TrainingLoop(scorer, optimizer, plan, worker, checkpointer).run(watchdog)


class TrainingLoop:
    """The loop over the steps of a run, from its last checkpoint on."""

    def __init__(
        self, scorer: Scorer, optimizer: Optimizer, plan: TrainPlan, worker: Worker, checkpointer: Checkpointer
    ) -> None:
        self.scorer, self.optimizer, self.plan, self.worker = scorer, optimizer, plan, worker
        self.checkpointer = checkpointer
        self.ledger, self.guard = DataLedger(plan.order, worker), SpikeGuard(plan.config.guard)
        latest = resume(scorer, optimizer, plan, self.ledger, self.guard)
        self.precisions = list_precisions(latest, worker)
        steps = StepRange(plan.num_steps, plan.config.log_every, latest.step if latest else 0)
        self.meter = Meter(plan.order, steps, worker, plan.progress, plan.mfu, plan.log)
        self.meter.skipped_steps = self.guard.num_skipped
        if latest is not None:
            self.meter.last = dict(latest.facts.get(retention.METRICS, {}))
            checkpointer.report_resumed(latest)
        self.schedule = CheckpointSchedule(plan.config, plan.num_steps, worker)
        self.grad_norm = math.nan

    def run(self, watchdog: Watchdog) -> dict[str, float]:
        """Take the remaining steps and return the last metrics."""
        plan, worker = self.plan, self.worker
        rows_by_step = (
            worker.stream()
            if worker.stream
            else plan.order.read(self.ledger.position, worker.data_rank, worker.num_data_ranks)
        )
        self.scorer.train()
        for step in range(self.meter.steps.first, plan.num_steps):
            with self.meter.waiting(step):
                rows = next_rows(rows_by_step, plan, worker, step)
            self.take_step(step, rows)
            with watchdog.paused():
                self.validate_and_save(step + 1)
            self.meter.finish_step(step + 1)
            watchdog.beat(step + 1)
        with watchdog.paused():
            self.checkpointer.finish()
        return self.meter.last

    def take_step(self, step: int, rows: RowBatch) -> None:
        """Update the weights with this rank's rows, unless the guard skips the step; log at the end of an interval."""
        plan = self.plan
        self.ledger.add(rows)
        # Seeded by step, so that a resumed run repeats the dropout of the whole one; ranks with the same rows share it.
        torch.manual_seed(derive_seed(plan.config.seed, "step", step, self.worker.data_rank))
        lr = learning_rate(step, plan.num_steps, plan.optim)
        measured, loss = accumulate(self.scorer, rows, plan, self.meter, self.schedule)
        norm = clip(self.optimizer, plan.optim)
        reason = self.guard.refuse(step, loss, norm, partial(gather_row_ids, rows, self.worker))
        if reason:
            self.meter.skip(reason, self.guard.num_skipped)
        else:
            self.grad_norm = norm
            self.checkpointer.wait_for_copy()
            set_rate(self.optimizer, lr)
            self.optimizer.step()
            for one in measured:
                self.meter.add(*one)
        self.optimizer.zero_grad(set_to_none=True)
        if (step + 1) % plan.config.log_every == 0 or step + 1 == plan.num_steps:
            self.meter.log(step + 1, lr, self.grad_norm)
            self.checkpointer.report_if_done()

    def validate_and_save(self, step: int) -> None:
        """Measure the held-out losses and start a checkpoint where they are due; Interrupted when the run was asked to end."""
        plan, worker = self.plan, self.worker
        plan.progress.begin(f"validation or checkpoint after step {step}")
        losses = validate(self.scorer, step, self.schedule.is_planned(step), plan, worker)
        if self.schedule.is_kept(step):
            facts = {
                **self.ledger.state_dict(),
                GUARD: self.guard.state_dict(),
                retention.METRICS: self.meter.last,
                retention.LOSS: rank_loss(losses, self.guard, plan, worker),
                retention.PRECISION: self.precisions,
            }
            self.checkpointer.begin(step, {**self.meter.last, **losses}, facts, is_last=step == plan.num_steps)
        if self.schedule.is_ending:
            self.checkpointer.finish()
            raise Interrupted(f"the run was asked to end after step {step}")


def resume(
    scorer: Scorer, optimizer: Optimizer, plan: TrainPlan, ledger: DataLedger, guard: SpikeGuard
) -> retention.Checkpoint | None:
    """Load the last checkpoint into model, optimizer, ledger and guard, and return it; None without one."""
    latest = retention.find_latest(plan.checkpoints)
    if latest is None:
        return None
    sharded_state.load(scorer, optimizer, latest)
    ledger.load_state_dict({name: latest.fact(name) for name in (POSITION, READ, ROWS_HASH)})
    guard.load_state_dict(latest.fact(GUARD))
    if ledger.worker.is_first:
        print(f"  resumed at step {latest.step} of {plan.num_steps}", flush=True)
    return latest


def list_precisions(latest: retention.Checkpoint | None, worker: Worker) -> str:
    """Return the precision of the run, after those of its earlier steps; print a change."""
    known: str = latest.facts.get(retention.PRECISION, "") if latest else ""
    if latest is None or not known or known.endswith(worker.precision):
        return worker.precision.value
    changed = f"{known} up to step {latest.step}, then {worker.precision}"
    if worker.is_first:
        print(f"  precision: {changed}", flush=True)
    return changed


def rank_loss(losses: Mapping[str, float], guard: SpikeGuard, plan: TrainPlan, worker: Worker) -> float | None:
    """Return the loss that ranks a checkpoint: the held-out one (None until measured), without validation the training loss."""
    has_validation = plan.validate is not None or worker.validate is not None
    return losses.get(VALIDATION_LOSS) if has_validation else guard.recent_loss


def validate(scorer: Scorer, step: int, is_kept: bool, plan: TrainPlan, worker: Worker) -> dict[str, float]:
    """Measure and log the losses on held-out rows after the steps that the plan validates."""
    every = plan.validate_every
    if plan.validate is None or not (step % every == 0 or step == plan.num_steps if every else is_kept):
        return {}
    losses = plan.validate(scorer)
    if worker.is_first:
        log_losses(plan.log, step, losses)
    return losses


def next_rows(rows_by_step: Iterator[RowBatch], plan: TrainPlan, worker: Worker, step: int) -> RowBatch:
    """Return the rows of a step; TrainingError when they are not the planned ones."""
    rows = next(rows_by_step, None)
    where = f"step {step} of rank {worker.rank}"
    if rows is None:
        raise TrainingError(f"{where} received nothing; the stream ended before the run")
    try:
        plan.order.check(step, worker.data_rank, rows.row_ids)
    except DataError as error:
        raise TrainingError(f"{where} {error}; the stream is out of order") from error
    return rows


def accumulate(
    scorer: Scorer, rows: RowBatch, plan: TrainPlan, meter: Meter, schedule: CheckpointSchedule
) -> tuple[list[Measured], float]:
    """Add up the gradients of this rank's rows; return the losses of its micro batches and the mean loss over all ranks."""
    micro, objective, worker = plan.config.micro_rows, plan.objective, meter.worker
    parts = [rows.part(start, start + micro) for start in range(0, len(rows), micro)]
    batches = [collate(part.input_ids, part.labels, part.doc_lens) for part in parts]
    own = torch.tensor([sum(map(objective.count_targets, batches)), *schedule.requests()], dtype=torch.float64)
    num_targets, *requests = worker.sum_over_data(own).tolist()
    schedule.set_requests(requests)
    if num_targets == 0:
        raise DataError(
            f"no row of step {meter.step} has a trained token; check the roles and labels of the tokens artifact"
        )
    objective.begin_step(scorer, parts)
    measured: list[Measured] = []
    for part, batch in zip(parts, batches, strict=True):
        loss = objective.process_batch(scorer, batch.to(worker.device), part)
        # FSDP averages gradients over ranks; the loss is a mean over the targets of all ranks.
        (loss.total * (worker.num_data_ranks / num_targets)).backward()
        measured.append((part, replace(loss, total=loss.total.detach()), batch))
    total = worker.sum_over_data(torch.stack([loss.total.double().cpu() for _, loss, _ in measured]).sum())
    return measured, total.item() / num_targets


def clip(optimizer: Optimizer, config: OptimConfig) -> float:
    """Clip the gradients to `max_grad_norm`; return their norm before, over all ranks."""
    by_mesh: dict[Any, list[torch.Tensor]] = {}
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    # Weights of different meshes (tensor parallelism) cannot be reduced together.
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


def check_rows(config: LoopConfig, world_size: int, tensor_parallel_size: int = 1) -> None:
    """Refuse a batch that does not divide evenly into workers and micro batches."""
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
