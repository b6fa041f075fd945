"""Decides after which steps a run writes a checkpoint: by steps, by minutes, and when it is asked to end.

All ranks decide alike. What only some of them know (the first rank's clock, a signal that one process received) travels with the
sum over ranks that every step takes anyway: `wishes` go into it, `hear` takes what came of them.
"""

import time
from collections.abc import Sequence

from lisan.cluster.worker import Worker
from lisan.train.options import LoopConfig


class CheckpointTimes:
    """Knows when the last checkpoint was begun, and whether somebody asked the run to end."""

    def __init__(self, config: LoopConfig, num_steps: int, worker: Worker) -> None:
        self.config, self.num_steps, self.worker = config, num_steps, worker
        self.is_ending = self._is_due = False
        self._last = time.monotonic()

    def wishes(self) -> tuple[float, float]:
        """Return what this rank wants after the step that it is about to take: a checkpoint, and the end."""
        late_s = time.monotonic() - self._last
        is_due = self.worker.is_first and 0 < self.config.checkpoint_every_min * 60 <= late_s
        return float(is_due), float(self.worker.is_interrupted())

    def hear(self, sums: Sequence[float]) -> None:
        """Take the sums of the wishes of all ranks."""
        is_due, is_ending = (value > 0 for value in sums)
        self._is_due, self.is_ending = self._is_due or is_due, self.is_ending or is_ending

    def is_planned(self, step: int) -> bool:
        """Whether there is a checkpoint after so many steps in every run of this config."""
        return step % self.config.checkpoint_every == 0 or step == self.num_steps

    def is_kept(self, step: int) -> bool:
        """Whether there is a checkpoint after so many steps in this run; called once a step."""
        if not (self._is_due or self.is_ending or self.is_planned(step)):
            return False
        self._is_due, self._last = False, time.monotonic()
        return True
