"""One Ray for the tests of a module that call it in this process."""

import os
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest


@pytest.fixture(scope="module")
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start one with `NUM_CPUS` logical CPUs of the module, unless this process has joined one; leave none behind."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=request.module.NUM_CPUS, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        end_streams()
        ray.shutdown()


def end_streams() -> None:
    """End what feeds streams that a test did not read to their end.

    Their threads would otherwise ask a Ray that is gone, for ever and at full speed.
    """
    feeding = [child for child in psutil.Process().children(recursive=True) if "SplitCoord" in child.name()]
    for child in feeding:
        child.kill()
    deadline = time.monotonic() + 10
    while feeding and time.monotonic() < deadline and any(map(is_asking, threading.enumerate())):
        time.sleep(0.1)


def is_asking(thread: threading.Thread) -> bool:
    """Tell whether a thread of Ray Data waits for the next block."""
    frame, names = sys._current_frames().get(thread.ident or 0), set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return {"gen_blocks", "get_objects"} <= names
