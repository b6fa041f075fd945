"""Errors that all workers come to alike, and those of one alone."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from tiny import ALONE
from torch.distributed.distributed_c10d import _get_default_store

from lisan.cluster.worker import ProcessGroup
from lisan.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DivergenceError,
    Interrupted,
    LisanError,
    TrainingError,
)
from lisan.train import deterministic_errors, launch


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Be one of two ranks; what is returned lets the other one raise."""
    with ProcessGroup(ALONE):
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(deterministic_errors, "PATIENCE_S", 0.2)
        yield lambda error: _get_default_store().add(f"lisan/deterministic/{type(error).__name__}", 1)


def test_what_all_ranks_come_to_is_unanimous(pair: Any) -> None:
    pair(ConfigError(""))
    assert deterministic_errors.is_unanimous(ConfigError("wrong"), 0.2)


def test_an_error_of_one_rank_is_not_and_waits_for_nobody(pair: Any) -> None:
    pair(DataError(""))
    begun = time.monotonic()
    assert not deterministic_errors.is_unanimous(ConfigError("wrong"), 0.2)
    assert time.monotonic() - begun < 2


def test_without_a_group_nobody_is_asked() -> None:
    assert not deterministic_errors.is_unanimous(ConfigError("wrong"), 0.2)


@pytest.mark.parametrize(
    ("error", "is_asked"),
    [
        (ConfigError("flash needs a GPU"), True),
        (DataError("another model scored them"), True),
        (DivergenceError("loss is nan"), True),
        (TrainingError("the stream is out of order"), False),
        (ArtifactError("storage is away"), False),
        (RuntimeError("connection closed by peer"), False),
    ],
)
def test_a_worker_returns_what_is_unanimous_and_raises_the_rest(
    error: Exception, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    asked: list[LisanError] = []
    monkeypatch.setattr(launch, "_describe_worker", lambda *_: ALONE)
    monkeypatch.setattr(launch, "run_worker", fail)
    monkeypatch.setattr(launch, "is_unanimous", lambda error: asked.append(error) or True)
    job: Any = SimpleNamespace()
    if is_asked:
        assert launch._on_worker(job, None, None) is error
        monkeypatch.setattr(launch, "is_unanimous", lambda _: False)
    with pytest.raises(type(error)):
        launch._on_worker(job, None, None)
    assert asked == [error] * is_asked


def test_a_worker_that_was_asked_to_end_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: Any) -> None:
        raise Interrupted("after step 3")

    monkeypatch.setattr(launch, "_describe_worker", lambda *_: ALONE)
    monkeypatch.setattr(launch, "run_worker", end)
    assert isinstance(launch._on_worker(SimpleNamespace(), None, None), Interrupted)
