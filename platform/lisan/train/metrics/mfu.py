"""MFU: model FLOPs per second over the peak of the devices.

The time is that of a whole interval, waiting and checkpoints included; the FLOPs are those of `model.flops`.
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
"Largest share of a run's time for measuring the peak again."


@dataclass
class Mfu:
    """FLOPs of the model and peak of the device; a measured peak rises when a later measurement is higher."""

    flops: ModelFlops
    peak: Peak
    extra_forwards: int = 0
    "Forward passes of a step besides training: one for the KL estimate of KTO."

    again: Callable[[], Peak] | None = None
    "Measures the peak; None when it is given or from a data sheet."
    _due: float = 0.0

    def measure_again(self) -> None:
        """Measure the peak, unless that takes more than `AGAIN_RATIO` of the time since the last measurement."""
        begun = time.perf_counter()
        if self.again is None or begun < self._due:
            return
        self.peak = self.again()
        now = time.perf_counter()
        self._due = now + (now - begun) / AGAIN_RATIO

    def flops_of(self, work: Work) -> int:
        return self.flops.training(work) + self.extra_forwards * self.flops.forward(work)

    def ratio(self, flops: float, seconds: float, world_size: int) -> float:
        """Return FLOPs per second over the peak of all workers."""
        return flops / seconds / (self.peak.tflops * 1e12 * world_size)

    def said(self, world_size: int) -> str:
        return f"MFU of {self.peak.said}" + (f", each of {world_size} workers" if world_size > 1 else "")


def make_mfu(scorer: Scorer, worker: Worker, given: float | None, extra_forwards: int = 0) -> Mfu | None:
    """Count FLOPs and find the peak (the first rank's for all); None with peak 0 or for a model that cannot be counted."""
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
    return Mfu(flops, peak, extra_forwards, again)
