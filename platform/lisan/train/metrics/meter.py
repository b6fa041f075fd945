"""Sums the metrics of an interval over ranks: loss per source and language, tokens/s, MFU, memory, time waiting for data.

Ranks are summed once an interval, never per step. Tokens exclude padding.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from lisan.cluster.worker import Worker
from lisan.data.row_order import RowOrder
from lisan.data.rows import RowBatch
from lisan.model.flops import Work
from lisan.model.score import Batch
from lisan.train.metrics.hardware import read_memory
from lisan.train.metrics.mfu import Mfu
from lisan.train.metrics.progress_line import ProgressLine, format_bytes, format_count, format_seconds
from lisan.train.metrics.run_log import RunLog
from lisan.train.objectives import Loss

COUNTS = ("num_targets", "tokens", "flops")
"Sums of an interval that are not divided by its targets."


@dataclass(frozen=True)
class StepRange:
    """The steps of a run, as its lines number them."""

    num_steps: int
    log_every: int
    first: int = 0
    "Step at which this process starts."


class Meter:
    """Sums metrics since the last line."""

    def __init__(
        self,
        order: RowOrder,
        steps: StepRange,
        worker: Worker,
        progress: ProgressLine,
        mfu: Mfu | None = None,
        log: RunLog | None = None,
    ) -> None:
        self.order, self.steps, self.worker, self.progress, self.mfu, self.run_log = (
            order,
            steps,
            worker,
            progress,
            mfu,
            log,
        )
        self.step, self.start = steps.first, time.perf_counter()
        self.last: dict[str, float] = {}
        self.skipped_steps = 0
        self._printed: set[str] = set()
        self._printed_tflops = mfu.peak.tflops if mfu else 0.0
        if worker.is_first:
            self._print_start()
        self._begin()

    def _print_start(self) -> None:
        """Print the location of the run's page and the base of its MFU."""
        if self.run_log is not None:
            self.progress.say(f"  page: {self.run_log.open(self.steps.first)}")
        if self.mfu is not None:
            self.progress.say(f"  {self.mfu.said(self.worker.world_size)}")

    def _begin(self) -> None:
        num_sources = len(self.order.sources)
        self._mark = time.perf_counter()
        self._waited_s = 0.0
        self._nll = torch.zeros(num_sources, dtype=torch.float64)
        self._targets = torch.zeros(num_sources, dtype=torch.float64)
        self._sums: dict[str, float] = dict.fromkeys(("loss", *COUNTS), 0.0)

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Measure the time until the rows of a step arrive."""
        eta = f" {self._eta(step)}" if step > self.steps.first else ""
        self.progress.begin(f"step {step + 1}/{self.steps.num_steps}{eta}")
        self.step, begun = step, time.perf_counter()
        if self.worker.is_first and self.progress.is_live:
            self._show(step)
        yield
        self._waited_s += time.perf_counter() - begun

    def add(self, rows: RowBatch, loss: Loss, batch: Batch) -> None:
        """Add the losses of a micro batch."""
        source = torch.from_numpy(self.order.source_of(rows.row_ids))
        labels = (batch.labels[:, 1:] >= 0).sum(1)
        self._nll.index_add_(0, source, loss.row_nll.double().cpu())
        self._targets.index_add_(0, source, labels.double())
        work = measure_work(rows, int(labels.sum()))
        sums = {
            "loss": float(loss.total.detach()),
            "num_targets": float(loss.num_targets),
            "tokens": float(work.num_tokens),
            "flops": float(self.mfu.flops_of(work)) if self.mfu else 0.0,
        }
        for name, value in {**sums, **{name: float(value) for name, value in loss.metrics.items()}}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def finish_step(self, step: int) -> None:
        """Print the time of the first step, which includes compilation."""
        if self.worker.is_first and step == self.steps.first + 1 and step % self.steps.log_every:
            seconds = time.perf_counter() - self.start
            took = f"  step {step}/{self.steps.num_steps} took {seconds:.1f} s"
            self.progress.say(f"{took}, {self._eta(step)}" if step < self.steps.num_steps else took)

    def skip(self, reason: str, num_skipped: int) -> None:
        """Count and print a skipped step; its losses are in no mean."""
        self.skipped_steps = num_skipped
        if self.worker.is_first:
            self.progress.say(f"  {reason}")
            if self.run_log is not None:
                self.run_log.log_skip(self.step + 1, reason)

    def log(self, step: int, lr: float, grad_norm: float) -> None:
        """Sum over ranks, print a line on rank 0, send the metrics, begin the next interval.

        An interval with skipped steps only is continued.
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
            if self.run_log is not None:
                self.run_log.log_metrics({f"train/{name}": value for name, value in metrics.items()}, step)
            if self.progress.is_live:
                self._show(step)
            else:
                self.progress.say(self._line(step))
        self._begin()

    def _speed(self, sums: Mapping[str, float], seconds: float) -> dict[str, float]:
        speed = {"tokens_per_second": sums["tokens"] / seconds, "data_wait_ratio": self._waited_s / seconds}
        if self.mfu is None:
            return speed
        ratio = self.mfu.ratio(sums["flops"], seconds, self.worker.world_size)
        if ratio > 1:
            self._print_once(f"no MFU: the steps are faster than its peak ({self.mfu.peak.said})")
            return speed
        return {**speed, "mfu_ratio": ratio}

    def _memory(self) -> dict[str, float]:
        """Return the largest memory and the largest peak memory of any rank; all ranks take the highest measured TFLOP/s."""
        mfu = self.mfu
        if mfu is not None:
            self._measure_peak(mfu)
        most = torch.tensor([*read_memory(self.worker.device), mfu.peak.tflops if mfu else 0.0], dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        now, peak, tflops = most.tolist()
        if mfu is not None:
            mfu.peak = replace(mfu.peak, tflops=tflops)
        return {"memory_bytes": now, "peak_memory_bytes": peak}

    def _measure_peak(self, mfu: Mfu) -> None:
        """Measure the peak again on the first rank, while the others wait; print one that is over a tenth higher."""
        before = self._printed_tflops
        mfu.measure_again()
        if not self.worker.is_first or mfu.peak.tflops < 1.1 * before:
            return
        self._printed_tflops = mfu.peak.tflops
        said = mfu.said(self.worker.world_size)
        self.progress.say(f"  {said}: measured again, {before:.3g} before")
        if self.run_log is not None:
            self.run_log.set_fact("MFU of", said.removeprefix("MFU of "))

    def _print_once(self, line: str) -> None:
        if self.worker.is_first and line not in self._printed:
            self._printed.add(line)
            self.progress.say(f"  {line}")

    def _losses(self, nll: list[float], num_targets: list[float]) -> dict[str, float]:
        """Return the mean loss of every source and of every language that had targets."""
        order, by_language = self.order, {}
        for language in set(order.languages.values()):
            own = [index for index, source in enumerate(order.sources) if order.languages[source] == language]
            by_language[language] = sum(nll[i] for i in own), sum(num_targets[i] for i in own)
        by_source = dict(zip(order.sources, zip(nll, num_targets, strict=True), strict=True))
        return {
            **{f"loss/{source}": total / count for source, (total, count) in by_source.items() if count},
            **{f"language_loss/{name}": total / count for name, (total, count) in by_language.items() if count},
        }

    def _show(self, step: int) -> None:
        """Draw the live line; within an interval it shows the loss and speed of this rank, scaled to all ranks."""
        numbers = dict(self.last)
        if self._sums["num_targets"]:
            seconds = time.perf_counter() - self._mark
            numbers["loss"] = self._sums["loss"] / self._sums["num_targets"]
            numbers["tokens_per_second"] = self._sums["tokens"] * self.worker.num_data_ranks / seconds
        said = [*self._describe(numbers), self._eta(step)] if numbers else []
        self.progress.show(step, self.steps.num_steps, " ".join(said))

    def _line(self, step: int) -> str:
        last = self.last
        taken = f"lr {last['lr']:.2e} grad_norm {last['grad_norm']:.2f} data_wait {last['data_wait_ratio']:.1%}"
        return " ".join([f"  step {step}/{self.steps.num_steps}", *self._describe(last), taken, self._eta(step)])

    def _describe(self, numbers: Mapping[str, float]) -> list[str]:
        """Return the numbers that both lines show."""
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
        left = (time.perf_counter() - self.start) / max(1, step - self.steps.first) * (self.steps.num_steps - step)
        return f"eta {format_seconds(left)}"


def measure_work(rows: RowBatch, num_labels: int) -> Work:
    """Return the tokens, attention pairs and labels of rows."""
    lens = [size for row in rows.doc_lens for size in row]
    return Work(num_tokens=sum(lens), num_pairs=sum(size * size for size in lens), num_labels=num_labels)
