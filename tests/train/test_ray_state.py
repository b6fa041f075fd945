"""What the driver says of a run on Ray Train: who waits, why workers are started again, and how a request to end travels."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.experimental import internal_kv
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from lisan.core.errors import ClusterError, DataError
from lisan.core.storage import Location
from lisan.train.ray_state import Listener, Restarts, RunState, Watch, find_cause

LOST_PEER = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:32649: Connection reset by peer")


class DeadError(ActorDiedError):
    """A worker that is gone, as Ray tells of it."""

    def __init__(self, told: str) -> None:
        self.told = told

    def __str__(self) -> str:
        return self.told


def gone(told: str) -> Exception:
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=DeadError(told))


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        (
            {0: LOST_PEER, 1: gone("The actor died: connection error code 2. End of file.")},
            (1, "its process was killed, by a signal or by the kernel for want of memory"),
        ),
        (
            {0: gone("The actor is dead because its placement group was removed.")},
            (0, "its placement group was removed"),
        ),
        ({0: WorkerHealthCheckFailedError("failed", failure=OutOfMemoryError("killed"))}, (0, "out of memory")),
        ({1: gone("The actor died because its node has died.")}, (1, "its node was lost")),
        ({0: gone("Worker exits with exit code 87.")}, (0, "it hung")),
        (
            {0: RuntimeError("gloo: Timed out waiting 4000ms for recv operation")},
            (0, "it waited too long for a rank that hangs"),
        ),
        ({1: DataError("the rows are bad"), 2: LOST_PEER}, (1, "the rows are bad")),
    ],
)
def test_the_failure_that_brought_the_others_down_is_named(
    errors: dict[int, Exception], cause: tuple[int, str]
) -> None:
    assert find_cause(errors) == cause


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> RunState:
    """A state whose cluster is a dictionary."""
    kept: dict[str, str] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, namespace: kept.update({key: value}))  # noqa: ARG005
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept.get(key))  # noqa: ARG005
    return RunState()


def test_a_restart_is_said_once_and_the_last_failure_is_none(
    state: RunState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restarts = Restarts(state, Location(str(tmp_path)), max_failures=1)
    watch = Watch(state, 2)
    assert watch.describe() == "  waiting for 2 workers"
    state.begin_speaking()
    watch.look(is_asked=False)
    assert not watch.describe(), "the first worker speaks"
    restarts.after_worker_group_poll_status(SimpleNamespace(errors={}))
    for _ in range(2):
        restarts.after_worker_group_poll_status(SimpleNamespace(errors={1: DataError("the rows are bad")}))
        watch.look(is_asked=False)
    assert capsys.readouterr().out == "  rank 1 ended: the rows are bad; attempt 2 of 2 goes on from step 0\n"
    assert watch.describe() == "  waiting for 2 workers"


def test_a_request_reaches_the_worker_that_takes_steps(state: RunState) -> None:
    watch, listener = Watch(state, 2), Listener(state)
    assert not listener()
    watch.look(is_asked=True)
    deadline = time.monotonic() + 10
    while not listener() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert listener()


def test_a_request_before_the_first_step_ends_the_run_at_once(state: RunState) -> None:
    with pytest.raises(KeyboardInterrupt):
        Watch(state, 2).look(is_asked=True)


def test_a_ray_that_is_gone_is_one_sentence(state: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(dead_processes=lambda: [("raylet", None)])
    monkeypatch.setattr("ray._private.worker._global_node", node)
    with pytest.raises(ClusterError, match=r"^Ray's raylet on this machine ended; see .*; the same command resumes"):
        Watch(state, 2).look(is_asked=False)
