"""What a run tells about itself: loss per source, tokens/s, time spent waiting for data.

In: losses, step by step. Out: one line per interval on rank 0 and the same to the tracker. Always: sums go over all
ranks once per interval, never per step.
"""

import time

import torch

from lisan.model.score import Batch
from lisan.tokens.rows import Rows
from lisan.train.course import Course
from lisan.train.objectives import Loss
from lisan.train.worker import Worker, sum_over_ranks


class Meter:
    """Adds up what happened since the last line."""

    def __init__(self, course: Course, worker: Worker, first: int) -> None:
        self.course, self.worker, self.step = course, worker, first
        self.device, self.world_size = worker.device, worker.world_size
        self.last: dict[str, float] = {}
        self.first, self.start = first, time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        num_sources = len(self.course.reader.sources)
        self._mark = time.perf_counter()
        self._tick = self._mark
        self._waited_s = 0.0
        self._nll = torch.zeros(num_sources, dtype=torch.float64)
        self._targets = torch.zeros(num_sources, dtype=torch.float64)
        self._sums: dict[str, float] = {"loss": 0.0, "num_targets": 0.0, "tokens": 0.0}

    def waited(self, step: int) -> None:
        """Note that the rows of a step have arrived."""
        self.step = step
        self._waited_s += time.perf_counter() - self._tick

    def add(self, rows: Rows, loss: Loss, batch: Batch) -> None:
        """Add the losses of a micro batch."""
        source = torch.from_numpy(self.course.reader.source_of(rows.row_ids))
        self._nll.index_add_(0, source, loss.row_nll.double().cpu())
        self._targets.index_add_(0, source, (batch.labels[:, 1:] >= 0).sum(1).double())
        sums = {
            "loss": float(loss.total.detach()),
            "num_targets": float(loss.num_targets),
            "tokens": float(batch.input_ids.numel()),
        }
        for name, value in {**sums, **{name: float(value) for name, value in loss.metrics.items()}}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._tick = time.perf_counter()

    def log(self, step: int, lr: float, grad_norm: float) -> None:
        """Sum over ranks, print a line on rank 0, send the metrics, begin the next interval."""
        names = sorted(self._sums)
        packed = torch.cat(
            [torch.tensor([self._sums[name] for name in names], dtype=torch.float64), self._nll, self._targets]
        )
        total = sum_over_ranks(packed)
        sums = dict(zip(names, total[: len(names)].tolist(), strict=True))
        seconds = time.perf_counter() - self._mark
        targets = max(1.0, sums["num_targets"])
        kept = {name: sums[name] / targets for name in names if name not in ("num_targets", "tokens")}
        speed = {"tokens_per_second": sums["tokens"] / seconds, "data_wait_ratio": self._waited_s / seconds}
        self.last = {**kept, "lr": lr, "grad_norm": grad_norm, **speed}
        if self.worker.is_first:
            nll, counts = total[len(names) :].chunk(2)
            by_source = {
                f"loss/{source}": float(nll[i] / counts[i])
                for i, source in enumerate(self.course.reader.sources)
                if counts[i] > 0
            }
            self.course.run.log_metrics(
                {f"train/{k}": v for k, v in {**self.last, **by_source, **self._mix(step)}.items()}, step
            )
            print(self._line(step), flush=True)
        self._begin()

    def _mix(self, step: int) -> dict[str, float]:
        epochs = self.course.plan.epochs(step * self.course.config.step_rows)
        return {f"epochs/{source}": value for source, value in epochs.items()}

    def _line(self, step: int) -> str:
        last = self.last
        left = (time.perf_counter() - self.start) / max(1, step - self.first) * (self.course.num_steps - step)
        extra = f" accuracy {last['accuracy']:.3f}" if "accuracy" in last else ""
        return (
            f"  step {step}/{self.course.num_steps} loss {last['loss']:.4f}{extra} lr {last['lr']:.2e} "
            f"grad_norm {last['grad_norm']:.2f} {last['tokens_per_second']:,.0f} tokens/s "
            f"data_wait {last['data_wait_ratio']:.1%} eta {left:.0f} s"
        )
