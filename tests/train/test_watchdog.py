"""The watchdog: what hangs ends with its stacks, what is slow or waits for storage does not."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import ALONE

from lisan.cluster.worker import ProcessGroup
from lisan.core.errors import ConfigError
from lisan.train.options import RuntimeConfig
from lisan.train.watchdog import EXIT_CODE, Watchdog

WATCHED = replace(ALONE, rank=3, step_timeout_s=1)
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with ProcessGroup(ALONE):
        yield


class End:
    """Stands where the process would end."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.came = threading.Event()

    def __call__(self, sentence: str) -> None:
        self.said.append(sentence)
        self.came.set()


def test_a_hang_after_a_step_ends_the_process_in_one_sentence() -> None:
    end = End()
    with Watchdog(WATCHED, end) as watchdog:
        watchdog.beat(7)
        assert end.came.wait(WAIT_S)
    assert end.said[0].startswith("rank 3 finished no step for ")
    assert "after step 7, and runtime.step_timeout_s is 1" in end.said[0]
    assert "\n" not in end.said[0]


def test_before_the_first_step_nothing_is_a_hang() -> None:
    end = End()
    with Watchdog(WATCHED, end):
        assert not end.came.wait(2.5)


def test_what_may_take_any_time_is_not_counted() -> None:
    end = End()
    with Watchdog(WATCHED, end) as watchdog:
        watchdog.beat(1)
        with watchdog.paused():
            assert not end.came.wait(2.5)
        assert end.came.wait(WAIT_S)


def test_without_a_limit_nothing_is_watched() -> None:
    end = End()
    with Watchdog(ALONE, end) as watchdog:
        watchdog.beat(1)
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert not end.said


def test_the_limit_grows_with_the_slowest_step_and_holds_for_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    set_to: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("lisan.train.watchdog._set_pg_timeout", lambda limit: set_to.append(limit.total_seconds()))
    watched = replace(WATCHED, step_timeout_s=1000)
    with Watchdog(watched, End()) as watchdog:
        for seconds in (0, 300, 100, 400):
            now[0] += seconds
            with watchdog.paused():
                now[0] += 10_000
            watchdog.beat(1)
    assert set_to == [1000, 1500, 2000, watched.collective_timeout_s]


def test_a_collective_takes_the_limit() -> None:
    with Watchdog(WATCHED, End()) as watchdog:
        watchdog.beat(1)
        with watchdog.paused():
            backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
            assert backend.options._timeout.total_seconds() == 1


def test_the_process_really_ends_and_shows_where_it_hung(tmp_path: Path) -> None:
    code = (
        "import time; from lisan.train.watchdog import Watchdog; from lisan.cluster.worker import ProcessGroup, Worker\n"
        "def hang_here(): time.sleep(100)\n"
        "worker = Worker(step_timeout_s=1)\n"
        "with ProcessGroup(worker), Watchdog(worker) as watchdog:\n"
        "    watchdog.beat(2)\n"
        "    hang_here()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CODE
    assert "TrainingError: rank 0 finished no step" in done.stderr
    assert "hang_here" in done.stderr


@pytest.mark.parametrize("name", ["step_timeout_s", "collective_timeout_s"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} >= 1"):
        RuntimeConfig(**{name: 0})


@pytest.mark.parametrize(
    ("timeout_s", "sentence"),
    [
        (0, r"runtime\.validation_timeout_s must be in 1\.\.1500"),
        (1800, "the other workers wait for half an hour, got 1800; lower validation.num_rows"),
    ],
)
def test_a_validation_longer_than_workers_wait_is_refused(timeout_s: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RuntimeConfig(validation_timeout_s=timeout_s)
