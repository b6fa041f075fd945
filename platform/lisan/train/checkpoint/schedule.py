"""Decides after which steps a run writes a checkpoint: by steps, by minutes, and when it is asked to end.

All ranks decide alike. Facts that only some ranks know (the first rank's clock, a signal to one process) are summed over ranks
together with the targets of a step: `requests` returns this rank's numbers, `set_requests` takes the sums.
"""

import time
from collections.abc import Sequence

from lisan.cluster.worker import Worker
from lisan.train.options import LoopConfig


class CheckpointSchedule:
    """Tracks the time of the last checkpoint and requests to end."""

    def __init__(self, config: LoopConfig, num_steps: int, worker: Worker) -> None:
        self.config, self.num_steps, self.worker = config, num_steps, worker
        self.is_ending = self._is_due = False
        self._last = time.monotonic()

    def requests(self) -> tuple[float, float]:
        """Return 1.0 or 0.0 for a checkpoint by minutes and for the end, after the current step."""
        late_s = time.monotonic() - self._last
        is_due = self.worker.is_first and 0 < self.config.checkpoint_every_min * 60 <= late_s
        return float(is_due), float(self.worker.is_interrupted())

    def set_requests(self, sums: Sequence[float]) -> None:
        """Set the requests from their sums over ranks."""
        is_due, is_ending = (value > 0 for value in sums)
        self._is_due, self.is_ending = self._is_due or is_due, self.is_ending or is_ending

    def is_planned(self, step: int) -> bool:
        """Whether every run of this config writes a checkpoint after this step."""
        return step % self.config.checkpoint_every == 0 or step == self.num_steps

    def is_kept(self, step: int) -> bool:
        """Whether this run writes a checkpoint after this step; called once a step."""
        if not (self._is_due or self.is_ending or self.is_planned(step)):
            return False
        self._is_due, self._last = False, time.monotonic()
        return True
