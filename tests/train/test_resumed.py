"""What a run that goes on remembers, tells and leaves on the machine."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALONE, Recorder, make_job, train_alone, train_config

from lisan.cluster.worker import ProcessGroup
from lisan.core import storage
from lisan.core.artifact import Store
from lisan.core.errors import ArtifactError, ConfigError, Interrupted
from lisan.core.storage import Location
from lisan.model.config import ShardingConfig
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.checkpoint.checkpointer import Checkpointer
from lisan.train.metrics.run_log import read_run_log
from lisan.train.run import run_worker
from lisan.train.stages import check, train
from lisan.train.watchdog import Watchdog


class KilledError(Exception):
    """Stands for a process that dies."""


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    """A place on an object store of this process, with folders for what is temporary and what is cached."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("LISAN_CACHE", str(tmp_path / "cache"))
    storage._open_root.cache_clear()
    yield Location("mock:///bucket")
    storage._open_root.cache_clear()


def left_behind(folder: Path) -> list[str]:
    """List what lies in the folders for temporary and cached files, without the marks of files whose hashes were compared."""
    files = [file for name in ("temporary", "cache") for file in (folder / name).rglob("*")]
    return [str(file) for file in files if "hashed" not in file.parts]


def test_a_run_that_is_over_still_tells_how_it_ended(tiny_store: Store, tmp_path: Path) -> None:
    job = make_job(tiny_store, train_config(tiny_store), tmp_path)
    first = run_worker(job, ALONE)
    assert first["loss"] > 0
    assert run_worker(job, ALONE) == first
    assert {"tokens_per_second", "skipped_steps"} <= first.keys()


def test_steps_that_were_skipped_before_a_run_went_on_are_counted(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tiny_store)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "report_if_done", die_after(3))
        with pytest.raises(KilledError):
            train_alone(tiny_store, config, tmp_path)
    latest = retention.find_latest(Location(str(tmp_path)) / "checkpoints")
    assert latest is not None
    retention.amend(latest, {"guard": {**latest.facts["guard"], "skipped": 2}})
    assert train_alone(tiny_store, config, tmp_path).curve("skipped_steps")[-1] == 2


def die_after(step: int) -> Any:
    looked: list[int] = []

    def report_if_done(checkpointer: Checkpointer) -> None:
        looked.append(1)
        if len(looked) > step:
            checkpointer._pending.result.result() if checkpointer._pending else None
            raise KilledError

    return report_if_done


def test_a_checkpoint_that_nobody_was_told_of_is_told_of_when_the_run_goes_on(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, job = train_config(tiny_store), make_job(tiny_store, train_config(tiny_store), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "report_if_done", die_after(3))
        with pytest.raises(KilledError):
            run_worker(job, ALONE)
    assert job.run.checkpoints == []  # type: ignore[attr-defined]
    latest = retention.find_latest(job.checkpoints)
    assert latest is not None
    retention.amend(latest, {retention.LOSS: 2.0, retention.VALIDATION: {"validation/loss": 2.0}})
    run = train_alone(tiny_store, config, tmp_path)
    assert run.checkpoints == [3, 6]
    assert run.steps[3]["validation/loss"] == 2.0
    assert any(name.startswith("read/tokens/") for name in run.steps[3])
    [line] = [line for line in read_run_log(job.checkpoints)[1] if line["step"] == 3]
    assert line["validation/loss"] == 2.0


def test_a_run_on_an_object_store_leaves_nothing_on_the_machine(
    tiny_store: Store, tmp_path: Path, away: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_store, train_config(tiny_store), away.root)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "report_if_done", die_after(3))
        with pytest.raises(KilledError):
            run_worker(job, ALONE)
    run_worker(job, ALONE)
    latest = retention.find_latest(job.checkpoints)
    assert latest is not None
    assert latest.step == 6
    assert (job.output / "model.safetensors").exists()
    assert left_behind(tmp_path) == []


def test_a_model_that_cannot_be_uploaded_leaves_nothing_on_the_machine(
    tiny_store: Store, tmp_path: Path, away: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Location.upload

    def fails(place: Location, folder: Path) -> None:
        if place.name == "model":
            raise OSError(28, "No space left on device")
        upload(place, folder)

    monkeypatch.setattr(Location, "upload", fails)
    with pytest.raises(ArtifactError, match=r"the model cannot be written to mock://.*No space left"):
        train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 1}), away.root)  # type: ignore[arg-type]
    assert left_behind(tmp_path) == []


def test_weights_are_read_without_the_optimizers_state(away: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_retention import trained

    from lisan.train.checkpoint import shard_reader

    read: list[int] = []
    sliced = shard_reader.ShardReader._slice_file

    def slice_file(reader: Any, file: Any, info: Any) -> Any:
        read.append(info.length)
        return sliced(reader, file, info)

    monkeypatch.setattr(shard_reader.ShardReader, "_slice_file", slice_file)
    with ProcessGroup(ALONE):
        saved = sharded_state.write(sharded_state.take_state(*trained(seed=1)), 1, away, {})
        scorer, optimizer = trained(seed=2)
        sharded_state.load_weights(scorer, saved)
        only_weights = sum(read)
        read.clear()
        sharded_state.load(scorer, optimizer, saved)
        assert 2.5 * only_weights < sum(read) < saved.num_bytes
        expected, _ = trained(seed=1)
        for one, two in zip(scorer.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one.full_tensor(), two.full_tensor())  # type: ignore[attr-defined]


@pytest.mark.parametrize("mistake", [KeyError("name"), TypeError("no tensor"), AssertionError("odd")])
def test_a_mistake_while_a_checkpoint_is_written_is_gathered_like_any_failure(
    mistake: Exception, tmp_path: Path
) -> None:
    """The rank that makes it takes part in telling the others, who would wait for it."""

    def do() -> None:
        raise mistake

    with (
        ProcessGroup(ALONE),
        pytest.raises(ArtifactError, match=rf"is not complete: {type(mistake).__name__}: ") as caught,
    ):
        sharded_state.together(None, Location(str(tmp_path)), do)
    assert caught.value.__cause__ is mistake


def test_workers_are_those_of_torchrun_where_it_started_several(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tiny_store, sharding=ShardingConfig(shard_workers=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check(config, tiny_store)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match=r"sharding\.shard_workers \(2\) must divide the number of workers \(1\)"):
        check(config, tiny_store)


def test_a_run_that_is_asked_to_end_leaves_a_checkpoint_and_goes_on_bit_for_bit(
    tiny_store: Store, tmp_path: Path
) -> None:
    config = train_config(tiny_store, loop={"checkpoint_every": 100})
    whole = train_alone(tiny_store, config, tmp_path / "whole")
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="after step 2"):
        train_alone(tiny_store, config, tmp_path / "parts", replace(ALONE, is_interrupted=lambda: next(asked)))
    assert [place.name for place in (tmp_path / "parts" / "checkpoints").glob("step_*")] == ["step_00000002"]
    rest = train_alone(tiny_store, config, tmp_path / "parts")
    assert rest.taken == [3, 4, 5, 6]
    assert rest.curve("loss") == whole.curve("loss")[2:]
    for name in ("model.safetensors", "config.json"):
        written = [(tmp_path / run / "model" / name).read_bytes() for run in ("whole", "parts")]
        assert written[0] == written[1]


def test_a_signal_ends_a_run_in_one_sentence_and_the_next_one_goes_on(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_store, train_config(tiny_store, loop={"num_steps": 4, "checkpoint_every": 100}), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Watchdog, "beat", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"^interrupted; the same command goes on from step 2$"):
            train(job)
    train(job)
    assert isinstance(job.run, Recorder)
    assert job.run.taken == [1, 2, 3, 4]


def test_checkpoints_come_by_minutes_too(tiny_store: Store, tmp_path: Path) -> None:
    hourly, often = ({"num_steps": 3, "checkpoint_every": 100, "checkpoint_every_min": every} for every in (60, 1e-9))
    assert train_alone(tiny_store, train_config(tiny_store, loop=hourly), tmp_path / "hourly").checkpoints == [3]
    assert train_alone(tiny_store, train_config(tiny_store, loop=often), tmp_path / "often").checkpoints == [1, 2, 3]
