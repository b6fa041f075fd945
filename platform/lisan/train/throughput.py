"""What a run tells about itself: loss per source and language, tokens/s, time spent waiting for data.

In: losses, step by step. Out: one line per interval on rank 0 and the same to the tracker. Always: sums go over all
ranks once per interval, never per step.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        self.skipped_steps = 0
        self.first, self.start = first, time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        num_sources = len(self.course.order.sources)
        self._mark = time.perf_counter()
        self._waited_s = 0.0
        self._nll = torch.zeros(num_sources, dtype=torch.float64)
        self._targets = torch.zeros(num_sources, dtype=torch.float64)
        self._sums: dict[str, float] = {"loss": 0.0, "num_targets": 0.0, "tokens": 0.0}

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Count the time until the rows of a step have arrived."""
        self.step, begun = step, time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - begun

    def add(self, rows: Rows, loss: Loss, batch: Batch) -> None:
        """Add the losses of a micro batch."""
        source = torch.from_numpy(self.course.order.source_of(rows.row_ids))
        self._nll.index_add_(0, source, loss.row_nll.double().cpu())
        self._targets.index_add_(0, source, (batch.labels[:, 1:] >= 0).sum(1).double())
        sums = {
            "loss": float(loss.total.detach()),
            "num_targets": float(loss.num_targets),
            "tokens": float(batch.input_ids.numel()),
        }
        for name, value in {**sums, **{name: float(value) for name, value in loss.metrics.items()}}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def skip(self, reason: str, num_skipped: int) -> None:
        """Say that a step was not taken; its losses are in no mean."""
        self.skipped_steps = num_skipped
        if self.worker.is_first:
            print(f"  {reason}", flush=True)

    def log(self, step: int, lr: float, grad_norm: float) -> None:
        """Sum over ranks, print a line on rank 0, send the metrics, begin the next interval.

        An interval of which every step was skipped has nothing to say and goes on.
        """
        names = sorted(self._sums)
        packed = torch.cat(
            [torch.tensor([self._sums[name] for name in names], dtype=torch.float64), self._nll, self._targets]
        )
        total = sum_over_ranks(packed)
        sums = dict(zip(names, total[: len(names)].tolist(), strict=True))
        if not sums["num_targets"]:
            return
        seconds = time.perf_counter() - self._mark
        kept = {name: sums[name] / sums["num_targets"] for name in names if name not in ("num_targets", "tokens")}
        speed = {"tokens_per_second": sums["tokens"] / seconds, "data_wait_ratio": self._waited_s / seconds}
        self.last = {**kept, "lr": lr, "grad_norm": grad_norm, "skipped_steps": self.skipped_steps, **speed}
        if self.worker.is_first:
            losses = self._losses(*total[len(names) :].reshape(2, -1).tolist())
            metrics = {**self.last, **losses}
            self.course.run.log_metrics({f"train/{name}": value for name, value in metrics.items()}, step)
            print(self._line(step), flush=True)
        self._begin()

    def _losses(self, nll: list[float], num_targets: list[float]) -> dict[str, float]:
        """Return the mean loss of every source and of every language that had targets."""
        order, by_language = self.course.order, {}
        for language in set(order.languages.values()):
            own = [index for index, source in enumerate(order.sources) if order.languages[source] == language]
            by_language[language] = sum(nll[i] for i in own), sum(num_targets[i] for i in own)
        by_source = dict(zip(order.sources, zip(nll, num_targets, strict=True), strict=True))
        return {
            **{f"loss/{source}": total / count for source, (total, count) in by_source.items() if count},
            **{f"language_loss/{name}": total / count for name, (total, count) in by_language.items() if count},
        }

    def _line(self, step: int) -> str:
        last = self.last
        left = (time.perf_counter() - self.start) / max(1, step - self.first) * (self.course.num_steps - step)
        extra = f" accuracy {last['accuracy']:.3f}" if "accuracy" in last else ""
        return (
            f"  step {step}/{self.course.num_steps} loss {last['loss']:.4f}{extra} lr {last['lr']:.2e} "
            f"grad_norm {last['grad_norm']:.2f} {last['tokens_per_second']:,.0f} tokens/s "
            f"data_wait {last['data_wait_ratio']:.1%} eta {left:.0f} s"
        )
