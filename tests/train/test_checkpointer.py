"""Checkpoints that are written while training goes on: what is in them, how many at a time, what fails how."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from tiny import ALONE, Recorder, largest_difference, make_job, train_alone, train_as_pair, train_config, weights

from lisan.core.artifact import Store
from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.storage import Location
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.checkpointer import Checkpointer
from lisan.train.checkpoint.staging import Staging
from lisan.train.metrics.run_log import read_run_log
from lisan.train.options import LoopConfig
from lisan.train.run import run_worker

WAIT_S = 20.0
"For what must happen in another thread; a test that waits so long has failed."


def config(store: Store, **loop: Any) -> Any:
    return train_config(store, loop={"num_steps": 6, "checkpoint_every": 2, "keep_checkpoints": 9, **loop})


def marks(folder: Path) -> dict[str, Any]:
    """Return the marks of all checkpoints by name, without what differs from run to run: DCP's metadata, metrics with times."""
    places = (Location(str(folder)) / "checkpoints").list()
    found = {place.name: (place / retention.MARK).read_json() for place in places if place.name.startswith("step_")}
    for mark in found.values():
        del mark["files"][".metadata"], mark["sha256"], mark["bytes"], mark["metrics"]
    return found


@pytest.fixture(scope="module")
def written_in_turn(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands still for every checkpoint."""
    folder = tmp_path_factory.mktemp("in_turn")
    train_alone(tiny_store, config(tiny_store, async_checkpoints=False), folder)
    return folder


def assert_same_checkpoints(folder: Path, other: Path) -> None:
    """Hold all of it equal: weights, optimizer and books, by the hash of every file."""
    assert marks(folder) == marks(other)
    assert len(marks(folder)) == 3


def test_a_checkpoint_is_the_same_whether_training_waits_for_it_or_not(
    tiny_store: Store, tmp_path: Path, written_in_turn: Path
) -> None:
    train_alone(tiny_store, config(tiny_store), tmp_path)
    assert_same_checkpoints(tmp_path, written_in_turn)


def delayed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, may_go: threading.Event) -> None:
    """Let a function of the checkpointer's thread begin only when something has happened in the loop."""
    real: Callable[..., Any] = getattr(owner, name)

    def late(*args: Any, **kwargs: Any) -> Any:
        assert may_go.wait(WAIT_S)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, late)


def test_a_checkpoint_that_is_written_late_holds_the_state_of_its_step(
    tiny_store: Store, tmp_path: Path, written_in_turn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_3_is_done = threading.Event()

    class Watching(Recorder):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics(metrics, step)
            if step == 3:
                step_3_is_done.set()

    delayed(monkeypatch, sharded_state, "write", step_3_is_done)
    job = make_job(tiny_store, config(tiny_store), tmp_path)
    run_worker(replace(job, run=Watching()), ALONE)
    assert_same_checkpoints(tmp_path, written_in_turn)


def test_no_weight_changes_before_its_copy_is_made(
    tiny_store: Store, tmp_path: Path, written_in_turn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_about_to_change = threading.Event()
    wait = Checkpointer.wait_for_copy

    def waits(checkpointer: Checkpointer) -> None:
        if checkpointer._pending is not None:
            is_about_to_change.set()
        wait(checkpointer)

    finish = Checkpointer.finish

    def finishes(checkpointer: Checkpointer) -> None:
        is_about_to_change.set()
        finish(checkpointer)

    monkeypatch.setattr(Checkpointer, "wait_for_copy", waits)
    monkeypatch.setattr(Checkpointer, "finish", finishes)
    delayed(monkeypatch, Staging, "copy", is_about_to_change)
    train_alone(tiny_store, config(tiny_store), tmp_path)
    assert_same_checkpoints(tmp_path, written_in_turn)


def test_one_checkpoint_is_written_at_a_time_and_all_are_told_in_order(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Lock()
    real, threads = sharded_state.write, []

    def write(*args: Any) -> Any:
        assert writing.acquire(blocking=False)
        threads.append(threading.current_thread())
        try:
            return real(*args)
        finally:
            writing.release()

    monkeypatch.setattr(sharded_state, "write", write)
    reports: list[tuple[float, str]] = []
    worker = replace(ALONE, report=lambda metrics, place: reports.append((metrics["step"], Path(str(place)).name)))
    run = train_alone(tiny_store, config(tiny_store, checkpoint_every=1), tmp_path, worker)
    assert reports == [(step, f"step_{step:08d}") for step in range(1, 7)]
    assert run.checkpoints == list(range(1, 7))
    assert len(set(threads)) == 6
    assert threading.main_thread() not in threads[:-1]  # beside the last one nothing is left to compute


def test_storage_that_vanishes_ends_the_run_in_one_sentence_and_the_run_goes_on_when_it_is_back(
    tiny_store: Store, tmp_path: Path, written_in_turn: Path
) -> None:
    checkpoints, aside = tmp_path / "checkpoints", tmp_path / "aside"

    def vanish(metrics: Mapping[str, float], place: str | None) -> None:
        if metrics["step"] == 2:
            checkpoints.rename(aside)
            checkpoints.write_text("no folder")

    with pytest.raises(
        ArtifactError, match=r"the checkpoint cannot be written to .*step_0000000[46].*make room or"
    ) as caught:
        train_alone(tiny_store, config(tiny_store), tmp_path, replace(ALONE, report=vanish))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert not dist.is_initialized()
    checkpoints.unlink()
    aside.rename(checkpoints)
    train_alone(tiny_store, config(tiny_store), tmp_path)
    assert largest_difference(weights(tmp_path), weights(written_in_turn)) == 0


def test_a_full_disk_ends_the_run_in_one_sentence(tiny_store: Store, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the same call fails with another number."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot be written to .*step_00000002 \([\d,]+ MB free there\)"):
            train_alone(tiny_store, config(tiny_store), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert retention.find_latest(Location(str(tmp_path)) / "checkpoints") is None


def test_a_run_that_fails_lets_the_checkpoint_that_is_being_written_come_to_its_end(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_failed = threading.Event()
    leave = Checkpointer.__exit__

    def leaves(checkpointer: Checkpointer, *args: Any) -> None:
        has_failed.set()
        leave(checkpointer, *args)

    monkeypatch.setattr(Checkpointer, "__exit__", leaves)
    delayed(monkeypatch, sharded_state, "write", has_failed)

    class Failing(Recorder):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: ARG002
            if step == 3:
                raise ZeroDivisionError

    job = make_job(tiny_store, config(tiny_store), tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_worker(replace(job, run=Failing()), ALONE)
    assert retention.next_start(Location(str(tmp_path)) / "checkpoints")[0] == 2


def test_the_best_stay_beside_the_latest(tiny_store: Store, tmp_path: Path) -> None:
    kept = {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 2, "num_steps": 8}
    run = train_alone(tiny_store, config(tiny_store, **kept), tmp_path)
    loss = run.curve("loss")
    means = {step: sum(loss[:step]) / step for step in range(1, 9)}
    best = sorted(means, key=lambda step: means[step])[:2]
    assert sorted(marks(tmp_path)) == sorted({f"step_{step:08d}" for step in (*best, 8)})
    assert [found.step for found in retention.find_best(Location(str(tmp_path)) / "checkpoints", 2)] == best


def test_a_checkpoint_is_validated_beside_training_stays_meanwhile_and_is_ranked_by_what_was_found(
    tiny_store: Store, tmp_path: Path, written_in_turn: Path
) -> None:
    """The checkpoint of step 2 is found worse than that of step 4, and only when step 3 is done."""
    step_3_is_done, places = threading.Event(), Location(str(tmp_path)) / "checkpoints"

    class Watching(Recorder):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics(metrics, step)
            if step == 3:
                step_3_is_done.set()

    def validate(step: int) -> dict[str, float]:
        assert retention.open_step(places, step).facts["loss"] is None
        assert step_3_is_done.wait(WAIT_S)
        return {"validation/loss": {2: 2.0, 4: 1.0, 6: 3.0}[step]}

    kept = config(tiny_store, keep_checkpoints=1, keep_best=1)
    job, reports = replace(make_job(tiny_store, kept, tmp_path), run=Watching()), []
    run_worker(job, replace(ALONE, validate=validate, report=lambda metrics, _: reports.append(metrics)))
    assert {step: metrics.get("validation/loss") for step, metrics in sorted(job.run.steps.items())} == {
        **dict.fromkeys(range(1, 7)),
        **{2: 2.0, 4: 1.0, 6: 3.0},
    }
    assert [metrics["validation/loss"] for metrics in reports] == [2.0, 1.0, 3.0]
    assert sorted(marks(tmp_path)) == ["step_00000004", "step_00000006"]
    assert [(found.step, found.facts["loss"]) for found in retention.find_best(places, 2)] == [(4, 1.0), (6, 3.0)]
    assert largest_difference(weights(tmp_path), weights(written_in_turn)) == 0
    _, lines = read_run_log(places)
    assert {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line} == {
        2: 2.0,
        4: 1.0,
        6: 3.0,
    }
    assert [line["step"] for line in lines] == list(range(1, 7))


def test_a_checkpoint_that_was_not_validated_is_no_best_and_a_run_that_goes_on_makes_up_for_it(
    tiny_store: Store, tmp_path: Path
) -> None:
    places = Location(str(tmp_path)) / "checkpoints"
    losses = {2: 2.0, 4: 1.0, 6: 3.0}
    fails = replace(ALONE, validate=lambda step: {"validation/loss": losses[step]} if step < 6 else {})
    train_alone(tiny_store, config(tiny_store), tmp_path, fails)
    assert [found.step for found in retention.find_best(places, 9)] == [4, 2]
    asked: list[int] = []

    def validate(step: int) -> dict[str, float]:
        asked.append(step)
        return {"validation/loss": losses[step]}

    run = train_alone(tiny_store, config(tiny_store), tmp_path, replace(ALONE, validate=validate))
    assert asked == [6]
    assert run.steps[6]["validation/loss"] == 3.0
    assert [found.step for found in retention.find_best(places, 9)] == [4, 2, 6]
    train_alone(tiny_store, config(tiny_store), tmp_path, replace(ALONE, validate=validate))
    assert asked == [6]


@pytest.mark.parametrize("name", ["keep_best", "keep_checkpoints"])
def test_a_negative_number_of_checkpoints_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        LoopConfig(**{name: -1})


def test_two_ranks_write_what_each_of_them_holds(tiny_store: Store, tmp_path: Path) -> None:
    names = ("late", "in_turn")
    jobs = [
        make_job(tiny_store, config(tiny_store, async_checkpoints=name == "late"), tmp_path / name) for name in names
    ]
    train_as_pair(jobs, tmp_path / "runs")
    assert_same_checkpoints(tmp_path / "late", tmp_path / "in_turn")
    files = marks(tmp_path / "late")["step_00000006"]["files"]
    assert {name[:3] for name in files} == {"__0", "__1"}


def test_what_fails_on_one_rank_is_the_same_sentence_on_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_fail_on_rank_1, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert "No space left on device" in (tmp_path / "0").read_text()
    shutil.rmtree(tmp_path)


def _fail_on_rank_1(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def do() -> None:
        if rank == 1:
            raise OSError(28, os.strerror(28))

    with pytest.raises(ArtifactError) as caught:
        sharded_state.together(None, Location(folder), do)
    Path(folder, str(rank)).write_text(str(caught.value))
    dist.barrier()
    dist.destroy_process_group()
