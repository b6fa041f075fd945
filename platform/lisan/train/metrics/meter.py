"""What a run tells about itself: loss per source and language, tokens/s, MFU, memory, time spent waiting for data.

In: losses, step by step. Out: one line per interval on rank 0 and the same to the tracker. Always: sums go over all
ranks once per interval, never per step; a token is one that is no padding, and MFU is of model FLOPs (`model.flops`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from lisan.cluster.worker import Worker
from lisan.data.rows import RowBatch
from lisan.model.flops import Work
from lisan.model.score import Batch
from lisan.train.metrics.hardware import read_memory
from lisan.train.metrics.mfu import Gauge
from lisan.train.metrics.progress_line import format_bytes, format_count, format_seconds
from lisan.train.objectives import Loss
from lisan.train.plan import Course

COUNTS = ("num_targets", "tokens", "flops")
"Sums of an interval that are not means over its targets."


class Meter:
    """Adds up what happened since the last line."""

    def __init__(self, course: Course, worker: Worker, first: int, skipped_steps: int = 0) -> None:
        self.course, self.worker, self.step = course, worker, first
        self.device, self.world_size = worker.device, worker.world_size
        self.last: dict[str, float] = {}
        self.skipped_steps = skipped_steps
        self.first, self.start = first, time.perf_counter()
        self._said: set[str] = set()
        self._said_tflops = course.gauge.peak.tflops if course.gauge else 0.0
        if worker.is_first:
            self._announce()
        self._begin()

    def _announce(self) -> None:
        """Say where the run can be watched, and what its MFU is a share of."""
        course = self.course
        if course.history is not None:
            course.progress.say(f"  page: {course.history.open(self.first)}")
        if course.gauge is not None:
            course.progress.say(f"  {course.gauge.said(self.world_size)}")

    def _begin(self) -> None:
        num_sources = len(self.course.order.sources)
        self._mark = time.perf_counter()
        self._waited_s = 0.0
        self._nll = torch.zeros(num_sources, dtype=torch.float64)
        self._targets = torch.zeros(num_sources, dtype=torch.float64)
        self._sums: dict[str, float] = dict.fromkeys(("loss", *COUNTS), 0.0)

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Count the time until the rows of a step have arrived."""
        eta = f" {self._eta(step)}" if step > self.first else ""
        self.course.progress.begin(f"step {step + 1}/{self.course.num_steps}{eta}")
        self.step, begun = step, time.perf_counter()
        if self.worker.is_first and self.course.progress.is_live:
            self._show(step)
        yield
        self._waited_s += time.perf_counter() - begun

    def add(self, rows: RowBatch, loss: Loss, batch: Batch) -> None:
        """Add the losses of a micro batch."""
        source = torch.from_numpy(self.course.order.source_of(rows.row_ids))
        labels = (batch.labels[:, 1:] >= 0).sum(1)
        self._nll.index_add_(0, source, loss.row_nll.double().cpu())
        self._targets.index_add_(0, source, labels.double())
        work = measure_work(rows, int(labels.sum()))
        sums = {
            "loss": float(loss.total.detach()),
            "num_targets": float(loss.num_targets),
            "tokens": float(work.num_tokens),
            "flops": float(self.course.gauge.flops_of(work)) if self.course.gauge else 0.0,
        }
        for name, value in {**sums, **{name: float(value) for name, value in loss.metrics.items()}}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def finish_step(self, step: int) -> None:
        """Say how long the first step took, which has compiled and read what the others need too."""
        if self.worker.is_first and step == self.first + 1 and step % self.course.config.log_every:
            seconds = time.perf_counter() - self.start
            took = f"  step {step}/{self.course.num_steps} took {seconds:.1f} s"
            self.course.progress.say(f"{took}, {self._eta(step)}" if step < self.course.num_steps else took)

    def skip(self, reason: str, num_skipped: int) -> None:
        """Say that a step was not taken; its losses are in no mean."""
        self.skipped_steps = num_skipped
        if self.worker.is_first:
            self.course.progress.say(f"  {reason}")
            if self.course.history is not None:
                self.course.history.note(self.step + 1, reason)

    def log(self, step: int, lr: float, grad_norm: float) -> None:
        """Sum over ranks, print a line on rank 0, send the metrics, begin the next interval.

        An interval of which every step was skipped has nothing to say and goes on.
        """
        names = sorted(self._sums)
        seconds = time.perf_counter() - self._mark
        packed = torch.cat(
            [torch.tensor([self._sums[name] for name in names], dtype=torch.float64), self._nll, self._targets]
        )
        total = self.worker.sum_over_data(packed)
        sums = dict(zip(names, total[: len(names)].tolist(), strict=True))
        if not sums["num_targets"]:
            return
        kept = {name: sums[name] / sums["num_targets"] for name in names if name not in COUNTS}
        taken = {"lr": lr, "grad_norm": grad_norm, "skipped_steps": self.skipped_steps}
        memory = self._memory()
        self.last = {**kept, **taken, **self._speed(sums, seconds), **memory}
        if self.worker.is_first:
            losses = self._losses(*total[len(names) :].reshape(2, -1).tolist())
            metrics = {**self.last, **losses}
            self.course.run.log_metrics({f"train/{name}": value for name, value in metrics.items()}, step)
            if self.course.progress.is_live:
                self._show(step)
            else:
                self.course.progress.say(self._line(step))
        self._begin()

    def _speed(self, sums: Mapping[str, float], seconds: float) -> dict[str, float]:
        speed = {"tokens_per_second": sums["tokens"] / seconds, "data_wait_ratio": self._waited_s / seconds}
        gauge = self.course.gauge
        if gauge is None:
            return speed
        mfu = gauge.mfu(sums["flops"], seconds, self.world_size)
        if mfu > 1:
            self._say_once(f"no MFU: the steps are faster than the peak that it is a share of ({gauge.peak.said})")
            return speed
        return {**speed, "mfu_ratio": mfu}

    def _memory(self) -> dict[str, float]:
        """Return what the rank with the most of it holds, and the most that any has held; all learn the highest peak."""
        gauge = self.course.gauge
        if gauge is not None:
            self._measure_peak(gauge)
        most = torch.tensor([*read_memory(self.device), gauge.peak.tflops if gauge else 0.0], dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        now, peak, tflops = most.tolist()
        if gauge is not None:
            gauge.peak = replace(gauge.peak, tflops=tflops)
        return {"memory_bytes": now, "peak_memory_bytes": peak}

    def _measure_peak(self, gauge: Gauge) -> None:
        """On the first rank, while the others wait, measure the peak again; say one that is more than a tenth higher."""
        before = self._said_tflops
        gauge.measure_again()
        if not self.worker.is_first or gauge.peak.tflops < 1.1 * before:
            return
        self._said_tflops = gauge.peak.tflops
        said = gauge.said(self.world_size)
        self.course.progress.say(f"  {said}: measured again, {before:.3g} before")
        if self.course.history is not None:
            self.course.history.header["facts"]["MFU of"] = said.removeprefix("MFU of ")

    def _say_once(self, line: str) -> None:
        if self.worker.is_first and line not in self._said:
            self._said.add(line)
            self.course.progress.say(f"  {line}")

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

    def _show(self, step: int) -> None:
        """Draw the live line: between two intervals with the loss and speed of this rank, which has its share of the rows."""
        numbers = dict(self.last)
        if self._sums["num_targets"]:
            seconds = time.perf_counter() - self._mark
            numbers["loss"] = self._sums["loss"] / self._sums["num_targets"]
            numbers["tokens_per_second"] = self._sums["tokens"] * self.worker.num_data_ranks / seconds
        said = [*self._describe(numbers), self._eta(step)] if numbers else []
        self.course.progress.show(step, self.course.num_steps, " ".join(said))

    def _line(self, step: int) -> str:
        last = self.last
        taken = f"lr {last['lr']:.2e} grad_norm {last['grad_norm']:.2f} data_wait {last['data_wait_ratio']:.1%}"
        return " ".join([f"  step {step}/{self.course.num_steps}", *self._describe(last), taken, self._eta(step)])

    def _describe(self, numbers: Mapping[str, float]) -> list[str]:
        """Return what both lines tell, in words."""
        parts = [f"loss {numbers['loss']:.4f}"]
        if "accuracy" in numbers:
            parts.append(f"accuracy {numbers['accuracy']:.3f}")
        parts.append(f"{format_count(numbers['tokens_per_second'])} tok/s")
        if "mfu_ratio" in numbers:
            parts.append(f"mfu {numbers['mfu_ratio']:.1%}")
        if "memory_bytes" in numbers:
            parts.append(format_bytes(numbers["memory_bytes"]))
        return parts

    def _eta(self, step: int) -> str:
        left = (time.perf_counter() - self.start) / max(1, step - self.first) * (self.course.num_steps - step)
        return f"eta {format_seconds(left)}"


def measure_work(rows: RowBatch, num_labels: int) -> Work:
    """Return what there is to compute in some rows."""
    lens = [size for row in rows.doc_lens for size in row]
    return Work(num_tokens=sum(lens), num_pairs=sum(size * size for size in lens), num_labels=num_labels)
