"""Writes checkpoints in a background thread; deletes old ones.

At most one checkpoint is written at a time; its state, counts and metrics are those of its step. An error of a write ends the run
on all ranks, at the next interval, the next checkpoint or the end.

On each rank a thread copies the state, writes, hashes and uploads. With validation beside the workers, the first rank's thread
also waits for the losses, so that no checkpoint is deleted while it is read. Its collectives use a process group of their own,
apart from those of training. The loop waits twice: before a weight changes, for the copy, and before the next checkpoint, for the
last one.
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
from lisan.core.storage import Location
from lisan.model.score import Scorer
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.retention import Checkpoint
from lisan.train.checkpoint.staging import Staging, State
from lisan.train.metrics.data_ledger import flatten_read
from lisan.train.metrics.run_log import RunLog
from lisan.train.options import LoopConfig
from lisan.train.validation import VALIDATION_LOSS, log_losses

PATIENCE_S = 10.0
"Time that a run which lost a rank waits for the checkpoint that was being written."


@dataclass(frozen=True)
class _PendingCheckpoint:
    """A checkpoint that is being written."""

    step: int
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    is_copied: threading.Event = field(default_factory=threading.Event)
    result: Future[Checkpoint] = field(default_factory=Future)


class Checkpointer:
    """Saves the state of one run; every rank calls the same methods at the same steps."""

    def __init__(
        self,
        scorer: Scorer,
        optimizer: Optimizer,
        folder: Location,
        config: LoopConfig,
        worker: Worker,
        log: RunLog | None = None,
    ) -> None:
        self.scorer, self.optimizer, self.folder, self.config, self.worker = scorer, optimizer, folder, config, worker
        self.log = log
        self._pending: _PendingCheckpoint | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Checkpointer":
        # With torch's time-out of half an hour: ranks may wait longer for each other's storage than for a step.
        self._group = dist.new_group(backend="gloo")
        self._staging = Staging(self.worker.device) if self.config.async_checkpoints else None
        if self.worker.validate is not None:
            self._validate_resumed()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Wait for the pending checkpoint, also after an error."""
        pending = self._pending
        if pending is not None and self._thread is not None:
            self._thread.join(None if error is None or isinstance(error, LisanError) else PATIENCE_S)
            if pending.result.done() and pending.result.exception() is not None:
                print(f"  the checkpoint of step {pending.step} failed too: {pending.result.exception()}", flush=True)
        if self._thread is None or not self._thread.is_alive():
            dist.destroy_process_group(self._group)

    def begin(self, step: int, metrics: Mapping[str, float], facts: Mapping[str, Any], is_last: bool = False) -> None:
        """Start to write the checkpoint of a step, after the previous one is complete."""
        self.finish()
        pending = self._pending = _PendingCheckpoint(step, {"step": step, **metrics}, facts)
        state = sharded_state.take_state(self.scorer, self.optimizer)
        # No step changes the last state: it is written without a copy, which saves its memory.
        staging = None if is_last else self._staging
        save = partial(self._write, pending, state, staging)
        if staging is None:
            self._save(pending, save)
            self.finish()
            return
        staging.begin()
        self._start(pending, save)

    def _start(self, pending: _PendingCheckpoint, save: Callable[[], Checkpoint]) -> None:
        # A daemon: a lost rank must not keep this process from ending.
        self._thread = threading.Thread(target=self._save, args=(pending, save), name="checkpoint", daemon=True)
        self._thread.start()

    def _validate_resumed(self) -> None:
        """Start to validate the checkpoint that the run resumes from, when the run before ended without its losses."""
        latest = retention.find_latest(self.folder)
        dist.barrier(self._group)  # every rank has read the facts before the first may write the losses
        if latest is not None and latest.facts.get(retention.LOSS) is None:
            self._pending = _PendingCheckpoint(latest.step, {"step": latest.step}, {})
            self._pending.is_copied.set()
            self._start(self._pending, lambda: latest)

    def wait_for_copy(self) -> None:
        """Return when the weights may change."""
        if self._pending is not None:
            self._pending.is_copied.wait()

    def report_if_done(self) -> None:
        """Report the pending checkpoint when every rank has written it; a collective."""
        if self._pending is None:
            return
        is_done = torch.tensor([float(self._pending.result.done())])
        if sum_over_ranks(is_done).item() == self.worker.world_size:
            self.finish()

    def finish(self) -> None:
        """Wait for the pending checkpoint and report it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        saved = pending.result.result()
        losses: dict[str, float] = saved.facts.get(retention.VALIDATION, {})
        if self.worker.is_first:
            if losses:
                log_losses(self.log, saved.step, losses)
            self._log(saved)
        self.worker.report({**pending.metrics, **losses}, str(saved.location))

    def report_resumed(self, latest: Checkpoint) -> None:
        """Log the checkpoint that the run resumes from: the previous process may have crashed before it did.

        One that is being validated is logged with its losses.
        """
        if not self.worker.is_first or self._pending is not None:
            return
        if self.log is not None and (losses := latest.facts.get(retention.VALIDATION)):
            self.log.log_metrics(losses, latest.step)
        self._log(latest)

    def _log(self, saved: Checkpoint) -> None:
        if self.log is not None:
            self.log.log_metrics(flatten_read(saved.facts), saved.step)
            self.log.log_checkpoint(saved.step, str(saved.location), saved.num_bytes, saved.digest)

    def _save(self, pending: _PendingCheckpoint, save: Callable[[], Checkpoint]) -> None:
        """Save, finish the files on the first rank, and set the result or the error."""
        try:
            saved = save()
            found, *_ = sharded_state.together(self._group, self.folder, partial(self._finish_files, saved))
            pending.result.set_result(replace(saved, facts={**saved.facts, **found}))
        except BaseException as error:  # raised again where the loop takes the result
            pending.result.set_exception(error)
        finally:
            pending.is_copied.set()

    def _write(self, pending: _PendingCheckpoint, state: State, staging: Staging | None) -> Checkpoint:
        if staging is not None:
            state = staging.copy(state)
        pending.is_copied.set()
        return sharded_state.write(state, pending.step, self.folder, pending.facts, self._group)

    def _finish_files(self, saved: Checkpoint) -> dict[str, Any]:
        """On the first rank, wait for the losses of asynchronous validation, save them and delete old checkpoints."""
        if not self.worker.is_first:
            return {}
        losses = self.worker.validate(saved.step) if self.worker.validate else {}
        found = {retention.LOSS: losses[VALIDATION_LOSS], retention.VALIDATION: losses} if losses else {}
        if found:
            retention.amend(saved, found)
        retention.remove_old(self.folder, self.config.keep_checkpoints, self.config.keep_best)
        return found
