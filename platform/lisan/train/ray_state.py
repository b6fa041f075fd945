"""State of a run on Ray Train that driver, controller and workers share: a request to end, restarts, and whether a worker prints.

It is in the key-value store of the cluster, because an actor would be one more process on machines of two cores. The driver polls
it while the trainer runs, prints restarts, and prints that it waits for workers until one of them prints.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import OutOfMemoryError, RayError
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from lisan.cluster.ray import check_alive, reason_of
from lisan.core.interrupt import Interruption
from lisan.core.progress import doing, say
from lisan.core.storage import Location
from lisan.train.checkpoint.retention import next_start
from lisan.train.watchdog import EXIT_CODE

POLL_S = 0.3
LISTEN_S = 1.0
REASONS = (
    (re.compile("placement group", re.I), "its placement group was removed"),
    (re.compile("low on memory|out of memory", re.I), "out of memory"),
    (re.compile(rf"exit code {EXIT_CODE}\b"), "it hung"),
    (re.compile(r"node (is|was|has) |node died|unreachable", re.I), "its node was lost"),
    (re.compile("timed? ?out|timeout", re.I), "it waited too long for a rank that hangs"),
)
"Patterns of Ray's and torch's messages on a lost worker, and the printed reason."


class RunState:
    """The state of one launch, in the key-value store of its cluster; every process of the run has a copy."""

    def __init__(self) -> None:
        self.namespace = f"lisan/{uuid.uuid4().hex}"

    def _put(self, key: str, value: object) -> None:
        internal_kv._internal_kv_put(key, json.dumps(value), namespace=self.namespace)

    def _get(self, key: str) -> Any:
        found = internal_kv._internal_kv_get(key, namespace=self.namespace)
        return found and json.loads(found)

    def ask_to_end(self) -> bool:
        """Ask the run to end; False when no worker takes steps yet, so that none could write a checkpoint."""
        self._put("end", True)
        return bool(self._get("steps"))

    def is_asked(self) -> bool:
        return bool(self._get("end"))

    def begin_steps(self) -> None:
        """Set that the workers take steps and read requests to end."""
        self._put("steps", True)

    def begin_speaking(self) -> None:
        """Set that the first worker prints its progress."""
        self._put("speaks", True)

    def is_speaking(self) -> bool:
        return bool(self._get("speaks"))

    def restart(self, number: int, line: str) -> None:
        """Record the restart of that number."""
        self._put("steps", False)
        self._put("speaks", False)
        self._put(f"restart-{number}", line)

    def find_restart(self, number: int) -> str | None:
        """Return the line of a restart; None before it."""
        line: str | None = self._get(f"restart-{number}")
        return line

    def clear(self) -> None:
        internal_kv._internal_kv_del("", del_by_prefix=True, namespace=self.namespace)


class Listener:
    """Returns whether the run was asked to end; polls in a thread from the first call on, so that no step waits."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self._is_asked = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self) -> bool:
        if self._thread is None:
            self.state.begin_steps()
            self._thread = threading.Thread(target=self._wait, name="interruption", daemon=True)
            self._thread.start()
        return self._is_asked.is_set()

    def _wait(self) -> None:
        with suppress(Exception):  # a cluster that is gone ends the worker too
            while not self.state.is_asked():
                time.sleep(LISTEN_S)
            self._is_asked.set()


class Restarts(WorkerGroupCallback):
    """Records why workers are restarted; runs in Ray Train's controller, which ends the run if this raises."""

    def __init__(self, state: RunState, checkpoints: Location, max_failures: int) -> None:
        self.state, self.checkpoints, self.max_failures = state, checkpoints, max_failures
        self.num_failures = 0

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if not worker_group_status.errors:
            return
        self.num_failures += 1
        if self.num_failures > self.max_failures:
            return
        try:
            rank, reason = find_cause(worker_group_status.errors)
            step, _ = next_start(self.checkpoints)
            attempt = f"attempt {self.num_failures + 1} of {self.max_failures + 1}"
            self.state.restart(self.num_failures, f"  rank {rank} ended: {reason}; {attempt} goes on from step {step}")
        except Exception as error:
            print(f"  the workers are restarted for an unknown reason: {error}", flush=True)


def find_cause(errors: Mapping[int, BaseException]) -> tuple[int, str]:
    """Return the rank that failed first, and the reason.

    A lost process comes before an error, which may follow from the loss; lower ranks come first.
    """
    found = {rank: list(chain(error)) for rank, error in sorted(errors.items())}
    gone = [rank for rank, causes in found.items() if any(isinstance(cause, RayError) for cause in causes)]
    rank = min(gone or found)
    causes = found[rank]
    if any(isinstance(cause, OutOfMemoryError) for cause in causes):
        return rank, "out of memory"
    text = " ".join(map(str, causes))
    known = next((reason for pattern, reason in REASONS if pattern.search(text)), "")
    if not known and rank in gone:
        known = "its process was killed, by a signal or by the kernel for want of memory"
    return rank, known or reason_of(errors[rank])


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        inner = next((getattr(error, name, None) for name in ("health_check_failure", "cause", "_base_exc")), None)
        error = inner or error.__cause__


def fit(trainer: Any, state: RunState, num_workers: int) -> Any:
    """Run a trainer and return its result; KeyboardInterrupt when the run was asked to end and did not within the grace."""
    watch = Watch(state, num_workers)
    say(f"  waiting for {num_workers} workers")
    # In a thread, because Ray Train would take Ctrl-C in the main one and kill its workers.
    run = Fit(trainer)
    with doing(watch.describe), Interruption() as interruption:
        run.start()
        while run.is_alive():
            run.join(POLL_S)
            watch.look(is_asked=interruption())
    state.clear()
    return run.outcome()


class Fit(threading.Thread):
    """A trainer at work."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.trainer.fit()
        except BaseException as error:  # raised again in the main thread
            self.error = error

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class Watch:
    """Prints the driver's lines while the trainer runs."""

    def __init__(self, state: RunState, num_workers: int) -> None:
        self.state, self.num_workers = state, num_workers
        self.num_restarts = 0
        self.is_speaking = self.is_handed_on = False

    def describe(self) -> str:
        return "" if self.is_speaking else f"  waiting for {self.num_workers} workers"

    def look(self, is_asked: bool) -> None:
        """Print restarts and pass on a request to end; KeyboardInterrupt when no worker takes steps yet, ClusterError when Ray has
        ended."""
        check_alive()
        if line := self.state.find_restart(self.num_restarts + 1):
            self.num_restarts += 1
            say(line)
        self.is_speaking = self.state.is_speaking()
        if is_asked and not self.is_handed_on:
            self.is_handed_on = True
            if not self.state.ask_to_end():
                raise KeyboardInterrupt
