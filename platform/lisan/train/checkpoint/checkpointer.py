"""The keeper: checkpoints that are written while training goes on.

In: a run, and at some of its steps the word to keep it. Out: finished checkpoints, told to tracker and launcher, and old ones
gone. Always: at most one is being written; the state, the books and the metrics are those of its step; what cannot be
written ends the run, on all ranks, at the next interval, the next checkpoint or the end.

A thread of each rank copies the state, writes, hashes and uploads; where somebody validates beside the workers, the first
rank's also waits for the losses, so that no checkpoint is removed while it is read. Its collectives go through a group of
their own, so that they never meet those of training. The loop waits twice: before a weight changes until the copy is made,
and before the next checkpoint until the last is complete.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from lisan.cluster.worker import Worker, sum_over_ranks
from lisan.core.errors import LisanError
from lisan.model.score import Scorer
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.retention import Checkpoint
from lisan.train.checkpoint.staging import Staging, State
from lisan.train.metrics.data_ledger import flatten_read
from lisan.train.plan import Course
from lisan.train.validation import VALIDATION_LOSS, log_losses

PATIENCE_S = 10.0
"How long a run that fails for want of its peers waits for the checkpoint that they were writing together."


@dataclass(frozen=True)
class _Flight:
    """A checkpoint that is being written."""

    step: int
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    is_copied: threading.Event = field(default_factory=threading.Event)
    result: Future[Checkpoint] = field(default_factory=Future)


class Keeper:
    """Keeps the state of one run; every rank has one and calls the same methods at the same steps."""

    def __init__(self, scorer: Scorer, optimizer: Optimizer, course: Course, worker: Worker) -> None:
        self.scorer, self.optimizer, self.course, self.worker = scorer, optimizer, course, worker
        self._flight: _Flight | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Keeper":
        # Its timeout is torch's half hour: ranks may wait for each other's storage much longer than for a step.
        self._group = dist.new_group(backend="gloo")
        self._staging = Staging(self.worker.device) if self.course.config.async_checkpoints else None
        if self.worker.validate is not None:
            self._make_up_for_validation()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let the checkpoint that is being written come to its end, whatever became of the run."""
        flight = self._flight
        if flight is not None and self._thread is not None:
            self._thread.join(None if error is None or isinstance(error, LisanError) else PATIENCE_S)
            if flight.result.done() and flight.result.exception() is not None:
                print(f"  the checkpoint of step {flight.step} failed too: {flight.result.exception()}", flush=True)
        if self._thread is None or not self._thread.is_alive():
            dist.destroy_process_group(self._group)

    def begin(self, step: int, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of a step, after the one before is complete."""
        self.finish()
        flight = self._flight = _Flight(step, {"step": step, **metrics}, facts)
        state = sharded_state.take_state(self.scorer, self.optimizer)
        # No step follows the last one: its state is written as it lies, which saves a copy's memory.
        staging = None if step == self.course.num_steps else self._staging
        save = partial(self._write, flight, state, staging)
        if staging is None:
            self._fly(flight, save)
            self.finish()
            return
        staging.begin()
        self._start(flight, save)

    def _start(self, flight: _Flight, save: Callable[[], Checkpoint]) -> None:
        # A daemon, for a peer that is gone must not keep this process from ending.
        self._thread = threading.Thread(target=self._fly, args=(flight, save), name="checkpoint", daemon=True)
        self._thread.start()

    def _make_up_for_validation(self) -> None:
        """Let the checkpoint that a run goes on from be validated if it died before that."""
        latest = retention.find_latest(self.course.checkpoints)
        dist.barrier(self._group)  # none looks again once the first may have written the loss
        if latest is not None and latest.facts.get(retention.LOSS) is None:
            self._flight = _Flight(latest.step, {"step": latest.step}, {})
            self._flight.is_copied.set()
            self._start(self._flight, lambda: latest)

    def wait_for_copy(self) -> None:
        """Return when the weights may change."""
        if self._flight is not None:
            self._flight.is_copied.wait()

    def look(self) -> None:
        """Tell of the checkpoint that was being written if every rank is done with it."""
        if self._flight is None:
            return
        is_done = torch.tensor([float(self._flight.result.done())])
        if sum_over_ranks(is_done).item() == self.worker.world_size:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and tell of it."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        saved = flight.result.result()
        losses: dict[str, float] = saved.facts.get(retention.VALIDATION, {})
        if self.worker.is_first:
            if losses:
                log_losses(self.course.run, saved.step, self.course.num_steps, losses)
            self._tell(saved)
        self.worker.report({**flight.metrics, **losses}, str(saved.location))

    def tell_again(self, latest: Checkpoint) -> None:
        """Tell of the checkpoint that a run goes on from: whoever completed it may have died before it told.

        One that is being validated is told of after that.
        """
        if not self.worker.is_first or self._flight is not None:
            return
        if losses := latest.facts.get(retention.VALIDATION):
            self.course.run.log_metrics(losses, latest.step)
        self._tell(latest)

    def _tell(self, saved: Checkpoint) -> None:
        self.course.run.log_metrics(flatten_read(saved.facts), saved.step)
        self.course.run.log_checkpoint(saved.step, str(saved.location), saved.num_bytes, saved.digest)

    def _fly(self, flight: _Flight, save: Callable[[], Checkpoint]) -> None:
        try:
            saved = save()
            found, *_ = sharded_state.together(self._group, self.course.checkpoints, partial(self._settle, saved))
            flight.result.set_result(replace(saved, facts={**saved.facts, **found}))
        except BaseException as error:  # raised again where the loop asks for the result
            flight.result.set_exception(error)
        finally:
            flight.is_copied.set()

    def _write(self, flight: _Flight, state: State, staging: Staging | None) -> Checkpoint:
        if staging is not None:
            state = staging.copy(state)
        flight.is_copied.set()
        return sharded_state.write(state, flight.step, self.course.checkpoints, flight.facts, self._group)

    def _settle(self, saved: Checkpoint) -> dict[str, Any]:
        """On the first rank, wait for the losses where somebody measures them, then remove what need not stay."""
        if not self.worker.is_first:
            return {}
        losses = self.worker.validate(saved.step) if self.worker.validate else {}
        found = {retention.LOSS: losses[VALIDATION_LOSS], retention.VALIDATION: losses} if losses else {}
        if found:
            retention.amend(saved, found)
        config = self.course.config
        retention.remove_old(self.course.checkpoints, config.keep_checkpoints, config.keep_best)
        return found
