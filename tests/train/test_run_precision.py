"""The precision of a run: one on all ranks, kept with its checkpoints and manifest, and said where it changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tiny import ALONE, make_job, start_together, train_config

from lisan.cluster import worker
from lisan.cluster.config import Precision
from lisan.cluster.precision import Resolved
from lisan.cluster.worker import Worker, agree_on_precision
from lisan.core.artifact import Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.identity import fingerprint
from lisan.core.storage import Location
from lisan.train.checkpoint import retention
from lisan.train.checkpoint.checkpointer import Checkpointer
from lisan.train.metrics.run_log import read_run_log
from lisan.train.preference.reference import check_precision
from lisan.train.run import run_worker

SMALL = {"num_steps": 4, "checkpoint_every": 2, "log_every": 1}


def on_a_machine_with(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "find_precision", lambda _: Resolved(precision, f"a test multiplies {precision}"))


@contextmanager
def dying_after(step: int) -> Iterator[None]:
    def die(checkpointer: Checkpointer) -> None:
        checkpointer.finish()
        latest = retention.find_latest(checkpointer.folder)
        if latest is not None and latest.step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "report_if_done", die)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_auto_is_resolved_once_and_kept(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_machine_with(Precision.float32, monkeypatch)
    config = train_config(tiny_store, loop=SMALL, precision=Precision.auto)
    job = make_job(tiny_store, config, tmp_path)
    tags: dict[str, str] = {}
    monkeypatch.setattr(type(job.run), "log_tag", lambda _, key, value: tags.update({key: value}))
    run_worker(job, ALONE)
    assert capsys.readouterr().out.count("precision: fp32 (auto: a test multiplies float32)") == 1
    assert tags == {"precision": "float32"}
    latest = retention.find_latest(job.checkpoints)
    assert latest is not None
    assert latest.facts["precision"] == "float32"
    header, _ = read_run_log(job.checkpoints)
    assert header["facts"]["workers"].endswith("float32")
    assert header["facts"]["config"] == fingerprint(config)[:12]  # of auto


def test_bfloat16_can_be_asked_for_anywhere(tiny_store: Store, tmp_path: Path) -> None:
    config = train_config(tiny_store, loop={**SMALL, "num_steps": 1}, precision=Precision.bfloat16)
    job = make_job(tiny_store, config, tmp_path)
    assert run_worker(job, ALONE)["loss"] > 0
    latest = retention.find_latest(job.checkpoints)
    assert latest is not None
    assert latest.precision is Precision.bfloat16


def test_a_run_that_goes_on_in_another_precision_says_so_and_scores_its_reference_again(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_job(tiny_store, train_config(tiny_store, loop={**SMALL, "num_steps": 1}), tmp_path / "base")
    run_worker(base, ALONE)
    model = type(base.config.model)(path=str(tmp_path / "base" / "model"))
    config = train_config(tiny_store, "preferences", loop=SMALL, precision=Precision.auto, model=model)
    job = make_job(tiny_store, config, tmp_path / "dpo")
    on_a_machine_with(Precision.bfloat16, monkeypatch)
    with dying_after(2):
        run_worker(job, ALONE)
    assert capsys.readouterr().out.count("with the reference model") == 1
    on_a_machine_with(Precision.float32, monkeypatch)
    run_worker(job, ALONE)
    said = capsys.readouterr().out
    assert "precision: bfloat16 up to step 2, then float32" in said
    assert said.count("with the reference model") == 1
    latest = retention.find_latest(job.checkpoints)
    assert latest is not None
    assert latest.facts["precision"] == "bfloat16 up to step 2, then float32"
    assert latest.precision is Precision.float32


def agree(folder: str) -> None:
    rank = dist.get_rank()
    found = [Resolved(Precision.bfloat16, "fast"), Resolved(Precision.float32, "slow")][rank]
    worker.find_precision = lambda _: found  # type: ignore[assignment]
    Path(folder, str(rank)).write_text(str(agree_on_precision(Precision.auto, Worker(rank=rank, world_size=2))))


def test_all_workers_take_what_the_slowest_can(tmp_path: Path) -> None:
    start_together(agree, (str(tmp_path),), tmp_path / "group")
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"precision: fp32 (auto: worker 1 of 2: slow)"}


@pytest.mark.parametrize("scored", [{"precision": "float32"}, {}])
def test_scores_of_another_precision_are_refused_when_auto_is_resolved(scored: dict[str, Any]) -> None:
    class Scores:
        ref = "scores/test@v1"
        facts, config = scored, {"precision": "float32"}

    check_precision(Scores(), Precision.float32)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match="was scored in float32 and this run computes in bfloat16; set precision=float32"
    ):
        check_precision(Scores(), Precision.bfloat16)  # type: ignore[arg-type]


def test_files_do_not_depend_on_the_machine(tiny_store: Store) -> None:
    with pytest.raises(ConfigError, match="save_precision must be bfloat16 or float32"):
        train_config(tiny_store, save_precision=Precision.auto)


def test_it_is_kept_where_checkpoints_are(tmp_path: Path) -> None:
    facts = {"precision": "bfloat16 up to step 2, then float32"}
    assert retention.Checkpoint(4, Location(str(tmp_path)), 0, "", facts).precision is Precision.float32
