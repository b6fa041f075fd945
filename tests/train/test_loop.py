"""The loop: which rows, how many steps, what stops it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import ALONE, make_job, train_alone, train_config

from lisan.core.artifact import Ref, Store
from lisan.core.errors import ConfigError, DataError, TrainingError
from lisan.data.config import MixConfig
from lisan.data.row_order import open_order
from lisan.data.rows import RowBatch
from lisan.train.loop import check_rows, next_rows
from lisan.train.metrics.meter import Meter, StepRange
from lisan.train.metrics.progress_line import ProgressLine
from lisan.train.options import LoopConfig
from lisan.train.run import run_worker


@pytest.mark.parametrize(
    ("config", "num_rows", "steps"),
    [
        (LoopConfig(num_steps=7), 1000, 7),
        (LoopConfig(num_epochs=1, step_rows=32), 320, 10),
        (LoopConfig(num_epochs=1, step_rows=32), 321, 11),
        (LoopConfig(num_epochs=0.01, step_rows=32), 320, 1),
        (LoopConfig(num_epochs=2.5, step_rows=10), 100, 25),
    ],
)
def test_steps_are_given_or_follow_from_the_epochs(config: LoopConfig, num_rows: int, steps: int) -> None:
    assert config.steps(num_rows) == steps


@pytest.mark.parametrize(
    ("step_rows", "micro_rows", "world_size", "said"),
    [
        (32, 8, 3, r"loop\.step_rows \(32\) must be a multiple of the number of workers \(3\)"),
        (24, 8, 2, r"loop\.step_rows / workers \(12\) must be a multiple of loop\.micro_rows \(8\)"),
    ],
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(
    step_rows: int, micro_rows: int, world_size: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_rows(LoopConfig(step_rows=step_rows, micro_rows=micro_rows), world_size)


@pytest.mark.parametrize(("step_rows", "micro_rows", "world_size"), [(32, 8, 4), (8, 8, 4), (4, 8, 1), (12, 3, 2)])
def test_a_batch_that_can_be_shared_is_taken(step_rows: int, micro_rows: int, world_size: int) -> None:
    check_rows(LoopConfig(step_rows=step_rows, micro_rows=micro_rows), world_size)


@pytest.mark.parametrize(
    "values",
    [
        {"step_rows": 0},
        {"micro_rows": 0},
        {"checkpoint_every": 0},
        {"log_every": 0},
        {"keep_checkpoints": 0},
        {"num_steps": -1},
        {"num_epochs": 0},
    ],
)
def test_an_impossible_loop_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="loop"):
        LoopConfig(**values)  # type: ignore[arg-type]


class Along:
    """A plan of the tiny documents, as far as rows are concerned."""

    def __init__(self, store: Store, step_rows: int) -> None:
        tokens = store.open(Ref.parse("tokens/documents@v1"))
        self.order = open_order(tokens, MixConfig(), 12, step_rows)
        self.config = LoopConfig(step_rows=step_rows, micro_rows=1)
        self.num_steps = 12

    def step(self, step: int) -> RowBatch:
        return next(self.order.read(step * self.order.step_rows, 0, 1))


def test_rows_that_the_plan_does_not_name_stop_the_run(tiny_store: Store) -> None:
    plan: Any = Along(tiny_store, 4)
    right = plan.step(1)
    assert next_rows(iter([right]), plan, ALONE, 1) is right
    with pytest.raises(
        TrainingError, match=r"step 2 of rank 0 expected rows \[.*\]\.\.\. and received rows .*out of order"
    ):
        next_rows(iter([right]), plan, ALONE, 2)
    with pytest.raises(TrainingError, match="received nothing"):
        next_rows(iter([]), plan, ALONE, 1)


def test_a_stream_is_trained_on_like_rows_read_directly(tiny_store: Store, tmp_path: Path) -> None:
    config = train_config(tiny_store, loop={"num_steps": 3})
    direct = train_alone(tiny_store, config, tmp_path / "direct")
    plan: Any = Along(tiny_store, 8)

    def stream() -> Iterator[RowBatch]:
        return (plan.step(step) for step in range(3))

    streamed = train_alone(tiny_store, config, tmp_path / "streamed", replace(ALONE, stream=stream))
    assert streamed.curve("loss") == direct.curve("loss")


def test_a_step_without_a_trained_token_is_refused(tiny_store: Store, tmp_path: Path) -> None:
    plan: Any = Along(tiny_store, 8)

    def unlabelled() -> Iterator[RowBatch]:
        for step in range(6):
            rows = plan.step(step)
            yield replace(rows, labels=np.full_like(rows.labels, -100))

    with pytest.raises(DataError, match="no row of step 0 has a trained token"):
        train_alone(tiny_store, train_config(tiny_store), tmp_path, replace(ALONE, stream=unlabelled))


def test_a_gradient_that_is_not_a_number_stops_the_run_and_names_step_and_rows(
    tiny_store: Store, tmp_path: Path
) -> None:
    job = make_job(tiny_store, train_config(tiny_store, optim={"peak_lr": 1e25, "warmup_steps": 0}), tmp_path)
    with pytest.raises(
        TrainingError, match=r"gradient norm is (nan|inf) at step \d; lower optim\.peak_lr or look at the rows \["
    ):
        run_worker(job, ALONE)
    assert not (tmp_path / "model").exists()


def test_metrics_are_logged_at_intervals_and_at_the_end(tiny_store: Store, tmp_path: Path) -> None:
    run = train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 5, "log_every": 2}), tmp_path)
    assert sorted(step for step, metrics in run.steps.items() if "train/loss" in metrics) == [2, 4, 5]
    last = run.steps[5]
    assert {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/data_wait_ratio",
        "train/mfu_ratio",
        "train/memory_bytes",
        "train/peak_memory_bytes",
        "train/loss/ar_text",
        "train/language_loss/ar",
    } <= set(last)
    assert 0 <= last["train/data_wait_ratio"] <= 1
    assert last["train/mfu_ratio"] > 0
    assert 50e6 < last["train/memory_bytes"] <= last["train/peak_memory_bytes"]


def test_the_loss_is_the_mean_of_its_sources_weighted_by_tokens(tiny_store: Store, tmp_path: Path) -> None:
    run = train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 1, "step_rows": 8}), tmp_path)
    plan: Any = Along(tiny_store, 8)
    rows = plan.step(0)
    counts = np.bincount(plan.order.source_of(rows.row_ids), (rows.labels[:, 1:] >= 0).sum(1), minlength=2)
    by_source = [run.steps[1][f"train/loss/{source}"] for source in plan.order.sources]
    assert run.steps[1]["train/loss"] == pytest.approx(np.average(by_source, weights=counts), rel=1e-5)


def test_the_loss_of_a_language_is_the_mean_of_its_sources_weighted_by_tokens() -> None:
    reader: Any = SimpleNamespace(sources=("a", "b", "c", "d"), languages={"a": "ar", "b": "en", "c": "ar", "d": "fr"})
    losses = Meter(reader, StepRange(1, 1), ALONE, ProgressLine())._losses([10.0, 4.0, 2.0, 0.0], [2.0, 1.0, 4.0, 0.0])
    assert losses == {"loss/a": 5, "loss/b": 4, "loss/c": 0.5, "language_loss/ar": 2, "language_loss/en": 4}


def test_only_the_wait_for_rows_counts_as_waiting(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = Meter(Along(tiny_store, 8).order, StepRange(12, 10), ALONE, ProgressLine())
    for step in range(3):
        with meter.waiting(step):
            next(clock)
        next(clock)  # the step itself
    assert (meter.step, meter._waited_s) == (2, 6)


def test_checkpoints_are_made_at_intervals_and_at_the_end_and_old_ones_go(tiny_store: Store, tmp_path: Path) -> None:
    reports: list[tuple[float, str]] = []
    worker = replace(ALONE, report=lambda metrics, place: reports.append((metrics["step"], str(place))))
    loop = {"num_steps": 5, "checkpoint_every": 2, "keep_checkpoints": 2}
    run = train_alone(tiny_store, train_config(tiny_store, loop=loop), tmp_path, worker)
    assert run.checkpoints == [step for step, _ in reports] == [2, 4, 5]
    assert sorted(place.name for place in (tmp_path / "checkpoints").glob("step_*")) == [
        "step_00000004",
        "step_00000005",
    ]
    assert reports[-1][1] == str(tmp_path / "checkpoints" / "step_00000005")


def test_a_finished_run_that_is_started_again_trains_no_step(tiny_store: Store, tmp_path: Path) -> None:
    config = train_config(tiny_store, loop={"num_steps": 2})
    train_alone(tiny_store, config, tmp_path)
    assert train_alone(tiny_store, config, tmp_path).taken == []
    assert (tmp_path / "model" / "config.json").exists()
