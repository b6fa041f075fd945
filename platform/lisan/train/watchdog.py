"""Ends a process that hangs, so that its run restarts from the last checkpoint.

The loop calls `beat` after every step. When none comes within the limit, prints the stacks of all threads and one sentence, and
exits. Watching begins after the first step, whose compilation may take long; the limit grows with the slowest step, and a process
that was itself stopped starts to count anew.

Collectives of the default group get the same limit; those inside shard groups (HSDP) have torch's own. A dead rank breaks its
connections, which every rank notices at once; the watchdog is for ranks that stand still, hangs outside of collectives, and
streams that yield nothing.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from torch.distributed.distributed_c10d import _set_pg_timeout

from lisan.cluster.worker import Worker

SLOWER = 5.0
"Largest multiple of the slowest step before."
EXIT_CODE = 87


def end_process(sentence: str) -> None:
    """Print the sentence and the stacks of all threads, and exit without clean-up, which might hang too."""
    print(f"TrainingError: {sentence}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches the steps of one process; without a limit it watches nothing."""

    def __init__(self, worker: Worker, end: Callable[[str], None] = end_process) -> None:
        self.worker, self.least_s, self.end = worker, worker.step_timeout_s, end
        self._limit_s = 0.0
        self._step = 0
        self._last: float | None = None
        self._slowest_s = 0.0
        self._is_paused = self._is_over = False
        self._wake = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.least_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._is_over = True
        self._wake.set()
        if self._limit_s and kind is None:
            # Others wait while the first rank writes the model.
            _set_pg_timeout(timedelta(seconds=self.worker.collective_timeout_s))

    def beat(self, step: int) -> None:
        """Note that a step is done."""
        now = time.monotonic()
        if self._last is not None:
            self._slowest_s = max(self._slowest_s, now - self._last)
        self._step, self._last = step, now
        if self.least_s and (limit_s := max(self.least_s, SLOWER * self._slowest_s)) > self._limit_s:
            # Set-up had the longer `runtime.collective_timeout_s`.
            _set_pg_timeout(timedelta(seconds=limit_s))
            self._limit_s = limit_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude work of unknown duration, such as waiting for storage."""
        self._is_paused, begun = True, time.monotonic()
        yield
        if self._last is not None:
            self._last += time.monotonic() - begun
        self._is_paused = False

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._wake.wait(self.least_s / 10):
            before, looked = looked, time.monotonic()
            if looked - before > self.least_s / 2 and self._last is not None:
                self._last = looked  # stopped, or starved
            if self._is_over or self._is_paused or self._last is None:
                continue
            if looked - self._last > self._limit_s:
                self.end(
                    f"rank {self.worker.rank} finished no step for {looked - self._last:.0f} s after step {self._step}, and "
                    f"runtime.step_timeout_s is {self.least_s}; its stacks follow, and the run goes on from its last checkpoint "
                    "where cluster.max_failures allows; raise runtime.step_timeout_s if a step may take so long"
                )
