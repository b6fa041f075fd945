"""MFU: the share of what a worker's device is capable of that the model's own arithmetic takes.

In: FLOPs of the model, the device's peak. Out: a ratio and a sentence with its denominator. Always: of model FLOPs, over the
whole time that an interval took, waiting and checkpoints included.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from lisan.cluster.worker import Worker
from lisan.model.flops import ModelFlops, Work, count_flops
from lisan.model.score import Scorer
from lisan.train.metrics.hardware import Peak, find_peak, measure_again

AGAIN_RATIO = 0.01
"Of a run's time that may go into measuring the peak again."


@dataclass
class Gauge:
    """What the speed of a run is held against; a measured peak rises when it is found higher."""

    flops: ModelFlops
    peak: Peak
    extra_forwards: int = 0
    "Forward passes of a step beside the one that is trained on: one for KTO's anchor."

    again: Callable[[], Peak] | None = None
    "Measures the peak once more; None where it is given or from a data sheet."
    _due: float = 0.0

    def measure_again(self) -> None:
        """Measure the peak once more, unless that would take more than `AGAIN_RATIO` of the time since the last."""
        begun = time.perf_counter()
        if self.again is None or begun < self._due:
            return
        self.peak = self.again()
        now = time.perf_counter()
        self._due = now + (now - begun) / AGAIN_RATIO

    def flops_of(self, work: Work) -> int:
        return self.flops.training(work) + self.extra_forwards * self.flops.forward(work)

    def mfu(self, flops: float, seconds: float, world_size: int) -> float:
        """Return the share of the peak of all workers."""
        return flops / seconds / (self.peak.tflops * 1e12 * world_size)

    def said(self, world_size: int) -> str:
        return f"MFU of {self.peak.said}" + (f", each of {world_size} workers" if world_size > 1 else "")


def make_gauge(scorer: Scorer, worker: Worker, given: float | None, extra_forwards: int = 0) -> Gauge | None:
    """Count the model and find the peak, on the first rank for all; None when nobody asks or the model cannot be counted."""
    if given == 0:
        return None
    flops = count_flops(scorer.model)
    if flops is None:
        if worker.is_first:
            print(
                "  no MFU: the model multiplies with weights outside of linear layers, which are not counted",
                flush=True,
            )
        return None
    found = [find_peak(worker.device, worker.precision.dtype, given) if worker.is_first else None]
    dist.broadcast_object_list(found)
    [peak] = found
    assert peak is not None
    again = (
        partial(measure_again, worker.device, worker.precision.dtype) if peak.is_measured and worker.is_first else None
    )
    return Gauge(flops, peak, extra_forwards, again)
